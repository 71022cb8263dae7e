"""What a change of flags does to scores: rows of runs with it minus the same rows of runs without, paired by
task and seed.

    python scripts/compare_runs.py --base runs/fp32 --other runs/bf16
    python scripts/compare_runs.py --base runs/whole --other runs/skip --other runs/logits --rows kd

--base and --other take run folders, folders of them, and compact files of make_tables.py. The page says in
which flags and choices the sides differ; their tasks' data and their encoders must be the same. Tests,
intervals and Holm's correction are those of make_tables.py, over all comparisons of the page. A row that the
change does not reach (both sides have the same phase, or kept the same student) is marked, and not tested.
Needs scripts/requirements.txt.
"""
import sys
from pathlib import Path

from lib import formats
from lib.commands import exit_code, put
from lib.comparisons import COLUMNS, SAME, Comparison, correct_all, mark_same
from lib.rows import ALIASES, ROWS, find_rows, label_of
from lib.run_records import Found, check_comparable, environments_of, read_runs, same_student, write_compact

from arguments import OneLineParser, with_defaults
from bookkeeping.errors import InputError
from bookkeeping.identity import PROVENANCE

HEADER = ["task", "row", "seeds", "other", "base", *COLUMNS]


# --- both sides ---------------------------------------------------------------------------------------------

class Both(Found):
    """Two Found, read by a Comparison as if they were one: its names of rows are (0, row) of base and
    (1, row) of other."""

    def __init__(self, base, other):
        self.sides, self.facts = (base, other), base.facts

    def cell(self, task, name):
        side, row = name
        return self.sides[side].cell(task, row)

    def same_run(self, task, name):
        side, row = name
        return side, self.sides[side].same_run(task, row)

    @staticmethod
    def label_of(name):
        return label_of(name[1])

    def comparisons(self, rows):
        """Of the rows that both sides have; one computation is compared once."""
        made = [self.comparison(task, row) for task in self.sides[0].tasks for row in rows]
        made = [comparison for comparison in made if comparison.seeds]
        mark_same(self, made)
        return made

    def comparison(self, task, row):
        """Of a row of both sides; one computation on both is marked."""
        made = Comparison(self, task, [(1, row)], [(0, row)], [task, label_of(row)])
        pairs = [[self.cell(task, (side, row))[seed] for side in (0, 1)] for seed in made.seeds]
        if ROWS[row].phase == "phase 4":
            same = all(same_student(*pair) for pair in pairs)
        else:
            same = all(identities[0] == identities[1] is not None for identities in (
                [figures["record"]["phases"].get(ROWS[row].found_as) for figures in pair] for pair in pairs))
        made.same = SAME if same else None
        return made


def settings_of(record, names):
    """{flag or choice: value} of what may differ between the sides. names: of the flags."""
    flags = with_defaults(record["flags"])
    return {"--protocol": record["protocol"], **{f"--{name}": flags[name] for name in names},
            **{f"--set {name}": value for name, value in (change.split("=", 1) for change in record["set"])}}


def differences(both):
    """Texts that say in what the sides differ, base's value first; InputError where they cannot be paired."""
    texts = {}
    for task in both.sides[0].tasks:
        pair = [next((record for record in side.records if record["task"] == task), None)
                for side in both.sides]
        if None in pair:
            continue
        for name in ("encoder", "data"):
            if pair[0][name] != pair[1][name]:
                raise InputError(f"runs {pair[0]['run']} and {pair[1]['run']}: other {name} on each side,"
                                 " expected the same; give runs that differ in flags alone")
        names = {**pair[0]["flags"], **pair[1]["flags"]}
        base, other = (settings_of(record, names) for record in pair)
        for name in {**base, **other}:
            values = [settings.get(name, "as by default") for settings in (base, other)]
            if values[0] != values[1]:
                texts[f"{name} ({values[0]}, {values[1]})"] = True
    spoken = {None: "no", False: "no", True: "yes"}
    for name in PROVENANCE:
        values = [sorted({spoken.get(environment[name], str(environment[name])) for record in side.records
                          for environment in environments_of(record) if name in environment})
                  for side in both.sides]
        if all(values) and values[0] != values[1]:
            texts[f"{name} ({' and '.join(values[0])}; {' and '.join(values[1])})"] = True
    return list(texts)


# --- the page -----------------------------------------------------------------------------------------------

def parse(argv):
    parser = OneLineParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--base", required=True, nargs="+", type=Path, metavar="RUNS",
                        help="without the change: run folders, folders of them, or compact files")
    parser.add_argument("--other", required=True, action="append", nargs="+", type=Path, metavar="RUNS",
                        help="with it; may be given several times, a change each")
    parser.add_argument("--rows", nargs="+", default=["all"], metavar="ROW",
                        help=f"of {', '.join([*ROWS, *ALIASES])} (default: all that both sides have)")
    parser.add_argument("--output", type=Path, help="file to write to (default: the screen)")
    parser.add_argument("--compact", type=Path, metavar="FOLDER",
                        help="also write the runs there without weights, as base.jsonl, other1.jsonl, ...,"
                             " for a later --base and --other")
    args = parser.parse_args(argv)
    try:
        args.rows = find_rows(args.rows)
    except ValueError as error:
        parser.error(f"argument --rows: {error}")
    return args


def read_side(paths, flag):
    """The runs of one side."""
    for path in paths:
        if not path.exists():
            raise InputError(f"{flag} {path}: no such file or folder; give runs")
    records, _, _ = read_runs(paths)
    check_comparable(records)
    return Found(records)


def line_of(comparison):
    """A line of a table."""
    cells = comparison.cells()
    first, rest = cells[:len(comparison.what)], cells[len(comparison.what):]
    if comparison.same:
        return [*first, str(len(comparison.seeds)), "", "", *rest]
    scale, form = (100, ".1f") if comparison.in_percent else (1, ".4f")
    levels = [f"{scale * scores.mean():{form}}" for scores in comparison.scores]
    return [*first, str(len(comparison.seeds)), *levels, *rest]


def compare(args):
    """Read, pair, test, say."""
    base = read_side(args.base, "--base")
    others = [read_side(paths, "--other") for paths in args.other]
    parts = []
    for other in others:
        both = Both(base, other)
        made = both.comparisons(args.rows)
        if not made:
            raise InputError(f"--other {other.records[0]['run']}, ...: no row found that base has of the same"
                             " task and seed; give sides that share some")
        parts.append((differences(both), made))
    known = [comparison for _, made in parts for comparison in made]
    correct_all(known)
    page = [("heading", "What a change does to scores"), (
        "text", "Other minus base, paired by seed and example of dev, in percent of the examples (of a"
                " regression: minus squared errors); by seed: in examples. p is corrected (Holm) for all"
                f" {sum(comparison.counts for comparison in known)} comparisons of this page.")]
    for texts, made in parts:
        page += [("heading", "; ".join(texts) or "Nothing that a run says differs"),
                 ("table", ("", HEADER, [line_of(comparison) for comparison in made]))]
    text = formats.to_markdown(page)
    if args.compact:
        args.compact.mkdir(parents=True, exist_ok=True)
        for name, side in (("base", base), *((f"other{number}", other)
                                             for number, other in enumerate(others, 1))):
            write_compact(side.records, args.compact / f"{name}.jsonl")
    put(text, args.output)


def main(argv=None):
    return exit_code(compare, parse(argv))


if __name__ == "__main__":
    sys.exit(main())

"""A table of the paper from finished runs, the paper's numbers beside them, and what a careful reader asks of
it.

    python scripts/make_tables.py RUNS... --table 1a --format md
    python scripts/make_tables.py RUNS... --table 1a --format html --output page.html --figures figures
    python scripts/make_tables.py RUNS... --table 1a --compact runs.jsonl        (later: RUNS = that file)

RUNS are run folders, folders of them, or compact files. Below the table stand: correct answers by seed, what
was run, paired differences of MPDistil with its controls, how much is won by selecting, how often a student
beats its teacher, and what all of that carries. Runs of different commits, of changed files or of different
machines are refused, or with --mixed said to be so. Needs scripts/requirements.txt.
"""
import sys
from collections import Counter
from pathlib import Path

from lib.commands import exit_code, put
from lib.rows import read_paper
from lib.run_records import Found, check_comparable, check_unmixed, read_runs, write_compact

from arguments import OneLineParser
from bookkeeping.errors import InputError

OWN = "own"  # of --table: no table of the paper


def parse(argv):
    parser = OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS",
                        help="run folders, folders of them, or compact files")
    tables = [name.removeprefix("table_") for name in read_paper() if name.startswith("table_")]
    parser.add_argument("--table", required=True, choices=[*tables, OWN],
                        help=f"of the paper, or '{OWN}': a column for each task and metric that the runs"
                             " have")
    parser.add_argument("--format", choices=("md", "tex", "csv", "html"), default="md",
                        help="md, html: everything; tex: the tables; csv: a line a cell and seed (default:"
                             " md)")
    parser.add_argument("--output", type=Path, help="file to write to (default: the screen)")
    parser.add_argument("--figures", type=Path, metavar="FOLDER",
                        help="also write the figures there, as PNG and SVG")
    parser.add_argument("--note", type=Path, metavar="FILE",
                        help="whose lines stand first under 'What was run': what runs do not know, such as an"
                             " encoder's full name")
    parser.add_argument("--compact", type=Path, metavar="FILE",
                        help="also write the runs there without weights, for a later RUNS")
    parser.add_argument("--mixed", action="store_true",
                        help="take runs of different commits, of changed files or of different machines; the"
                             " page says which")
    args = parser.parse_args(argv)
    for path in args.runs:
        if not path.exists():
            parser.error(f"argument RUNS: {path}: no such file or folder")
    return args


def make(args):
    """Read, build, write."""
    records, places, unfinished = read_runs(args.runs)
    check_comparable(records)
    if not args.mixed:
        check_unmixed(records)
    if args.compact:
        write_compact(records, args.compact)
    from lib.tables import columns_of, task_of  # here: what they need may not be installed
    if args.table == OWN:
        table = columns_of(Found(records))
    else:
        table = read_paper()[f"table_{args.table}"]
    columns = dict.fromkeys(task_of(name) for name, _ in table["columns"])
    others = Counter(record["task"] for record in records if record["task"] not in columns)
    records = [record for record in records if record["task"] in columns]
    if not records:
        raise InputError(f"--table {args.table}: runs of {', '.join(others)} found, expected some of"
                         f" {', '.join(columns)}")
    left_out = [f"{count} runs of {task}, which has no column" for task, count in others.items()]
    left_out += [f"{folder.name}, unfinished" for folder in unfinished]
    text = render(args, Found(records), table, left_out, places)
    put(text, args.output)


def render(args, found, table, left_out, places):
    """The text that --format asks for; writes the figures."""
    from lib import formats, pages, tables
    drawings = []
    if args.figures or args.format == "html":
        from lib.figures import draw_all
        drawings = draw_all(found, table, args.table, args.figures)
    if args.format == "csv":
        return formats.to_csv(*tables.cell_lines(found, table))
    notes = args.note.read_text(encoding="utf-8").splitlines() if args.note else []
    page = pages.build(found, table, args.table, left_out, read_paper()["source"], notes)
    if args.format == "html":
        return formats.to_html(page, drawings, found.records, places, args.output)
    return formats.to_tex(page) if args.format == "tex" else formats.to_markdown(page)


def main(argv=None):
    return exit_code(make, parse(argv))


if __name__ == "__main__":
    sys.exit(main())

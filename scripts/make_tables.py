"""A table of the paper from finished runs, the paper's numbers beside them, and what a careful reader asks of
it.

    python scripts/make_tables.py RUNS... --table 1a --format md
    python scripts/make_tables.py runs/table_1a --table 1a --format html --output results/page.html --figures results/figures
    python scripts/make_tables.py runs/table_1a --table 1a --compact results/runs.jsonl        (later: RUNS = that file)

RUNS are run folders, folders of them, or compact files. Below the table stand: correct answers by seed, what
was run, paired differences of MPDistil with its controls, how much is won by selecting, how often a student
beats its teacher, and what all of that carries. Needs scripts/requirements.txt.
"""

import statistics
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

import numpy as np

from arguments import OneLineParser, build_parser
from bookkeeping.errors import InputError
from lib.rows import MPDISTIL, ROWS, label_of, read_paper
from lib.run_records import Found, check_comparable, process_seconds, read_runs, write_compact
from lib.statistics import chance_of_wins, corrected, count_wins, expected_best, mean_interval, permutation_p
from tasks import TASKS

AGAINST = ("kd", "kd_200", "uniform", "teacher")  # what each MPDistil row is compared with
FACTORS = {  # averaged over the other choice: (rows of one side, rows of the other)
    "real - binary": (
        ["mpdistil_col_real", "mpdistil_com_real"],
        ["mpdistil_col_binary", "mpdistil_com_binary"],
    ),
    "competitive - collaborative": (
        ["mpdistil_com_binary", "mpdistil_com_real"],
        ["mpdistil_col_binary", "mpdistil_col_real"],
    ),
}
CURVES = ("student", "kd", "kd_200", "uniform", "no_curriculum_col", *MPDISTIL)
LEVEL = 0.05
MISSING = "missing"
# flags that the page names anyway
SAID = ("teacher_epochs", "epochs", "meta_epochs", "num_episodes", "tasks")
METRICS = {"acc": "accuracy", "f1": "f1"}  # the paper's word for a figure of result.json


# --- figures in words ---------------------------------------------------------------------------------------

def percent(values):
    """Mean and, of several, standard deviation, in percent."""
    values = [100 * value for value in values]
    return f"{statistics.mean(values):.1f}" + (
        f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    )


def probability(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


# --- the parts of the page ----------------------------------------------------------------------------------

def main_table(found, table):
    """(header, rows): a row of the paper a line, ours beside the paper's number, column by column."""
    # seeds
    many = {column: {len(found.cell(column, name)) for name in ROWS} - {0} for column, _ in table["columns"]}
    header, lines = ["row"], []
    for column, metric in table["columns"]:
        header += [
            f"{column} {metric}" + (f" (n = {max(many[column])})" if len(many[column]) == 1 else ""),
            "paper",
        ]
    for name in ROWS:
        line = [label_of(name)]
        for position, (column, metric) in enumerate(table["columns"]):
            cell, key = found.cell(column, name), METRICS.get(metric)
            values = [figures[key] for figures in cell.values() if key in figures]
            line.append(
                MISSING
                if not values
                else percent(values) + (f" (n = {len(values)})" if len(many[column]) > 1 else "")
            )
            line.append(f"{table['values'][name][position]:.1f}" if name in table["values"] else "-")
        lines.append(line)
    majority = ["Majority class"]
    for column, _ in table["columns"]:
        majority += [f"{100 * found.majority(column):.1f}" if column in found.tasks else MISSING, "-"]
    return header, [*lines, majority]


def count_table(found):
    """Correct answers, k of n, by seed."""
    header = ["row"] + [f"{task}, of {sum(found.dev_labels(task))}" for task in found.tasks]
    return header, [
        [label_of(name)]
        + [
            ", ".join(str(figures["correct"]) for figures in found.cell(task, name).values()) or MISSING
            for task in found.tasks
        ]
        for name in ROWS
    ]


def span(values, form=str):
    """One value, or the smallest and the largest."""
    values = sorted(set(values))
    return form(values[0]) if len(values) == 1 else f"{form(values[0])} to {form(values[-1])}"


def describe(found):
    """Paragraphs: encoder, protocol, selection, data, machine."""
    first = found.records[0]
    encoder, environments = first["encoder"], [record["environment"] for record in found.records]
    student = "" if encoder["student"] == encoder["teacher"] else f" of {encoder['student']}"
    yield (
        f"Encoder: {encoder['teacher']} (sha256 {encoder['teacher_sha256'][:16]}) as teacher, its student the"
        f" first {encoder['nlayers']} layers{student}. Where that is not the paper's encoder, compare"
        " differences between rows, not levels."
    )
    yield (
        f"Protocol `{first['protocol']}`"
        + "".join(f", {change}" for change in first["set"])
        + f". The epoch or episode that is kept is the best on {first['select_on']}"
        + (
            ", the split that is reported, as in the paper: all levels are optimistic."
            if first["select_on"] == "dev"
            else "."
        )
    )
    for task in found.tasks:
        of_task = [record for record in found.records if record["task"] == task]
        flags, data = of_task[0]["flags"], of_task[0]["data"]
        sizes = ", ".join(
            f"{name.split('/')[1]} {split['examples']}"
            for name, split in data.items()
            if name.split("/")[0] == task
        )
        seeds = sorted({record["seed"] for record in of_task})
        usual = vars(build_parser().parse_args(["--task", task, "--data_dir", ""]))
        others = [
            f"--{name} {value}"
            for name, value in flags.items()
            if name not in SAID and usual.get(name) != value
        ]
        yield (
            f"{task}: seeds {', '.join(map(str, seeds))}; {flags['teacher_epochs']} teacher,"
            f" {flags['epochs']} student and {flags['meta_epochs']} meta-teacher epochs,"
            f" {flags['num_episodes']} episodes"
            + ("" if flags["num_episodes"] == 200 else " (not the default, 200)")
            + ", as many looks for the control kd_200; "
            + (f"{', '.join(others)}, other flags as by default" if others else "other flags as by default")
            + f"; examples: {sizes}."
        )
    absent = []
    sizes = {name: split["examples"] for record in found.records for name, split in record["data"].items()}
    for task in TASKS:
        train, dev, test = TASKS[task].official
        for part, here, expected in (
            ("train and quiz together", sizes.get(f"{task}/train", 0) + sizes.get(f"{task}/quiz", 0), train),
            ("dev", sizes.get(f"{task}/dev"), dev),
            ("test", sizes.get(f"{task}/test"), test),
        ):
            if task not in found.tasks:  # of a task that is in the curriculum alone, quiz is all that is read
                part, here, expected = "quiz", sizes.get(f"{task}/quiz"), (train + 5) // 10
            if here is not None and here != expected:
                absent.append(f"{task} {part} {here} examples, where the official files give {expected}")
    yield "Data: " + (
        "; ".join(dict.fromkeys(absent)) + ": rows are missing, or it is other data."
        if absent
        else "all that was read has the sizes of the official files."
    )
    used = {name: span(str(environment[name] or "none") for environment in environments)
            for name in ("gpu", "cpu_threads", "torch", "transformers")}
    commits = sorted({(environment["git_commit"] or "unknown")[:10] for environment in environments})
    memory = span(f"{record['peak_memory_bytes'] / 2 ** 30:.1f}" for record in found.records)
    yield (
        f"Machine: GPU {used['gpu']}, CPU threads a run {used['cpu_threads']}, torch {used['torch']},"
        f" transformers {used['transformers']}, commit {', '.join(commits)}; peak memory of a run {memory}"
        f" GiB; {len(found.records)} runs with {process_seconds(found.records) / 3600:.1f} process hours of"
        " training in all."
    )


class Comparison:
    """Two sides, each a list of rows whose mean counts, on one task over the seeds that all have."""

    def __init__(self, found, task, first, second, what):
        self.task, self.what = task, what
        self.seeds = found.seeds(task, *first, *second)
        if self.seeds:
            self.looks = [
                span([len(figures["looks"]) for name in names for figures in found.cell(task, name).values()])
                for names in (first, second)
            ]
            a, b = (found.right(task, names, self.seeds) for names in (first, second))
            self.mean, self.low, self.high = mean_interval(a - b)
            self.by_seed, self.p = (a - b).sum(1), permutation_p(a, b)
            self.p_corrected = None  # when all are known

    @property
    def verdict(self):
        """What may be said: a direction only where the corrected test and the interval carry it, and of more
        than one seed."""
        if len(self.seeds) < 2:
            return "one seed"
        if self.p_corrected < LEVEL and self.low > 0:
            return "higher"
        return "lower" if self.p_corrected < LEVEL and self.high < 0 else "no difference shown"

    def cells(self):
        if not self.seeds:
            return [*self.what, MISSING, "", "", "", "", "", ""]
        return [
            *self.what,
            " : ".join(self.looks),
            f"{100 * self.mean:+.1f}",
            f"{100 * self.low:+.1f} to {100 * self.high:+.1f}",
            " ".join(f"{value:+.3g}" for value in self.by_seed),
            probability(self.p),
            probability(self.p_corrected),
            self.verdict,
        ]


def compare(found):
    """All Comparisons: {(task, row, against)}, and those of the factors. Where phases alternate, competitive
    rows are compared with the teacher alone: the controls there begin with the collaborative loss's
    student."""
    rows = {(task, row, other): Comparison(found, task, [row], [other], [label_of(row), label_of(other)])
            for task in found.tasks for row in MPDISTIL for other in AGAINST
            if not found.alternating or ROWS[row].loss == "col" or other == "teacher"}
    factors = {
        (task, name): Comparison(found, task, *sides, [name])
        for task in found.tasks
        for name, sides in FACTORS.items()
    }
    known = [comparison for comparison in (*rows.values(), *factors.values()) if comparison.seeds]
    for comparison, p in zip(known, corrected([comparison.p for comparison in known])):
        comparison.p_corrected = p
    return rows, factors


def selection_table(found, task):
    """What keeping the best of many looks at dev is worth, in percent, the mean over seeds."""
    few = few_looks(found, task)
    header = [
        f"{task}: row",
        "looks",
        "kept",
        "mean of all looks",
        "last look",
        f"expected best of {few} looks",
        "kept - mean",
        f"kept - best of {few}",
    ]
    lines = []
    for name in CURVES:
        effect = selection_effect(found, task, name)
        if effect:
            lines.append([label_of(name), span(effect["looks"]), *(f"{100 * effect[key]:.1f}" for key in (
                "kept", "mean", "last", "few", "over_mean", "over_few"))])
    return header, lines


def few_looks(found, task):
    """Looks that phase 2 has."""
    return next(record["flags"]["epochs"] for record in found.records if record["task"] == task)


def selection_effect(found, task, name):
    """{figure: mean over seeds}, shares of dev; None without the row."""
    cell = found.cell(task, name)
    if not cell:
        return None
    shares = [np.array(figures["looks"]) / figures["total"] for figures in cell.values()]
    means = {
        "kept": [figures["accuracy"] for figures in cell.values()],
        "mean": [share.mean() for share in shares],
        "last": [share[-1] for share in shares],
        "few": [expected_best(share, few_looks(found, task)) for share in shares],
    }
    means = {key: float(np.mean(values)) for key, values in means.items()}
    return {**means, "looks": [len(share) for share in shares], "over_mean": means["kept"] - means["mean"],
            "over_few": means["kept"] - means["few"]}


def same_picks(found, task, name):
    """Share of the steps in which the policy picks what the uniform run of the same seed, whose draws are the
    same, picks; None without both."""
    seeds = found.seeds(task, name, "uniform")
    if not seeds:
        return None
    picks, chance = (
        "".join(sign for seed in seeds for sign in found.cell(task, row)[seed]["record"]["actions"])
        for row in (name, "uniform")
    )
    same = [one == other for one, other in zip(picks, chance, strict=True)]
    return sum(same) / len(same)


def policy_table(found):
    """Entropy and reward at the beginning and the end, the policy's and those of chance."""
    header = [
        "row",
        "episodes",
        "entropy, first fifth",
        "last fifth",
        "reward, first fifth",
        "last fifth",
        "same picks as uniform, %",
    ]
    lines = []
    for task in found.tasks:
        for name in (*MPDISTIL, "uniform"):
            records = [figures["record"] for figures in found.cell(task, name).values()]
            if not records:
                continue
            line = [f"{task}: {label_of(name)}", span([len(record["rewards"]) for record in records])]
            for key in ("entropies", "rewards"):
                for part in (
                    slice(None, max(1, len(records[0][key]) // 5)),
                    slice(-max(1, len(records[0][key]) // 5), None),
                ):
                    line.append(
                        f"{statistics.mean(value for record in records for value in record[key][part]):.4f}"
                    )
            same = same_picks(found, task, name)
            lines.append([*line, MISSING if same is None else f"{100 * same:.1f}"])
    return header, lines


def wins_table(found, table):
    """In how many tasks a student beats its teacher, ours and the paper's."""
    from scipy.stats import binom
    header = [
        "student",
        "tasks",
        "above",
        "equal",
        "below",
        "chance of so many above",
        "paper: above",
        "equal",
        "below",
        "chance of so many above",
    ]
    lines, ours = [], {}
    columns = [
        number
        for number, (name, metric) in enumerate(table["columns"])
        if metric in ("acc", "acc matched", "pearson")
    ]
    for label, names in [*((label_of(name), [name]) for name in MPDISTIL), ("best of the four", MPDISTIL)]:
        tasks = [task for task in found.tasks if found.seeds(task, "teacher", *names)]
        line = [label, str(len(tasks))]
        if tasks:
            seeds = {task: found.seeds(task, "teacher", *names) for task in tasks}
            teacher, *students = (
                [found.right(task, [name], seeds[task]).sum(0) for task in tasks]
                for name in ("teacher", *names)
            )
            sums = [[task.sum() for task in row] for row in (teacher, *students)]
            wins = count_wins(sums[0], sums[1:])
            equal = sum(max(row[number] for row in sums[1:]) == right for number, right in enumerate(sums[0]))
            chance = chance_of_wins(teacher, students)
            ours[label] = (wins, len(tasks), chance)
            line += [str(wins), str(equal), str(len(tasks) - wins - equal), probability(chance)]
        else:
            line += [MISSING, "", "", ""]
        paper = [
            (max(table["values"][name][column] for name in names), table["values"]["teacher"][column])
            for column in columns
        ]
        above, below = sum(a > b for a, b in paper), sum(a < b for a, b in paper)
        # of two equals the teacher is best once in two, of five that are as different from each other once in
        # five
        shares = [1 / 2] if len(names) == 1 else [1 / 2, len(names) / (len(names) + 1)]
        chances = [probability(binom.sf(above - 1, above + below, share)) for share in shares]
        lines.append(line + [str(above), str(len(paper) - above - below), str(below), " to ".join(chances)])
    return header, lines, ours


# --- what may be said ---------------------------------------------------------------------------------------

def verdict_of(known, more, less, neither):
    """The words that the corrected tests of some Comparisons carry."""
    if all(len(comparison.seeds) < 2 for comparison in known):
        return "was compared in one seed alone, which shows no direction"
    higher, lower = (sum(comparison.verdict == word for comparison in known) for word in ("higher", "lower"))
    many = f"{len(known)} comparison{'s' * (len(known) > 1)}"
    said = [f"{words} in {count} of {many}" for words, count in ((more, higher), (less, lower)) if count]
    return " and ".join(said) or f"{neither} in any of {many}"


def differences_of(known):
    """Their differences in points, task by task."""
    points = {task: [100 * comparison.mean for comparison in known if comparison.task == task]
              for task in dict.fromkeys(comparison.task for comparison in known)}
    return "; ".join(
        f"{task} {span(values, lambda value: f'{value:+.1f}')} points" for task, values in points.items()
    )


def sentences(found, rows, factors, wins):
    """The five questions, each answered by no more than what the tests carry."""
    def against(other):
        return [
            comparison for (_, _, second), comparison in rows.items() if second == other and comparison.seeds
        ]

    def answer(subject, known, more, less, neither):
        return (
            f"{subject} {verdict_of(known, more, less, neither)} ({differences_of(known)})."
            if known
            else f"{subject}: not run."
        )

    lines = [
        answer(
            "The learnt policy",
            against("uniform"),
            "is better than a uniform one",
            "is worse than a uniform one",
            "is not shown to differ from a uniform one",
        ),
        answer(
            "Phase 4",
            against("kd_200"),
            "beats the distilled student that is distilled on for as many steps and looks (kd_200)",
            "loses to the distilled student that is distilled on for as many steps and looks (kd_200)",
            "is not shown to differ from the distilled student that is distilled on for as many steps and"
            " looks (kd_200)",
        ),
    ]
    for name, subject, other in zip(
        FACTORS, ("The real reward", "The competitive loss"), ("the binary one", "the collaborative one")
    ):
        known = [
            comparison for (_, factor), comparison in factors.items() if factor == name and comparison.seeds
        ]
        lines.append(
            answer(
                subject,
                known,
                f"is better than {other}",
                f"is worse than {other}",
                f"is not shown to differ from {other}",
            )
        )
    lines[2:] = [" ".join(lines[2:])]
    picks = [
        same
        for task in found.tasks
        for name in MPDISTIL
        if (same := same_picks(found, task, name)) is not None
    ]
    if picks:
        lines[0] = (
            f"{lines[0][:-1]}; in {span([100 * same for same in picks], lambda value: f'{value:.1f}')}% of"
            " the steps it picks the very task that chance alone picks with the same seed."
        )
    students = answer("A student", against("teacher"), "is above its teacher", "is below its teacher",
                      "is not shown to differ from its teacher")
    if "best of the four" in wins:
        singles = [
            f"{won} of {tasks}" for label, (won, tasks, _) in wins.items() if label != "best of the four"
        ]
        won, tasks, chance = wins["best of the four"]
        looks = span([" against ".join(comparison.looks) for comparison in against("teacher")])
        students = (
            f"{students[:-1]}; by their means alone single variants are above it in {span(singles)} tasks and"
            f" the best of the four in {won} of {tasks}, whose chance is at most {probability(chance)} if"
            f" nothing differs; what is kept is the best of {looks} looks, which favours the student."
        )
    worth = []
    for task in found.tasks if found.records[0]["select_on"] == "dev" else ():
        effects = [
            effect
            for effect in (selection_effect(found, task, name) for name in (*MPDISTIL, "uniform"))
            if effect
        ]
        over = {
            key: span([100 * effect[key] for effect in effects], lambda value: f"{value:.1f}")
            for key in ("over_mean", "over_few")
        }
        looks = span([looks for effect in effects for looks in effect["looks"]])
        worth += [
            f"on {task} {over['over_mean']} points above the mean of its {looks} looks and {over['over_few']}"
            f" above what the best of {few_looks(found, task)} would be"
        ] * bool(effects)
    return [
        *lines,
        students,
        (
            f"The best look at dev that phase 4 keeps stands {'; '.join(worth)}."
            if worth
            else "Selection on dev: phase 4 was not run, or dev did not select."
        ),
    ]


# --- output -------------------------------------------------------------------------------------------------

def build(found, table, table_name, left_out, source, notes):
    """The page, as formats.py describes it."""
    rows, factors = compare(found)
    header, lines, wins = wins_table(found, table)
    page = [
        ("heading", f"Table {table_name}: {table['title']}"),
        (
            "text",
            (
                "Accuracy and the like on dev in percent, mean ± standard deviation over n seeds; in the"
                f" columns `paper` the numbers of {source}"
            ),
        ),
        ("table", ("main", *main_table(found, table))),
    ]
    nothing = [
        f"{name} {metric}"
        for name, metric in table["columns"]
        if name not in found.tasks or metric not in METRICS
    ]
    if nothing:
        page.append(("text", f"Missing: no runs of {', '.join(nothing)}."))
    partly = [
        f"{task}: {', '.join(names)}"
        for task in found.tasks
        if (names := [name for name in ROWS if not found.cell(task, name)])
    ]
    if partly:
        page.append(("text", f"Missing rows: {'; '.join(partly)}."))
    if left_out:
        page.append(("text", f"Left out: {'; '.join(left_out)}."))
    if found.alternating:
        page.append(
            (
                "text",
                (
                    "Phases 2 and 3 alternate, so that a distilled student hangs on the loss: the rows `kd`"
                    " and `kd_200` are the collaborative ones, and competitive rows are not compared with"
                    " them or with `uniform`."
                ),
            )
        )
    if found.records[0]["protocol"] == "paper" and not found.records[0]["set"]:
        page.append(
            (
                "text",
                (
                    "In `paper` the meta-teacher is a constant for the student: loss and reward reach it by"
                    " the policy alone. So `without curriculum` is the same computation with either loss, and"
                    " one uniform run stands for all four."
                ),
            )
        )
    page += [
        ("heading", "What the runs say"),
        ("list", sentences(found, rows, factors, wins)),
        ("heading", "What was run"),
        ("list", [*notes, *describe(found)]),
        ("heading", "Correct answers by seed"),
        ("table", ("counts", *count_table(found))),
        ("heading", "Paired differences"),
        (
            "text",
            (
                "Row minus the row that it is compared with, in points, over the seeds that both have."
                " Looks: at dev, of which each side kept the best; more of them favour a side. Interval:"
                " 95%, the outer ends of a bootstrap over seeds and examples and of Student's t over seeds."
                " By seed: difference in correct answers. p: permutation test, an example's answers of all"
                " seeds swapped together, for these seeds; corrected for all comparisons on this page"
                f" (Holm). A direction is given only where the corrected p is below {LEVEL:g} and the"
                " interval leaves zero out. Comparisons of one task are not independent: the four rows share"
                " their first student and their controls."
            ),
        ),
    ]
    columns = ["looks", "difference", "95% interval", "by seed", "p", "corrected", "so"]
    for task in found.tasks:
        page.append(
            (
                "table",
                (
                    f"differences {task}",
                    [f"{task}: row", "minus", *columns],
                    [comparison.cells() for (of_task, _, _), comparison in rows.items() if of_task == task],
                ),
            )
        )
    page.append(
        (
            "table",
            (
                "factors",
                ["choice of reward or loss, mean over the other", *columns],
                [
                    [f"{task}: {name}", *comparison.cells()[1:]]
                    for (task, name), comparison in factors.items()
                ],
            ),
        )
    )
    page += [
        ("heading", "What the policy does"),
        (
            "text",
            (
                "Means over seeds; entropy in nats (of n tasks at most ln n), reward summed over an episode."
                " Real and binary rewards, and those of the two losses' meta-teachers, are different scales."
            ),
        ),
        ("table", ("policy", *policy_table(found))),
    ]
    if found.records[0]["select_on"] == "dev":
        page += [
            ("heading", "What selecting on dev is worth"),
            (
                "text",
                (
                    "Dev accuracy in percent, means over seeds: of the look that was kept, of all looks, of"
                    " the last one, and of the best of as many looks as phase 2 has, drawn from the same"
                    " curve. What is kept stands above the mean by selection and by what is learnt on the"
                    " way."
                ),
            ),
        ]
        page += [("table", (f"selection {task}", *selection_table(found, task))) for task in found.tasks]
    page += [
        ("heading", "Does the student beat its teacher?"),
        (
            "text",
            (
                "Tasks in which the student's mean over seeds is above, equal to or below its teacher's."
                " Chance of so many above if nothing differs: answers of teacher and students dealt out anew,"
                " example by example, which for four students that are alike is too high, and leaves out that"
                " students were kept from more looks. For the paper, whose answers are not known, ties left"
                " out: one in two for a student, one in two (four that are the same) to four in five (four as"
                " different as the teacher) for the best of four."
            ),
        ),
        ("table", ("wins", header, lines)),
    ]
    return page


def cell_lines(found, table):
    """(header, rows) of the main table's cells, a line a seed."""
    lines = []
    for name in ROWS:
        for position, (column, metric) in enumerate(table["columns"]):
            paper = table["values"].get(name, {position: ""})[position]
            key, cell = METRICS.get(metric), found.cell(column, name)
            lines += [
                [
                    column,
                    metric,
                    name,
                    seed,
                    round(100 * figures[key], 4),
                    figures["correct"],
                    figures["total"],
                    paper,
                ]
                for seed, figures in cell.items()
                if key in figures
            ] or [[column, metric, name, "", "", "", "", paper]]
    return ["task", "metric", "row", "seed", "percent", "correct", "total", "paper_percent"], lines


def parse(argv):
    parser = OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="run folders, folders of them, or compact files"
    )
    tables = [name.removeprefix("table_") for name in read_paper() if name.startswith("table_")]
    parser.add_argument("--table", required=True, choices=tables, help="of the paper")
    parser.add_argument(
        "--format",
        choices=("md", "tex", "csv", "html"),
        default="md",
        help="md, html: everything; tex: the tables; csv: a line a cell and seed (default: md)",
    )
    parser.add_argument("--output", type=Path, help="file to write to (default: the screen)")
    parser.add_argument(
        "--figures", type=Path, metavar="FOLDER", help="also write the figures there, as PNG and SVG"
    )
    parser.add_argument(
        "--note",
        type=Path,
        metavar="FILE",
        help=(
            "whose lines stand first under 'What was run': what runs do not know, "
            "such as an encoder's full name"
        ),
    )
    parser.add_argument(
        "--compact",
        type=Path,
        metavar="FILE",
        help="also write the runs there without weights, for a later RUNS",
    )
    args = parser.parse_args(argv)
    for path in args.runs:
        if not path.exists():
            parser.error(f"argument RUNS: {path}: no such file or folder")
    return args


def make(args):
    """Read, build, write."""
    records, places, unfinished = read_runs(args.runs)
    check_comparable(records)
    if args.compact:
        write_compact(records, args.compact)
    paper = read_paper()
    table = paper[f"table_{args.table}"]
    columns = dict.fromkeys(name for name, _ in table["columns"])
    others = Counter(record["task"] for record in records if record["task"] not in columns)
    records = [record for record in records if record["task"] in columns]
    if not records:
        raise InputError(
            f"--table {args.table}: runs of {', '.join(others)} found, expected some of {', '.join(columns)}"
        )
    found = Found(records)
    from lib import formats
    if args.figures or args.format == "html":
        from lib.figures import draw_all
        drawings = draw_all(found, table, args.table, args.figures)
    if args.format == "csv":
        text = formats.to_csv(*cell_lines(found, table))
    else:
        left_out = [f"{count} runs of {task}, which has no column" for task, count in others.items()]
        left_out += [f"{folder.name}, unfinished" for folder in unfinished]
        notes = args.note.read_text(encoding="utf-8").splitlines() if args.note else []
        page = build(found, table, args.table, left_out, paper["source"], notes)
        text = (
            {"md": formats.to_markdown, "tex": formats.to_tex}[args.format](page)
            if args.format != "html"
            else formats.to_html(page, drawings, records, places, args.output)
        )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


def main(argv=None):
    try:
        make(parse(argv))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(
            f"error: {error}; tables and figures need: pip install -r scripts/requirements.txt",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

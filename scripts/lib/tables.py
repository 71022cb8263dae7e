"""The tables of a page, each (header, lines of cells)."""
import statistics

import numpy as np

from lib.comparisons import COLUMNS, MISSING, SAME
from lib.formats import percent, probability, span
from lib.rows import BASELINE_ROWS, MPDISTIL, OF_THE_PAPER, ROWS, label_of
from lib.statistics import chance_of_wins, count_wins, expected_best

from bookkeeping.run_folder import LIMITS, limits_of
from metrics import METRIC_NAMES

# the columns of a table that are of another one's task, and of its second dev set
TASK_OF_COLUMN = {"MNLI-MM": "MNLI"}
SPLITS = {"acc mismatched": "dev_mismatched"}
# a column's word for a figure of result.json, of which a task has one; others are called the same there
METRICS = {"acc": ("accuracy",), "acc matched": ("accuracy",), "acc mismatched": ("accuracy",),
           "f1": ("f1", "f1_binary")}
FLOOR = "Majority class"  # or the mean, of a regression
CURVES = ("student", "kd", "kd_200", "kd_quiz", "uniform", "no_curriculum_col", *MPDISTIL,
          "mpdistil_learning", *BASELINE_ROWS)


def task_of(column):
    """The task that a column is of."""
    return TASK_OF_COLUMN.get(column, column)


def figure_of(scores, metric):
    """The figure of a column in the scores of a split; None without it."""
    return next((scores[key] for key in METRICS.get(metric, (metric,)) if scores and key in scores), None)


def figures_of(found, column, metric, name):
    """{seed: the figure of a column} of a row."""
    split = SPLITS.get(metric, "dev")
    figures = {seed: figure_of(figures["splits"].get(split), metric)
               for seed, figures in found.cell(task_of(column), name).items()}
    return {seed: value for seed, value in figures.items() if value is not None}


def columns_of(found):
    """A table of all that the runs have, without the paper: a column a task and metric."""
    columns = []
    for task in found.tasks:
        facts = found.facts[task]
        names = dict.fromkeys([*["accuracy"] * found.counts(task), *facts.metrics])
        columns += [[task, metric] for metric in names]
        if any("dev_mismatched" in figures["splits"] for name in ROWS
               for figures in found.cell(task, name).values()):
            columns.append([task, "acc mismatched"])
    return {"title": ", ".join(found.tasks), "columns": columns, "values": {}}


def rows_of(found):
    """The rows of a page: the paper's, and the others that any of its runs has."""
    return [name for name in ROWS if name in OF_THE_PAPER or any(found.cell(task, name)
                                                                 for task in found.tasks)]


def same_mark(found, task, name):
    """What a cell adds of a row that is another one's computation."""
    return f" ({SAME})" if found.same_run(task, name) != name else ""


def main_table(found, table):
    """A row of the paper a line, ours beside the paper's number, column by column of those that have runs
    (missing_texts names the others)."""
    columns = [(position, column, metric) for position, (column, metric) in enumerate(table["columns"])
               if task_of(column) in found.tasks]
    seeds = {column: {len(found.cell(task_of(column), name)) for name in ROWS} - {0}
             for _, column, _ in columns}
    header, lines = ["row"], []
    for _, column, metric in columns:
        all_have = f" (n = {max(seeds[column])})" if len(seeds[column]) == 1 else ""
        # the paper's word for it, or ours
        said = metric if table["values"] else METRIC_NAMES.get(metric, metric)
        header += [f"{column} {said}{all_have}", *["paper"] * bool(table["values"])]
    for name in rows_of(found):
        line = [label_of(name)]
        for position, column, metric in columns:
            values, ours = list(figures_of(found, column, metric, name).values()), MISSING
            if values:
                count = f" (n = {len(values)})" if len(seeds[column]) > 1 else ""
                ours = percent(values) + count + same_mark(found, task_of(column), name)
            line.append(ours)
            if table["values"]:
                paper = table["values"].get(name)
                line.append(f"{paper[position]:.1f}" if paper else "-")
        lines.append(line)
    return header, [*lines, floor_line(found, table, columns)]


def floor_line(found, table, columns):
    """What the best constant answer would give."""
    classes = {found.counts(task) for task in found.tasks}
    line = [{True: FLOOR, False: "Mean of the labels"}[classes.pop()] if len(classes) == 1
            else f"{FLOOR}, mean of the labels"]
    for _, column, metric in columns:
        given = figure_of(found.floor(task_of(column), SPLITS.get(metric, "dev")), metric)
        line += [MISSING if given is None else f"{100 * given:.1f}", *["-"] * bool(table["values"])]
    return line


def cell_lines(found, table):
    """The main table's cells, a line a seed."""
    lines = []
    for name in rows_of(found):
        for position, (column, metric) in enumerate(table["columns"]):
            task = task_of(column)
            paper = table["values"].get(name, {position: ""})[position]
            cell, same, split = found.cell(task, name), found.same_run(task, name), SPLITS.get(metric, "dev")
            same = same if same != name else ""
            ours = []
            for seed, value in figures_of(found, column, metric, name).items():
                scores, flags = cell[seed]["splits"][split], cell[seed]["record"]["flags"]
                ours.append([seed, round(100 * value, 4), scores.get("correct", ""), scores["total"], paper,
                             same, *(flags.get(limit) or "" for limit in LIMITS)])
            lines += [[column, metric, name, *cells]
                      for cells in ours or [["", "", "", "", paper, *[""] * (1 + len(LIMITS))]]]
    header = ["task", "metric", "row", "seed", "percent", "correct", "total", "paper_percent", "same_run_as",
              *LIMITS]
    return header, lines


def limit_text(found):
    """Which runs do not use all of train and quiz, of their own task and of others in its curriculum; None
    without any."""
    parts = {}
    for record in found.records:
        for text in limits_of(record["data"]):
            own = text.startswith(f"{record['task']}/")
            parts[text if own else f"{text} in the curriculum of {record['task']}"] = True
    return f"Not all data: {'; '.join(parts)}." if parts else None


def count_table(found):
    """Correct answers, k of n, by seed, of the tasks that have right and wrong ones; None without any."""
    tasks = [task for task in found.tasks if found.counts(task)]
    header = ["row"] + [f"{task}, of {found.floor(task)['total']}" for task in tasks]

    def counts(task, name):
        given = ", ".join(str(figures["correct"]) for figures in found.cell(task, name).values())
        return given + same_mark(found, task, name) if given else MISSING

    lines = [[label_of(name), *(counts(task, name) for task in tasks)] for name in rows_of(found)]
    return (header, lines) if tasks else None


# --- differences --------------------------------------------------------------------------------------------

def difference_table(task, rows):
    """rows: the comparisons of rows."""
    return [f"{task}: row", "minus", *COLUMNS], [
        comparison.cells() for (of_task, _, _), comparison in rows.items() if of_task == task]


def factor_table(factors):
    """factors: the comparisons of factors."""
    return (["choice of reward or loss, mean over the other", *COLUMNS],
            [comparison.cells() for comparison in factors.values()])


# --- selection ----------------------------------------------------------------------------------------------

def few_looks(found, task):
    """Looks that phase 2 has."""
    return next(record["flags"]["epochs"] for record in found.records if record["task"] == task)


def selection_effect(found, task, name):
    """{figure: mean over seeds}, shares of dev, and looks; None without the row."""
    cell = found.cell(task, name)
    if not cell:
        return None
    shares, level = found.looks(task, name), found.level(task)
    kept = np.mean([figures[level] for figures in cell.values()])
    mean = np.mean([share.mean() for share in shares])
    few = np.mean([expected_best(share, few_looks(found, task)) for share in shares])
    return {"looks": [len(share) for share in shares], "kept": kept, "mean": mean,
            "last": np.mean([share[-1] for share in shares]), "few": few, "over_mean": kept - mean,
            "over_few": kept - few}


def selection_table(found, task):
    """What keeping the best of many looks at dev is worth, in percent, the mean over seeds."""
    few = few_looks(found, task)
    header = [f"{task}: row", "looks", "kept", "mean of all looks", "last look",
              f"expected best of {few} looks", "kept - mean", f"kept - best of {few}"]
    lines = []
    for name in CURVES:
        effect = selection_effect(found, task, name)
        if effect:
            figures = [effect[key] for key in ("kept", "mean", "last", "few", "over_mean", "over_few")]
            figures = [f"{100 * value:.1f}" for value in figures]
            lines.append([label_of(name), span(effect["looks"]), *figures])
    return header, lines


# --- the policy ---------------------------------------------------------------------------------------------

def same_picks(found, task, name):
    """Share of the steps in which the policy picks what the uniform run of the same seed, whose draws are the
    same, picks; None without both."""
    seeds = found.seeds(task, name, "uniform")
    if not seeds:
        return None
    picks, chance = ("".join(sign for seed in seeds for sign in cell[seed]["record"]["actions"])
                     for cell in (found.cell(task, name), found.cell(task, "uniform")))
    same = [one == other for one, other in zip(picks, chance, strict=True)]
    return sum(same) / len(same)


def policy_table(found):
    """Entropy and reward at the beginning and the end, the policy's and those of chance."""
    header = ["row", "episodes", "entropy, first fifth", "last fifth", "reward, first fifth", "last fifth",
              "same picks as uniform, %"]
    lines = []
    for task in found.tasks:
        for name in (*MPDISTIL, "uniform", "mpdistil_learning"):
            records = [figures["record"] for figures in found.cell(task, name).values()]
            if not records:
                continue
            of = ", reward of improvement" * ROWS[name].learning
            line = [f"{task}: {label_of(name)}{of}", span([len(record["rewards"]) for record in records])]
            for key in ("entropies", "rewards"):
                fifth = max(1, len(records[0][key]) // 5)
                for part in (slice(None, fifth), slice(-fifth, None)):
                    mean = statistics.mean(value for record in records for value in record[key][part])
                    line.append(f"{mean:.4f}")
            same = same_picks(found, task, name)
            lines.append([*line, MISSING if same is None else f"{100 * same:.1f}"])
    return header, lines


# --- wins over the teacher ----------------------------------------------------------------------------------

def wins_of(found, tasks, names):
    """(above, equal, below, chance of so many above) of the best of some rows against the teacher."""
    seeds = {task: found.seeds(task, "teacher", *names) for task in tasks}
    teacher, *students = ([found.scores(task, [name], seeds[task]).sum(0) for task in tasks]
                          for name in ("teacher", *names))
    sums = [[answers.sum() for answers in row] for row in (teacher, *students)]
    above = count_wins(sums[0], sums[1:])
    equal = sum(max(row[number] for row in sums[1:]) == right for number, right in enumerate(sums[0]))
    return above, equal, len(tasks) - above - equal, chance_of_wins(teacher, students)


def paper_wins(table, names):
    """Cells of the same for the paper's numbers. Of two equals the teacher is best once in two, of five
    that are as different from each other once in five."""
    from scipy.stats import binom
    if not table["values"]:
        return ["-", "", "", ""]
    columns = [number for number, (_, metric) in enumerate(table["columns"])
               if metric in ("acc", "acc matched", "pearson")]
    pairs = [(max(table["values"][name][column] for name in names), table["values"]["teacher"][column])
             for column in columns]
    above, below = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    shares = [1 / 2] if len(names) == 1 else [1 / 2, len(names) / (len(names) + 1)]
    chances = [probability(binom.sf(above - 1, above + below, share)) for share in shares]
    return [str(above), str(len(pairs) - above - below), str(below), " to ".join(chances)]


def wins_table(found, table, rows):
    """(header, lines, {student: (tasks above, tasks, chance)}): in how many tasks a student beats its
    teacher, ours and the paper's. rows: the comparisons of rows, which say where the tests carry it. A
    student that is another one's computation in every task stands there without figures, and is not dealt
    out with the others."""
    counts = ["above", "equal", "below", "chance of so many above"]
    header = ["student", "tasks", *counts, "shown above", *(f"paper: {name}" if name == "above" else name
                                                            for name in counts)]
    tasks_of = {name: [task for task in found.tasks if found.seeds(task, "teacher", name)]
                for name in MPDISTIL}
    repeated = {name for name, tasks in tasks_of.items()
                if tasks and all(found.same_run(task, name) != name for task in tasks)}
    lines, ours = [], {}
    for name in MPDISTIL:
        tasks, cells = tasks_of[name], [MISSING, "", "", "", ""]
        if name in repeated:
            cells = [SAME, "", "", "", ""]
        elif tasks:
            above, equal, below, chance = wins_of(found, tasks, [name])
            shown = sum(rows[task, name, "teacher"].verdict == "higher" for task in tasks)
            cells = [*map(str, (above, equal, below)), probability(chance), str(shown)]
            ours[label_of(name)] = above, len(tasks), chance
        lines.append([label_of(name), str(len(tasks)), *cells, *paper_wins(table, [name])])
    tasks = [task for task in found.tasks if found.seeds(task, "teacher", *MPDISTIL)]
    cells = [MISSING, "", "", "", ""]
    if tasks:
        students = [name for name in MPDISTIL if name not in repeated]
        above, equal, below, chance = wins_of(found, tasks, students)
        cells = [*map(str, (above, equal, below)), probability(chance), "-"]
        ours["best of the four"] = above, len(tasks), chance
    lines.append(["best of the four", str(len(tasks)), *cells, *paper_wins(table, MPDISTIL)])
    return header, lines, ours

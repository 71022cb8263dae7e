"""Figures of a table's runs: reward and dev score over episodes against a uniform policy, what the policy
picked, and the table as dots.

Called by make_tables.py. Each figure is drawn as SVG, whose bytes depend on the runs and matplotlib's
version alone, and, where a folder is given, written as SVG and PNG. Needs matplotlib
(scripts/requirements.txt).
"""
import io
from collections import Counter

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lib.rows import MPDISTIL, ROWS, label_of
from lib.run_records import SIGNS
from lib.statistics import mean_interval

from metrics import METRIC_NAMES

SETTINGS = {"svg.hashsalt": "mpdistil", "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False,
            "axes.spines.right": False, "axes.titlesize": 9, "figure.dpi": 100, "font.family": "DejaVu Sans"}


def curves(found, task, name, key):
    """(seeds, episodes) of the runs of a row."""
    if key == "rewards":
        rows = [figures["record"][key] for figures in found.cell(task, name).values()]
    else:
        rows = [100 * looks for looks in found.looks(task, name)]
    return np.array([row[:min(map(len, rows))] for row in rows])


def level_label(found, task):
    """What an axis of scores is of."""
    return f"dev {METRIC_NAMES[found.level(task)]}, %"


def draw_episodes(found, task):
    """Reward (top) and the score on dev (bottom) over the episodes of each MPDistil row, thin lines a seed,
    thick their mean; dashed: uniform. The uniform runs earned the binary reward of the collaborative
    meta-teacher, so that their reward stands in that column alone."""
    names = [name for name in MPDISTIL if found.cell(task, name)]
    uniform = found.cell(task, "uniform")
    figure = Figure(figsize=(2.7 * len(names) + 1, 5), layout="constrained")
    grid = figure.subplots(2, len(names), sharex=True, squeeze=False)
    for column, name in enumerate(names):
        for axes, key in zip(grid[:, column], ("rewards", "looks")):
            values = curves(found, task, name, key)
            episodes = np.arange(1, values.shape[1] + 1)
            axes.plot(episodes, values.T, color="0.75", linewidth=0.6,
                      label=["policy, a seed"] + ["_"] * (len(values) - 1))
            axes.plot(episodes, values.mean(0), color="black", linewidth=1.6, label="policy, mean over seeds")
            if uniform and (key == "looks" or name == "mpdistil_col_binary"):
                other = curves(found, task, "uniform", key)
                axes.plot(np.arange(1, other.shape[1] + 1), other.mean(0), color="0.35", linewidth=1.6,
                          linestyle="--", label="uniform, mean over seeds")
            low, high = axes.get_ylim()
            if high - low < 0.02:  # what does not move is to look so
                axes.set_ylim((low + high) / 2 - 0.01, (low + high) / 2 + 0.01)
            axes.ticklabel_format(useOffset=False)
        grid[1][column].set_xlabel("episode")
        grid[0][column].set_title(label_of(name))
    grid[0][0].set_ylabel("reward of an episode")
    grid[1][0].set_ylabel(level_label(found, task))
    for other in grid[1][1:]:
        other.sharey(grid[1][0])
    figure.legend(*grid[1][0].get_legend_handles_labels(), loc="outside lower center", frameon=False,
                  ncols=min(2, len(names)))
    figure.suptitle(f"{task}, seeds: {len(found.cell(task, names[0]))}")
    return figure


def draw_curriculum(found, task):
    """Share of an episode's steps that went to each task, the mean over seeds: episodes x tasks."""
    names = [name for name in (*MPDISTIL, "uniform") if found.cell(task, name)]
    figure = Figure(figsize=(10, 1.5 * len(names) + 0.6), layout="constrained")
    grid = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    records = {name: [figures["record"] for figures in found.cell(task, name).values()] for name in names}
    signs = SIGNS[:len(records[names[0]][0]["flags"]["tasks"])]

    def share_of(record):
        """(tasks, episodes)"""
        return [[picks.count(sign) / len(picks) for picks in record["actions"]] for sign in signs]

    shares = {name: np.mean([share_of(record) for record in of_row], 0) for name, of_row in records.items()}
    darkest = max(share.max() for share in shares.values())
    for axes, (name, share) in zip(grid, shares.items()):
        image = axes.imshow(share, aspect="auto", cmap="Greys", vmin=0, vmax=darkest, interpolation="nearest",
                            extent=(0.5, share.shape[1] + 0.5, share.shape[0] - 0.5, -0.5))
        tasks = records[name][0]["flags"]["tasks"]
        axes.set_yticks(range(len(tasks)),
                        [f"{picked} {mean:.0%}" for picked, mean in zip(tasks, share.mean(1))])
        axes.set_title(f"{label_of(name)}, seeds: {len(records[name])}", loc="left")
    grid[-1].set_xlabel("episode")
    figure.colorbar(image, ax=list(grid), label="share of the episode's steps", shrink=0.6)
    figure.suptitle(f"{task}: tasks that were picked, mean over seeds (beside each task: over all episodes)")
    return figure


def draw_table(found, table):
    """A panel a task, a line a row: mean over seeds with its 95% interval (statistics.mean_interval; a
    correlation has none), each seed as a small dot (equal ones below each other), the paper's number, of its
    own encoder, as a cross, the majority class as a vertical line."""
    tasks, names = found.tasks, [name for name in ROWS if any(found.cell(task, name) for task in found.tasks)]
    figure = Figure(figsize=(3.1 * len(tasks) + 2.6, 0.32 * len(names) + 1.6), layout="constrained")
    columns = {}
    for number, (name, _) in enumerate(table["columns"]):
        columns.setdefault(name, number)
    for axes, task in zip(figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0], tasks):
        for place, name in enumerate(names):
            cell = found.cell(task, name)
            if cell:
                level = [figures[found.level(task)] for figures in cell.values()]
                interval = [np.mean(level)] * 3
                if found.level(task) == "accuracy":
                    interval = mean_interval(found.scores(task, [name], list(cell)), ends=(0.0, 1.0))
                mean, low, high = (100 * value for value in interval)
                axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color="black", marker="o",
                              markersize=5, capsize=2, linewidth=1,
                              label="mean, 95% interval" if place == 0 else None)
                seeds = Counter(level)
                for number, (value, count) in enumerate(seeds.items()):
                    axes.scatter([100 * value] * count, [place + 0.2 + 0.1 * below for below in range(count)],
                                 s=7, color="0.55", label="a seed" if place == number == 0 else None)
            if task in columns and name in table["values"]:
                axes.scatter(table["values"][name][columns[task]], place, marker="x", s=36, color="0.25",
                             label="paper" if place == 0 else None)
        if found.level(task) == "accuracy":
            axes.axvline(100 * found.floor(task)["accuracy"], color="0.6", linestyle=":",
                         label="majority class")
        axes.set_title(task)
        axes.set_xlabel(level_label(found, task))
        axes.set_yticks(range(len(names)), [label_of(name) for name in names])
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    axes.invert_yaxis()
    handles = {label: handle for axes in figure.axes
               for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False,
                  fontsize=8)
    return figure


def draw_all(found, table, table_name, folder):
    """[(caption, svg text)] of all figures that the runs have; also written to `folder`, if one is given."""
    drawings = []
    with matplotlib.rc_context(SETTINGS):
        wanted = [(f"table_{table_name}", draw_table, table)]
        for task in found.tasks:
            if any(found.cell(task, name) for name in MPDISTIL):
                wanted += [(f"episodes_{task}", draw_episodes, task),
                           (f"curriculum_{task}", draw_curriculum, task)]
        for name, draw, what in wanted:
            figure, text = draw(found, what), io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None})
            drawings.append((f"{name}: {' '.join(draw.__doc__.split())}", text.getvalue()))
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}.svg").write_text(text.getvalue(), encoding="utf-8")
                figure.savefig(folder / f"{name}.png", dpi=130, metadata={"Software": None})
    return drawings

"""A page about each run: its rows with intervals, learning curves, reward and curriculum over the episodes,
confusion of teacher and student, and the dev examples on which they differ.

    python scripts/report.py RUN_FOLDER [RUN_FOLDER ...]       writes RUN_FOLDER/report.html

One file a run that needs nothing else, and no network. Texts are read from the run's --data_dir; where that
is gone the page says so. Needs scripts/requirements.txt (matplotlib).
"""
import argparse
import io
import sys
from html import escape
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lib.commands import exit_code
from lib.run_records import read_lines
from lib.statistics import exact_interval

from arguments import OneLineParser, resolve_protocol, with_defaults
from bookkeeping.errors import InputError
from bookkeeping.files import read_json, read_record
from bookkeeping.run_folder import limits_of
from data_utils import read_task
from metrics import METRIC_NAMES, first_metric, floor_of, read_predictions
from tasks import find_task, protocol_task

SHOWN = 40  # examples on which teacher and student differ
WAY_OUT = "give the folder of a finished run"
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body{{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:1.5rem auto;padding:0 1rem;color:#111}}
h1{{font-size:1.5rem}}h2{{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #ccc}}
table{{border-collapse:collapse;font-size:14px}}.wide{{overflow-x:auto}}
th,td{{padding:.25rem .7rem;text-align:left;border-bottom:1px solid #ddd}}
th,td{{vertical-align:top;white-space:nowrap}}
td.text{{white-space:normal;min-width:14rem;overflow-wrap:anywhere}}th{{border-bottom:2px solid #333}}
figure{{margin:1rem 0;overflow-x:auto}}
figure svg{{width:100%;min-width:32rem;height:auto}}
figcaption,.small{{color:#444;font-size:13px}}
code{{overflow-wrap:anywhere}}@media print{{h2{{break-after:avoid}}figure,tr{{break-inside:avoid}}}}
</style></head><body>
{body}
</body></html>
"""


# --- reading ------------------------------------------------------------------------------------------------

def read_run(folder):
    """{"result", "args", "metrics", "trajectories"} of a finished run."""
    if not (folder / "result.json").is_file():
        raise InputError(f"{folder}: no result.json found; {WAY_OUT}")
    return {"folder": folder, "result": read_record(folder / "result.json", WAY_OUT),
            "args": with_defaults(read_json(folder / "args.json", WAY_OUT)),
            "metrics": read_lines(folder / "metrics.jsonl"),
            "trajectories": read_lines(folder / "trajectories.jsonl")}


def read_examples(run):
    """(the Task as the run read it, {idx: Example of dev}, None), or without examples and with the reason."""
    settings = argparse.Namespace(**run["args"])
    data_dir = run["args"]["data_dir"]
    task = protocol_task(find_task(run["result"]["task"], data_dir=data_dir), resolve_protocol(settings))
    try:
        dev = read_task(task, data_dir, ("train", "dev"))["dev"]
    except (InputError, OSError) as error:
        return task, {}, str(error)
    return task, {example.idx: example for example in dev}, None


# --- parts of the page --------------------------------------------------------------------------------------

def table(header, rows, text_columns=()):
    """An HTML table; everything in it is escaped."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = ["".join(f'<td{" class=text" if place in text_columns else ""}>{escape(str(cell))}</td>'
                     for place, cell in enumerate(row)) for row in rows]
    return (f'<div class="wide"><table><tr>{head}</tr>' + "".join(f"<tr>{line}</tr>" for line in lines)
            + "</table></div>")


def percent(value):
    return f"{100 * value:.1f}"


def rows_table(run, task):
    """Scores of each row, with the interval of accuracy."""
    lines, names = [], [name for name in METRIC_NAMES if name in task.metrics and name != "accuracy"]
    for name, row in run["result"]["rows"].items():
        dev = row["dev"]
        if dev is None:
            lines.append([name, "not scored: dev has no labels"])
            continue
        counts, interval = [f"{dev['total']} examples", ""], ""
        if "correct" in dev:
            low, high = exact_interval(dev["correct"], dev["total"])
            counts = [f"{dev['correct']}/{dev['total']}", percent(dev["accuracy"])]
            interval = f"{percent(low)} to {percent(high)}"
        when = f"epoch {dev['epoch']}" if "epoch" in dev else f"episode {dev['episode']}"
        lines.append([name, *counts, interval, *(percent(dev[metric]) for metric in names), when])
    if run["result"]["dev_labels"]:
        floor = floor_of(task, run["result"]["dev_labels"])
        said = percent(floor["accuracy"]) if "accuracy" in floor else ""
        lines.append(["most frequent class" if said else "mean of the labels", "", said, "",
                      *(percent(floor[metric]) for metric in names), ""])
    header = ["row", "dev", "accuracy, %", "95% interval", *(f"{METRIC_NAMES[name]}, %" for name in names),
              "kept"]
    return table(header, lines)


def figure(draw, caption, width=9, height=3):
    """A figure as inline SVG."""
    import matplotlib  # here: it may not be installed
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from lib.figures import SETTINGS
    with matplotlib.rc_context(SETTINGS):
        canvas, text = Figure(figsize=(width, height), layout="constrained"), io.StringIO()
        draw(canvas)
        for axes in canvas.axes:
            if axes.get_xlabel() in ("epoch", "episode"):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    picture = text.getvalue()
    return f"<figure>{picture[picture.index('<svg'):]}<figcaption>{escape(caption)}</figcaption></figure>"


def level_of(scores):
    """(name, value in percent) of a line's first score on dev."""
    name = first_metric(scores)
    return METRIC_NAMES[name], 100 * scores[name]


def learning_curves(run):
    """Loss and score of the phases before phase 4, an axis pair a phase."""
    phases = list(dict.fromkeys(line["phase"] for line in run["metrics"] if "epoch" in line))

    def draw(canvas):
        grid = canvas.subplots(2, len(phases), squeeze=False, sharex="col")
        for (top, bottom), phase in zip(grid.T, phases):
            lines = [line for line in run["metrics"] if line["phase"] == phase]
            epochs = [line["epoch"] for line in lines]
            top.plot(epochs, [line["loss"] for line in lines], color="black", marker=".")
            top.set_title(phase)
            top.ticklabel_format(axis="y", useOffset=False)
            scored = [(line["epoch"], *level_of(line["scores"]["dev"])) for line in lines
                      if "dev" in line["scores"]]
            if scored:
                numbers, values = [n for n, *_ in scored], [value for *_, value in scored]
                bottom.plot(numbers, values, color="black", marker=".")
                kept = [line["epoch"] for line in lines if line["best"]][-1:]
                for number in kept:
                    bottom.axvline(number, color="0.6", linestyle=":")
            bottom.set_xlabel("epoch")
        grid[0][0].set_ylabel("loss")
        grid[1][0].set_ylabel("dev, %")

    return figure(draw, "Loss (top) and score on dev (bottom) by epoch; dotted: the epoch that is kept. An"
                        " epoch of kd_200 is as many steps as an episode has.", 2.2 * len(phases) + 1, 3.6)


def episode_curves(run):
    """Reward and score over the episodes."""
    lines = [line for line in run["metrics"] if "episode" in line]

    def draw(canvas):
        numbers = [line["episode"] for line in lines]
        left, right = canvas.subplots(1, 2)
        left.plot(numbers, [line["reward"] for line in lines], color="black", linewidth=1)
        left.set(xlabel="episode", ylabel=f"reward ({run['result']['reward']})")
        scored = [(line["episode"], *level_of(line["scores"]["dev"])) for line in lines
                  if "dev" in line["scores"]]
        if scored:
            right.plot([n for n, *_ in scored], [value for *_, value in scored], color="black", linewidth=1)
            right.set(xlabel="episode", ylabel=f"dev {scored[0][1]}, %")

    change = run["result"]["protocol_choices"].get("reward_of") == "improvement"
    what = "What the update of each step adds to the reward" if change else "The reward of each step"
    return figure(draw, f"{what}, summed over an episode, and the score on dev after it.")


def curriculum(run):
    """Share of an episode's steps that each task got."""
    tasks = run["args"]["tasks"]
    shares = np.array([[line["actions"].count(task) / len(line["actions"]) for line in run["trajectories"]]
                       for task in tasks])

    def draw(canvas):
        axes = canvas.subplots()
        image = axes.imshow(shares, aspect="auto", cmap="Greys", vmin=0, interpolation="nearest",
                            extent=(0.5, shares.shape[1] + 0.5, len(tasks) - 0.5, -0.5))
        axes.set_yticks(range(len(tasks)), [f"{task} {100 * mean:.0f}%" for task, mean in
                                            zip(tasks, shares.mean(1))])
        axes.set_xlabel("episode")
        canvas.colorbar(image, label="share of steps")

    return figure(draw, "Tasks that trained the student in phase 4; beside each its share of all steps.", 9,
                  0.3 * len(tasks) + 1.2)


def confusion(task, answers, labels):
    """Given label against answer of teacher and student; of numbers a scatter."""
    sides = list(answers)
    if not task.rules.labels.counts:
        def draw(canvas):
            for axes, side in zip(canvas.subplots(1, len(sides), sharex=True, sharey=True), sides):
                axes.scatter(labels, answers[side], s=6, color="black", alpha=0.4)
                axes.plot(task.label_range, task.label_range, color="0.6", linestyle=":")
                axes.set(title=side, xlabel="label", ylabel="answer")
        return figure(draw, "Answers on dev against the labels; dotted: equal.", 8, 3.6)
    names = [str(answer) for answer in task.answers]

    def draw(canvas):
        for axes, side in zip(canvas.subplots(1, len(sides), squeeze=False)[0], sides):
            counts = np.zeros((len(names), len(names)), dtype=int)
            np.add.at(counts, (labels, answers[side]), 1)
            axes.imshow(counts, cmap="Greys", vmin=0, vmax=max(1, counts.max() * 1.6))
            for row, column in np.ndindex(counts.shape):
                axes.text(column, row, counts[row, column], ha="center", va="center")
            axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
            axes.set_yticks(range(len(names)), names)
            axes.set(title=side, xlabel="answer", ylabel="label")

    return figure(draw, "Labels on dev against answers, in examples.", 3.4 * len(sides), 3.2)


def differing(task, answers, examples):
    """The dev examples on which teacher and student differ, with their texts."""
    (first, one), (second, other) = answers.items()
    rules = task.rules.labels
    idx = list(examples)
    scores = [rules.example_scores(side, [examples[number].label for number in idx]) for side in (one, other)]
    gap = np.abs(scores[0] - scores[1]) if not rules.counts else np.array(one) != np.array(other)
    order = [place for place in np.argsort(-gap.astype(float), kind="stable") if gap[place]]

    def spell(answer):
        return f"{answer:.2f}" if not rules.counts else str(task.answers[answer])

    rows = [[idx[place], spell(examples[idx[place]].label), spell(one[place]), spell(other[place]),
             " | ".join(text for pair in examples[idx[place]].pairs for text in pair if text)]
            for place in order[:SHOWN]]
    what = ("answers differ" if rules.counts else "squared errors differ, the largest differences first")
    shown = f", the first {SHOWN}" if len(order) > SHOWN else ""
    return (f'<p class="small">{len(order)} of {len(idx)} dev examples whose {what}{shown}. Texts as the'
            " encoder reads them.</p>" + table(["idx", "label", first, second, "texts"], rows, (4,)))


def what_it_was(run):
    """Settings, data, machine."""
    result, args = run["result"], run["args"]
    environment = read_json(run["folder"] / "environment.json", WAY_OUT)
    lines = [["command", " ".join(["python", *environment["command"]])],
             ["protocol", " ".join([result["protocol"], *result["set"]])],
             ["encoder", f"{result['teacher_model']} (sha256 {result['data']['teacher_model'][:16]})"],
             ["student", f"first {result['nlayers']} layers of {result['student_model']}"],
             ["rates", f"teacher {args['teacher_learning_rate']:g}, student {args['learning_rate']:g}, policy"
                       f" {args['policy_learning_rate']:g}"],
             *([name, f"{split['examples']} examples, {split['truncated']} truncated, sha256"
                f" {split['sha256'][:16]}"]
               for name, split in result["data"].items() if isinstance(split, dict)),
             *(["not all data", text] for text in limits_of(result["data"])),
             ["seconds", ", ".join(f"{name} {seconds:.0f}" for name, seconds in result["seconds"].items())],
             ["machine", f"{environment['cpu']}, GPU {environment['gpu']}, torch {environment['torch']},"
                         f" transformers {environment['transformers']}"],
             ["commit", f"{environment['git_commit']}"
                        + (", files changed" if environment["git_changes"] else "")]]
    return table(["", ""], lines, (1,))


def build(run):
    """The page of a run, as text."""
    result = run["result"]
    task, examples, reason = read_examples(run)
    title = (f"{result['task']}: {result['protocol']}, loss {result['loss']}, reward {result['reward']},"
             f" curriculum {result['curriculum']}, seed {result['seed']}")
    parts = [f"<h1>{escape(title)}</h1>",
             "<p>The epoch or episode that is kept is the best on dev, the split that is shown: levels are"
             " optimistic. An interval is of the accuracy on examples like these, not over seeds.</p>",
             "<h2>Rows</h2>", rows_table(run, task), "<h2>Learning curves</h2>", learning_curves(run)]
    if run["trajectories"]:
        parts += ["<h2>Phase 4</h2>", episode_curves(run), curriculum(run)]
    last = list(result["rows"])[-1]
    sides = [name for name in dict.fromkeys(("teacher", last)) if result["rows"].get(name, {}).get("dev")]
    if reason:
        parts.append(f"<p>No texts and no confusion: {escape(reason)}</p>")
    elif sides:
        files = {name: run["folder"] / "predictions" / name / "dev" / f"{task.name}.jsonl" for name in sides}
        answers = {name: read_predictions(path, task) for name, path in files.items()}
        if any(found.keys() != examples.keys() for found in answers.values()):
            parts.append("<p>No texts and no confusion: --data_dir now holds another dev split.</p>")
        else:
            ordered = {name: [found[idx] for idx in examples] for name, found in answers.items()}
            labels = [example.label for example in examples.values()]
            parts += ["<h2>Confusion</h2>", confusion(task, ordered, labels)]
            if len(sides) == 2:
                parts += [f"<h2>Where {escape(sides[0])} and {escape(sides[1])} differ</h2>",
                          differing(task, ordered, examples)]
    parts += ["<h2>What the run was</h2>", what_it_was(run)]
    return PAGE.format(title=escape(title), body="\n".join(parts))


def write(folders):
    for folder in folders:
        path = folder / "report.html"
        path.write_text(build(read_run(folder)), encoding="utf-8")
        print(path)


def main(argv=None):
    parser = OneLineParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    args = parser.parse_args(argv)
    if find_spec("matplotlib") is None:
        parser.error("matplotlib is not installed; pip install -r scripts/requirements.txt")
    return exit_code(write, args.runs)


if __name__ == "__main__":
    sys.exit(main())

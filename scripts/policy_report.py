"""What the curriculum policies of runs learnt, and whether it is more than chance moves them.

    python scripts/policy_report.py runs/cb/paper-col-real-policy-seed* --output policy.md --figure policy.svg
    python scripts/policy_report.py runs/cb --compact policy.jsonl
    python scripts/policy_report.py policy.jsonl --output policy.md

For each run, from its trajectories.jsonl: how far the logits moved, against replays of the run's own states
and advantages with random actions (p: share of replays that moved as far); what a step's position in the
episode and the action explain of the advantages; the probability of the main task over the episodes; every
task's mean advantage, the position's part taken off, with its 95% interval. Runs whose actions were not the
policy's (--curriculum uniform, main_task) have all but the first.
"""
import argparse
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

from lib.commands import exit_code, put
from lib.formats import probability

from arguments import COUNT, loss_name, with_defaults
from bookkeeping.errors import InputError
from bookkeeping.files import read_json, read_record

AGREES = 1e-3  # largest difference of a probability between a run and the replay of its own actions
KEYS = ("run", "task", "tasks", "seed", "curriculum", "choices", "rate", "steps", "p_main", "last",
        "position", "action", "by_task", "moved", "dev")


def analyse(folder, replays):
    """The record of a finished run: a JSON object with KEYS. InputError where its trajectories lack what is
    needed."""
    # here: torch and the project's own loop take seconds, and a record needs neither
    from lib import policy_analysis as analysis
    from lib.run_records import read_lines
    way_out = f"give finished runs of main_superglue.py, or remove {folder}"
    result, args = read_record(folder / "result.json", way_out), read_json(folder / "args.json", way_out)
    args, lines = with_defaults(args), read_lines(folder / "trajectories.jsonl")
    tasks, main = args["tasks"], next(name for name in args["tasks"] if name.lower() == args["task"].lower())
    credited = np.array([[tasks.index(name) for name in line["credited"]] for line in lines])
    advantages = np.array([line["advantages"] for line in lines])
    left, position = analysis.without_position(advantages)
    action, shuffled = analysis.share_of_actions(left, credited)
    moved = None
    if args["curriculum"] == "policy":
        if "state" not in lines[0]:
            raise InputError(f"{folder}/trajectories.jsonl: no state found; older code made it, which did"
                             " not keep what a replay needs: run it again in another folder")
        found = analysis.replays_of([line["state"] for line in lines], advantages, len(tasks),
                                    analysis.settings_of(args), credited, replays, args["seed"])
        logged = np.array([line["probabilities"][0] for line in lines])
        away = float(np.abs(np.exp(found.pop("log_pis")[:-1]) - logged).max())
        if away > AGREES:
            raise InputError(f"{folder}: a replay of its own actions gives probabilities that differ from"
                             f" the logged ones by {away:.1e}, expected at most {AGREES:g}; the run was made"
                             " by code whose policy learns in another way")
        moved = {**found, "replays": replays, "away": away}
    place = tasks.index(main)
    row = result["rows"].get("mpdistil") or result["rows"]["no_curriculum"]
    choices = [args["protocol"], *args["set"], loss_name(Namespace(**args)), args["reward_function"]]
    return without_nan({
        "run": f"{folder.parent.name}/{folder.name}", "task": main, "tasks": tasks, "seed": args["seed"],
        "curriculum": args["curriculum"], "reward": args["reward_function"], "choices": choices,
        "rate": args["policy_learning_rate"], "steps": advantages.shape[1],
        "p_main": [round(float(np.mean([step[place] for step in line["probabilities"]])), 6)
                   for line in lines],
        "last": [round(float(value), 6) for value in np.mean(lines[-1]["probabilities"], axis=0)],
        "position": position, "action": [action, shuffled],
        "by_task": analysis.advantages_by_task(left, credited, tasks), "moved": moved,
        "dev": row["dev"] and {name: row["dev"][name] for name in ("correct", "total") if name in row["dev"]}
    })


def without_nan(value):
    """The same with None for nan, which JSON does not have."""
    if isinstance(value, dict):
        return {name: without_nan(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    return None if value != value else value


def read_records(path, replays):
    """Records of the finished runs with episodes in a folder, or of a file that --compact wrote."""
    if path.is_dir():
        from lib.run_records import find_runs
        folders = [folder for folder in find_runs(path)[0] if (folder / "trajectories.jsonl").stat().st_size]
        if not folders:
            print(f"left out: {path}: no finished run with episodes", file=sys.stderr)
        return [analyse(folder, replays) for folder in folders]
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(json.loads(line))
            assert all(key in records[-1] for key in KEYS)
        except (ValueError, TypeError, AssertionError):
            raise InputError(f"{path}:{number}: not the record of a run; expected what policy_report.py"
                             " --compact wrote") from None
    return records


# --- the page -----------------------------------------------------------------------------------------------

def share(value):
    return "-" if value is None else f"{100 * value:.1f}%"


def movement_table(records):
    yield ("| run | p(main): first, half, last | logits moved | replays with random actions: median"
           " (5 to 95%) | p | position explains | action explains of the rest (shuffled) |")
    yield "|---|---|---|---|---|---|---|"
    for record in records:
        p_main, moved = record["p_main"], record["moved"]
        at = " ".join(f"{p_main[place]:.3f}" for place in (0, len(p_main) // 2, -1))
        random = "- | - | -"
        if moved:
            middle, low, high = moved["random"]
            random = (f"{moved['moved']:.4f} | {middle:.4f} ({low:.4f} to {high:.4f}) |"
                      f" {probability(moved['p'])}")
        yield (f"| {record['run']} | {at} | {random} | {share(record['position'])} |"
               f" {share(record['action'][0])} ({share(record['action'][1])}) |")


def task_table(records):
    names = list(dict.fromkeys(name for record in records for name in record["tasks"]))
    yield f"| run | {' | '.join(names)} |"
    yield "|---|" + "---|" * len(names)
    for record in records:
        cells = []
        for name in names:
            found = record["by_task"].get(name)
            cells.append("-" if not found else f"{found[0]:+.4f} ({interval(found)}; {found[3]})")
        yield f"| {record['run']} | {' | '.join(cells)} |"


def group_table(records):
    """A group of runs that differ in their seed alone a line."""
    yield ("| runs | seeds | moved further than chance (p at most .05) | p(main): first, last (by seed) |"
           " likeliest task at the end, by seed | main task's mean advantage above 0, below |")
    yield "|---|---|---|---|---|---|"
    for name in dict.fromkeys(map(group_of, records)):
        group = [record for record in records if group_of(record) == name]
        moved = [record["moved"]["p"] for record in group if record["moved"]]
        further = "-"
        if moved:
            further = (f"{sum(p <= 0.05 for p in moved)} of {len(moved)}"
                       f" (p {', '.join(map(probability, moved))})")
        first, last = (np.mean([record["p_main"][place] for record in group]) for place in (0, -1))
        by_seed = ", ".join(f"{record['p_main'][-1]:.3f}" for record in group)
        likeliest = "-"
        if moved:
            likeliest = ", ".join(f"{record['tasks'][np.argmax(record['last'])]} {max(record['last']):.2f}"
                                  for record in group)
        of_main = [record["by_task"][record["task"]] for record in group]
        known = [found for found in of_main if found and found[1] is not None]
        yield (f"| {name} | {len(group)} | {further} | {first:.3f}, {last:.3f} ({by_seed}) | {likeliest} |"
               f" {sum(found[1] > 0 for found in known)}, {sum(found[2] < 0 for found in known)} of"
               f" {len(group)} |")


def interval(found):
    return "no interval" if found[1] is None else f"{found[1]:+.4f} to {found[2]:+.4f}"


def page(records):
    """The report, as markdown."""
    replays = {record["moved"]["replays"] for record in records if record["moved"]}
    return "\n".join([
        "What the policy learnt, a run a line. Logits moved: root mean square over tasks, centred. p: the"
        f" share of {'/'.join(map(str, sorted(replays))) or 'no'} replays of the run's own states and"
        " advantages with random actions that moved as far, the run among them.", "",
        *movement_table(records), "",
        "Runs that differ in the seed alone, a group a line. Above 0, below: runs in which the 95% interval"
        " of the main task's mean advantage (next table) is.", "", *group_table(records), "",
        "Mean advantage of each task, what the step's position explains taken off (95% interval over steps;"
        " number of steps).", "", *task_table(records), ""])


def draw(records, path):
    """p(main) over the episodes, and the tasks' mean advantages, a run a line or mark."""
    import matplotlib

    from lib.figures import SETTINGS
    with matplotlib.rc_context(SETTINGS):
        from matplotlib.figure import Figure
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        names = list(dict.fromkeys(name for record in records for name in record["tasks"]))
        groups = list(dict.fromkeys(group_of(record) for record in records))
        for number, record in enumerate(records):
            group = groups.index(group_of(record))
            style = {"color": str(0.7 * group / max(1, len(groups) - 1)), "linewidth": 1,
                     "linestyle": ("-", "--", ":", "-.")[group % 4]}
            first = group_of(record) not in map(group_of, records[:number])
            left.plot(np.arange(1, 1 + len(record["p_main"])), record["p_main"], **style,
                      label=group_of(record) if first else "_")
            for place, name in enumerate(names):
                found = record["by_task"].get(name)
                if found and found[1] is not None:
                    x = place + 0.6 * (number + 0.5) / len(records) - 0.3
                    right.errorbar([x], [found[0]], [[found[0] - found[1]], [found[2] - found[0]]], fmt=".",
                                   color=style["color"], elinewidth=0.6)
        left.axhline(1 / len(records[0]["tasks"]), color="0.8", linewidth=0.6)
        left.set(xlabel="episode", ylabel="p(main task)", ylim=(0, 1))
        left.legend(fontsize=7, frameon=False)
        right.axhline(0, color="0.8", linewidth=0.6)
        right.set(ylabel="mean advantage")
        right.set_xticks(range(len(names)), names, rotation=45, ha="right")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def group_of(record):
    """What runs of several seeds have in common, in words."""
    rate = f"rate {record['rate']:g}" if record["curriculum"] == "policy" else record["curriculum"]
    return ", ".join([record["task"], *record["choices"], rate])


# --- the command line ---------------------------------------------------------------------------------------

def report(args):
    records = [record for path in args.runs for record in read_records(path, args.replays)]
    if not records:
        raise InputError(f"{args.runs[0]}: no finished run with episodes found, expected one that was not"
                         " ended by --stop_after")
    if args.compact:
        args.compact.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    if args.figure:
        draw(records, args.figure)
    put(page(records), args.output)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                        help="folders of finished runs, or files that --compact wrote")
    parser.add_argument("--replays", type=COUNT, default=199,
                        help="with random actions (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the page there (markdown)")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw a figure (.svg or .png)")
    parser.add_argument("--compact", type=Path, metavar="FILE", help="keep the records there")
    args = parser.parse_args(argv)
    for path in args.runs:
        if not path.exists():
            parser.error(f"{path}: not found, expected the folder of a finished run, or a compact file")
    return exit_code(report, args)


if __name__ == "__main__":
    sys.exit(main())

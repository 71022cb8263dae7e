"""What the curriculum policies of runs learnt, and whether it is more than chance moves them.

    python scripts/policy_report.py runs/cb/paper-col-real-policy-seed* --output policy.md --figure policy.svg
    python scripts/policy_report.py runs/cb --compact policy.jsonl
    python scripts/policy_report.py policy.jsonl --output policy.md

For each run, from its trajectories.jsonl, beside what comes out of replays of the run's own states and
advantages in which the policy draws its actions anew, so that the advantages say nothing of them: how far the
logits moved, and the main task's above the others; what the action explains of the advantages besides the
step's position in the episode; what each task adds to the advantage. And the probability of the main task
over the episodes. Runs whose actions were not the policy's (--curriculum uniform) have no movement, and are
compared with other draws by chance; those of --curriculum main_task have p(main) alone.
"""
import argparse
import json
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np

from lib.commands import exit_code, put
from lib.formats import probability, span

from arguments import COUNT, loss_name, with_defaults
from bookkeeping.errors import InputError
from bookkeeping.files import read_json, read_record

AGREES = 1e-3  # largest difference of a probability between a run and the replay of its own actions
LEVEL = 0.05
KEYS = ("run", "task", "tasks", "seed", "curriculum", "choices", "rate", "settings", "steps", "p_main",
        "last", "position", "picks", "learnt", "replays", "dev")


def analyse(folder, replays):
    """The record of a finished run: a JSON object with KEYS. InputError where its trajectories lack what is
    needed."""
    # here: torch and the project's own loop take seconds, and a record needs neither
    from lib import policy_analysis as analysis
    from lib.run_records import NOT_A_SETTING, encoder_of, read_lines
    way_out = f"give finished runs of main_superglue.py, or remove {folder}"
    result, args = read_record(folder / "result.json", way_out), read_json(folder / "args.json", way_out)
    args, lines = with_defaults(args), read_lines(folder / "trajectories.jsonl")
    tasks, main = args["tasks"], next(name for name in args["tasks"] if name.lower() == args["task"].lower())
    place, of_policy = tasks.index(main), args["curriculum"] == "policy"
    credited = np.array([[tasks.index(name) for name in line["credited"]] for line in lines])
    advantages = np.array([line["advantages"] for line in lines])
    found = None
    if args["curriculum"] != "main_task":
        if of_policy and "state" not in lines[0]:
            raise InputError(f"{folder}/trajectories.jsonl: no state found; older code made it, which did"
                             " not keep what a replay needs: run it again in another folder")
        states = [line["state"] for line in lines] if of_policy else None
        found = analysis.learnt(states, advantages, len(tasks), analysis.settings_of(args), credited, place,
                                replays, args["seed"])
        logged = np.array([line["probabilities"][0] for line in lines])
        away = float(np.abs(np.exp(found.pop("log_pis")[:-1]) - logged).max())
        if away > AGREES:
            raise InputError(f"{folder}: a replay of its own actions gives probabilities that differ from"
                             f" the logged ones by {away:.1e}, expected at most {AGREES:g}; the run was made"
                             " by code whose policy learns in another way")
    row = result["rows"].get("mpdistil") or result["rows"]["no_curriculum"]
    choices = [args["protocol"], *args["set"], loss_name(Namespace(**args)), args["reward_function"]]
    return without_nan({
        "run": f"{folder.parent.name}/{folder.name}", "task": main, "tasks": tasks, "seed": args["seed"],
        "curriculum": args["curriculum"], "choices": choices, "rate": args["policy_learning_rate"],
        "settings": {**{name: value for name, value in sorted(args.items()) if name not in NOT_A_SETTING},
                     "encoder": encoder_of(result)},
        "steps": advantages.shape[1],
        "p_main": [round(float(np.mean([step[place] for step in line["probabilities"]])), 6)
                   for line in lines],
        "last": [round(float(value), 6) for value in np.mean(lines[-1]["probabilities"], axis=0)],
        "position": analysis.without_position(advantages)[1],
        "picks": np.bincount(credited.ravel(), minlength=len(tasks)).tolist(),
        "learnt": found, "replays": replays,
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


# --- runs that differ in their seed alone -------------------------------------------------------------------

def name_of(record):
    """What a run is, but for its seed, in words."""
    rate = f"rate {record['rate']:g}" if record["curriculum"] == "policy" else record["curriculum"]
    return ", ".join([record["task"], *record["choices"], rate])


def groups_of(records):
    """{name: records that differ in their seed alone}; the name says all in which groups differ. InputError
    where a seed stands twice in one."""
    groups = {}
    for record in records:
        key = name_of(record), json.dumps(record["settings"], sort_keys=True)
        groups.setdefault(key, []).append(record)
    named = {}
    for (name, _), group in groups.items():
        others = [there[0]["settings"] for (other, _), there in groups.items() if other == name]
        differ = [f"{key} {value}" for key, value in group[0]["settings"].items()
                  if any(other.get(key) != value for other in others)]
        seeds = [record["seed"] for record in group]
        if len(set(seeds)) < len(seeds):
            twice = next(record for record in group if seeds.count(record["seed"]) > 1)
            raise InputError(f"{twice['run']}: seed {twice['seed']} of these flags found twice; give each run"
                             " once")
        named[", ".join([name, *differ])] = group
    return named


# --- the page -----------------------------------------------------------------------------------------------

def share(value):
    return "-" if value is None else f"{100 * value:.1f}%"


def beside_chance(record, name, form):
    """Three cells: a figure of the run, its range by chance, and p."""
    figure = record["learnt"] and record["learnt"].get(name)
    if not figure or figure["value"] is None:
        return ["-", "-", "-"]
    return [form(figure["value"]), f"{form(figure['low'])} to {form(figure['high'])}",
            probability(figure["above"])]


def movement_table(records):
    yield ("| run | p(main): first, half, last | logits moved | by chance | p | main's logit above their mean"
           " | by chance | p | position explains | action explains of the rest | by chance | p |")
    yield "|---|" + "---|" * 11
    for record in records:
        p_main = record["p_main"]
        at = " ".join(f"{p_main[place]:.3f}" for place in (0, len(p_main) // 2, -1))
        cells = [record["run"], at, *beside_chance(record, "moved", "{:.4f}".format),
                 *beside_chance(record, "to_main", "{:+.4f}".format), share(record["position"]),
                 *beside_chance(record, "share", share)]
        yield f"| {' | '.join(cells)} |"


def group_table(records):
    """A group of runs that differ in their seed alone a line."""
    yield ("| runs | seeds | moved further than chance | main task's logit rose more than by chance |"
           " p(main): first, last (by seed) | likeliest task at the end | what the main task adds |")
    yield "|---|" + "---|" * 6
    for name, group in groups_of(records).items():
        first, last = (np.mean([record["p_main"][place] for record in group]) for place in (0, -1))
        by_seed = ", ".join(f"{record['p_main'][-1]:.3f}" for record in group)
        likeliest = "-"
        if group[0]["curriculum"] == "policy":
            likeliest = ", ".join(f"{record['tasks'][np.argmax(record['last'])]} {max(record['last']):.2f}"
                                  for record in group)
        adds = ", ".join(f"{found[0]:+.5f} (p {probability(found[3])})" for found in (
            effect_of(record, record["task"]) for record in group) if found)
        yield (f"| {name} | {len(group)} | {counted(group, 'moved')} | {counted(group, 'to_main')} |"
               f" {first:.3f}, {last:.3f} ({by_seed}) | {likeliest} | {adds or '-'} |")


def said_of(name, group):
    """What was found of a group, as a sentence, no more than the tests carry."""
    effects = [effect_of(record, record["task"]) for record in group]
    parts, count, known = [], len(group), [found for found in effects if found]
    if group[0]["curriculum"] == "policy":
        further, toward = (sum(record["learnt"][figure]["above"] <= LEVEL for record in group)
                           for figure in ("moved", "to_main"))
        first, last = (span([f"{record['p_main'][place]:.2f}" for record in group]) for place in (0, -1))
        likeliest = Counter(record["tasks"][np.argmax(record["last"])] for record in group).most_common()
        parts = [f"the policy moved further than by chance in {further} of {count} runs, toward the main task"
                 f" in {toward}",
                 f"p(main task) was {first} at first, {last} at the end",
                 "likeliest at the end: " + ", ".join(f"{task} ({runs})" for task, runs in likeliest)]
    if known:
        above, below = (sum(p <= LEVEL and sign * value > 0 for value, _, _, p in known) for sign in (1, -1))
        adds = span([found[0] for found in known], "{:+.5f}".format)
        parts.append(f"picking the main task adds {adds} to a step's advantage, more than by chance in"
                     f" {above} of {count} runs, less in {below}")
    return f"{name}: {'; '.join(parts) or 'no choice was left'}."


def too_few_replays(records):
    """Whether no p can be as small as LEVEL."""
    return min(record["replays"] for record in records) < 1 / LEVEL - 1


def counted(group, name):
    """In how many runs a figure is larger than by chance, and p of each."""
    p_values = [record["learnt"][name]["above"] for record in group
                if record["learnt"] and name in record["learnt"]]
    if not p_values:
        return "-"
    said = f"p {', '.join(map(probability, p_values))}"
    if too_few_replays(group):
        return said
    return f"{sum(p <= LEVEL for p in p_values)} of {len(p_values)} ({said})"


def effect_of(record, task):
    """(what a task adds to the advantage, its range by chance: low, high; p); None where nothing is known."""
    if not record["learnt"] or task not in record["tasks"]:
        return None
    figure, place = record["learnt"]["effects"], record["tasks"].index(task)
    found = [figure[key][place] for key in ("value", "low", "high", "apart")]
    return None if None in found else found


def task_table(records):
    names = list(dict.fromkeys(name for record in records for name in record["tasks"]))
    yield f"| run | {' | '.join(names)} |"
    yield "|---|" + "---|" * len(names)
    for record in records:
        cells = []
        for name in names:
            found = effect_of(record, name)
            cells.append("-" if not found else (
                f"{found[0]:+.5f} ({found[1]:+.5f} to {found[2]:+.5f}; {probability(found[3])};"
                f" {record['picks'][record['tasks'].index(name)]})"))
        yield f"| {record['run']} | {' | '.join(cells)} |"


def page(records):
    """The report, as markdown."""
    replays = "/".join(map(str, sorted({record["replays"] for record in records})))
    says = [f"- {said_of(*entry)}" for entry in groups_of(records).items()]
    if too_few_replays(records):
        says = [f"No p can be at most {LEVEL:g}: give more --replays."]
    return "\n".join([
        "What the runs say:", "", *says, "",
        f"What the policy learnt, a run a line. By chance: 95% of {replays} replays of the run's own states"
        " and advantages in which the policy draws its actions anew. p: the share of them in which the figure"
        " is as large, the run among them; where rewards depend on earlier actions it is approximate. Logits"
        " moved: root mean square over tasks, centred.", "",
        *movement_table(records), "",
        f"Runs that differ in the seed alone, a group a line. Further, more: p is at most {LEVEL:g}.", "",
        *group_table(records), "",
        "What picking each task adds to the step's advantage, against the others in the policy's own shares"
        " (range by chance; two-sided p; number of picks).", "", *task_table(records), ""])


def draw(records, path):
    """p(main) over the episodes, and what each task adds: a run a line or mark, its range by chance a bar.
    Rewards have scales of their own: what a task adds is divided by half of that range."""
    import matplotlib

    from lib.figures import SETTINGS
    with matplotlib.rc_context(SETTINGS):
        from matplotlib.figure import Figure
        figure = Figure(figsize=(9, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        names = list(dict.fromkeys(name for record in records for name in record["tasks"]))
        groups, number = groups_of(records), 0
        for place, (group_name, group) in enumerate(groups.items()):
            style = {"color": str(0.7 * place / max(1, len(groups) - 1)), "linewidth": 1,
                     "linestyle": ("-", "--", ":", "-.")[place % 4]}
            for record in group:
                left.plot(np.arange(1, 1 + len(record["p_main"])), record["p_main"], **style,
                          label=group_name if record is group[0] else "_")
                for at, name in enumerate(names):
                    if found := effect_of(record, name):
                        x = at + 0.6 * (number + 0.5) / len(records) - 0.3
                        half = (found[2] - found[1]) / 2 or 1.0
                        right.plot([x, x], [end / half for end in found[1:3]], color="0.85", linewidth=1.2)
                        right.plot([x], [found[0] / half], ".", color=style["color"], markersize=4)
                number += 1
        left.axhline(1 / len(records[0]["tasks"]), color="0.8", linewidth=0.6)
        left.set(xlabel="episode", ylabel="p(main task)", ylim=(0, 1))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", fontsize=7,
                      frameon=False)
        right.axhline(0, color="0.8", linewidth=0.6)
        right.set(ylabel="adds to the advantage, over half its range by chance")
        right.set_xticks(range(len(names)), names, rotation=45, ha="right")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


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

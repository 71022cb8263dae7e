"""Print finished runs as markdown: their rows with counts and seconds (phases that runs share once), reward
and entropy over the episodes, and, where runs differ in the seed alone, mean and standard deviation over
seeds.

    python scripts/show_results.py RUN_FOLDER [RUN_FOLDER ...]
"""
import argparse
import json
import statistics
from pathlib import Path

import lib  # noqa: F401  the path to the project's modules

from bookkeeping.run_folder import limits_of
from metrics import METRIC_NAMES, first_metric, named_scores, spoken


def mean(values):
    return sum(values) / len(values)


def read_run(folder):
    """(result.json, the name of what was run, without the seed)."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    protocol = " ".join([result["protocol"], *result["set"], *limits_of(result["data"])])
    return result, f"{result['task']} {protocol} {result['loss']} {result['reward']} {result['curriculum']}"


def over_seeds(folders):
    """A line a row of every variant that was run with several seeds: n, correct answers a seed, their mean
    and standard deviation."""
    counts = {}
    for folder in folders:
        result, variant = read_run(folder)
        for row, figures in result["rows"].items():
            if figures["dev"] and "correct" in figures["dev"]:
                counts.setdefault((variant, row), {})[result["seed"]] = figures["dev"]["correct"]
    for (variant, row), found in counts.items():
        if len(found) > 1:
            values = [found[seed] for seed in sorted(found)]
            counts_of_seeds = ", ".join(map(str, values))
            yield (f"| {variant} | {row} | {len(values)} | {counts_of_seeds} | {mean(values):.1f} |"
                   f" {statistics.stdev(values):.1f} |")


def rows_of(folder, shown):
    """A line a row of the run: counts, score, when it was best, seconds of its phase. A phase whose
    identity is in `shown` was shown with another run that shares it, and is left out."""
    result, variant = read_run(folder)
    name = f"{variant} seed {result['seed']}"
    for row, figures in result["rows"].items():
        identity = result["phases"].get(row, {}).get("identity")
        if identity is not None and identity in shown:
            continue
        shown.add(identity)
        dev = figures["dev"]
        if dev is None:
            yield f"| {name} | {row} | not scored | | | | |"
            continue
        when = f"epoch {dev['epoch']}" if "epoch" in dev else f"episode {dev['episode']}"
        seconds = result["seconds"].get(row, result["seconds"].get("mpdistil"))
        level = f"{100 * dev['accuracy']:.1f}" if "accuracy" in dev else ""
        others = ", ".join([*named_scores(dev), *(f"{split} {spoken(figures[split])}" for split in figures
                                                  if split != "dev")])
        yield f"| {name} | {row} | {spoken(dev)} | {level} | {others} | {when} | {seconds:.0f} |"


def signal_of(folder):
    """Mean reward and entropy of the first and last fifth of the episodes, and the mean dev accuracy of
    all; None without any."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    episodes = [line for line in lines if line["phase"] == "mpdistil"]
    if not episodes:
        return None
    fifth = max(1, len(episodes) // 5)
    parts = [f"{mean([line[key] for line in part]):.4f}" for key in ("reward", "entropy")
             for part in (episodes[:fifth], episodes[-fifth:])]
    dev = [line["scores"]["dev"] for line in episodes if "dev" in line["scores"]]
    level = first_metric(dev[0]) if dev else ""
    score = f"{METRIC_NAMES[level]} {100 * mean([scores[level] for scores in dev]):.1f}" if dev else ""
    return f"| {folder.parent.name}/{folder.name} | {len(episodes)} | {' | '.join(parts)} | {score} |"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    runs = parser.parse_args(argv).runs
    for folder in runs:
        if not (folder / "result.json").is_file():
            parser.error(f"{folder}: no result.json found; expected the folder of a finished run")
    print("| run | row | dev | accuracy | others | best | seconds |\n|---|---|---|---|---|---|---|")
    shown = set()
    for folder in runs:
        print("\n".join(rows_of(folder, shown)))
    signals = [line for line in map(signal_of, runs) if line]
    if signals:
        print("\n| run | episodes | reward, first fifth | last fifth | entropy, first fifth | last fifth |"
              " mean score on dev |\n|---|---|---|---|---|---|---|")
        print("\n".join(signals))
    seeds = list(over_seeds(runs))
    if seeds:
        print("\n| run | row | seeds | dev correct, by seed | mean | sd |\n|---|---|---|---|---|---|")
        print("\n".join(seeds))


if __name__ == "__main__":
    main()

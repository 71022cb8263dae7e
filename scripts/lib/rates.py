"""Rates that were chosen on quiz: the record that tune.py writes, and how a sweep and a table use it.

A record is a JSON object with a checksum: `task`, `encoder` (name, sha256 and nlayers), `protocol`, `set`,
`flags` (what was chosen: {flag: value}), `choices` (one for each flag, in the order in which they were made:
the mean score of each value, the choice and why), `runs` (every run's score and seconds), `quiz` (its size),
`splits`, `settings`, `environment`.
"""
import math
from pathlib import Path

import numpy as np

from arguments import READINGS, parse_arguments
from bookkeeping.errors import InputError
from bookkeeping.files import json_checksum, read_record

LEVEL = 0.95
OVERLAP = 1 / 9  # examples of quiz over those of train
RATES_FILE = "rates.json"


def paired_interval(differences, quiz):
    """(mean, low, high) of differences between scores on `quiz` examples, one of each division; low and high
    are None with one division, which has no spread. Student's t, its variance corrected for what the
    divisions share (Nadeau and Bengio 2003, "Inference for the generalization error"), and at least that of
    rounding two counts."""
    from scipy.stats import t
    mean, count = float(np.mean(differences)), len(differences)
    if count < 2:
        return mean, None, None
    variance = max(np.var(differences, ddof=1), 2 / 12 / quiz ** 2)
    reach = float(np.sqrt(variance * (1 / count + OVERLAP)) * t.ppf((1 + LEVEL) / 2, count - 1))
    return mean, mean - reach, mean + reach


def choose(scores, default, quiz):
    """The choice among values of a flag. scores: {value: [score on quiz, a division each]}, in the same order
    of divisions; default: the flag's; quiz: its examples. The best mean wins if the interval of its
    difference to the next one lies above zero; else the two are not told apart, and the one that deviates
    less from the default is taken (by ratio; on a tie the smaller one). One division has no interval: the
    best one is taken."""
    means = {value: sum(found) / len(found) for value, found in scores.items()}
    best, following = sorted(means, key=lambda value: (-means[value], distance(value, default), value))[:2]
    mean, low, high = paired_interval([a - b for a, b in zip(scores[best], scores[following], strict=True)],
                                      quiz)
    told_apart = low is not None and low > 0
    chosen = (best if told_apart or low is None else
              min((best, following), key=lambda value: (distance(value, default), value)))
    return {
        "default": default, "means": [[value, means[value]] for value in scores], "best": best,
        "next": following, "difference": mean, "low": low, "high": high, "told_apart": told_apart,
        "choice": chosen
    }


def distance(value, default):
    """How far a value is from the default, as a ratio."""
    return abs(math.log(value / default)) if value > 0 and default > 0 else abs(value - default)


def describe(choice, flag):
    """A choice in one sentence."""
    said = f"--{flag} {choice['choice']:g}: mean score on quiz " + ", ".join(
        f"{100 * mean:.1f} at {value:g}" for value, mean in choice["means"])
    interval = "one division, no interval" if choice["low"] is None else (
        f"95% interval {100 * choice['low']:+.1f} to {100 * choice['high']:+.1f} points")
    why = ("told apart" if choice["told_apart"] else
           "not told apart, so the best one is taken" if choice["low"] is None else
           "not told apart, so the smaller deviation from the default is taken")
    return (
        f"{said}; {choice['best']:g} minus {choice['next']:g} {100 * choice['difference']:+.1f} ({interval}):"
        f" {why}")


def read_rates(paths):
    """{task: record} of files that tune.py wrote; InputError where one is none, or a task stands twice."""
    records = {}
    for path in map(Path, paths):
        record = read_record(path, "give the rates.json that tune.py wrote")
        if not {"task", "encoder", "flags", "choices"} <= record.keys():
            raise InputError(
                f"--rates {path}: no record of rates; expected the rates.json that tune.py wrote")
        if record["task"] in records:
            raise InputError(
                f"--rates {path}: {record['task']} stands in another file as well; give one record a task")
        records[record["task"]] = {**record, "file": str(path)}
    return records


def words_of(records, task, more):
    """The words that a record adds to a run's command. more: flags of the runs that are the same for all
    tasks. InputError where there is no record of the task, or it is of another encoder, student or protocol
    (the readings of open points aside), or a flag is given besides."""
    # here: transformers takes seconds, and only a sweep with a record needs it
    from bookkeeping.checkpoints import checksum_checkpoint, resolve_checkpoint
    if task not in records:
        raise InputError(
            f"--rates: no record of {task} found (records of {', '.join(records)}); make one with"
            f" tune.py --task {task}")
    record, args = records[task], parse_arguments(["--task", task, "--data_dir", "", *more])
    where = f"--rates {record['file']}"
    for side in ("teacher", "student"):
        flag = f"--{side}_model"
        found = checksum_checkpoint(resolve_checkpoint(getattr(args, flag[2:]), flag))
        there = record["encoder"][f"{side}_sha256"]
        if there != found:
            raise InputError(f"{where}: chosen for another {side} encoder ({record['encoder'][side]}, sha256"
                             f" {there[:16]}); that of {flag} is sha256 {found[:16]}; tune that one")
    for name, there, here in (("nlayers", record["encoder"]["nlayers"], args.nlayers),
                              ("protocol", record["protocol"], args.protocol),
                              ("set", without_readings(record["set"]), without_readings(args.set))):
        if here != there:
            raise InputError(f"{where}: chosen with --{name} {there}, the sweep has {here}; tune that one")
    given = [flag for flag in record["flags"] if any(word.split("=")[0] == f"--{flag}" for word in more)]
    if given:
        raise InputError(f"{where}: chooses --{given[0]}, which is given as well; leave one of the two out")
    return [word for flag, value in record["flags"].items() for word in (f"--{flag}", f"{value:g}")]


def without_readings(changes):
    """Those of --set that are no readings of open points: what a reading does is compared at the same
    rates."""
    return [change for change in changes if change.split("=")[0] not in READINGS]


def summary_beside(folder, flags):
    """What a table says of the rates of a run: {"flags", "said", "checksum"} from the record that lies beside
    its run folder; None without one, or where the run has other rates."""
    path = folder.parent / RATES_FILE
    if not path.is_file():
        return None
    record = read_record(path, f"remove {path}")
    if any(flags.get(flag) != value for flag, value in record["flags"].items()):
        return None
    said = [describe(choice, flag) for flag, choice in record["choices"].items()]
    return {"flags": record["flags"], "said": said, "splits": record["splits"], "quiz": record["quiz"],
            "checksum": json_checksum(record)[:16]}

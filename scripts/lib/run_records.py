"""Finished runs as records: what tables and figures are made from, read from run folders or from a compact
file without weights.

A record is a JSON object: `run` (task folder/run folder), what was run (task, protocol, set, loss, reward,
curriculum, seed, encoder, select_on, flags, phase_order), what it read (data, dev_labels), and what came out:
rows as in result.json; looks, the right answers on dev of each look at it, by phase; by episode rewards,
entropies and actions, a sign a step (0: the first of flags.tasks); phases, the identities of those that runs
share; seconds, peak memory, environment.
"""
import json
import string
from pathlib import Path

import numpy as np

from arguments import NOT_PART_OF_THE_RUN
from bookkeeping.errors import InputError
from bookkeeping.files import read_json, read_record
from lib.rows import ROWS
from tasks import TASKS

# what may differ between the runs of one task in a table, and what the record says elsewhere
NOT_A_SETTING = {
    *NOT_PART_OF_THE_RUN,
    "task",
    "data_dir",
    "seed",
    "use_comp_loss",
    "reward_function",
    "curriculum",
    "undistilled",
    "kd_200",
    "protocol",
    "protocol_choices",
    "set",
    "teacher_model",
    "student_model",
    "nlayers",
    "select_on",
    "device",
}
# of the curriculum's tasks, in the order of the policy's actions
SIGNS = string.digits + string.ascii_lowercase
ENVIRONMENT = ("python", "torch", "transformers", "cpu_threads", "gpu", "git_commit", "git_changes")


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_folder(folder):
    """The record of a finished run's folder; InputError if it cannot be read."""
    way_out = f"give finished runs of main_superglue.py, or remove {folder}"
    result, args = read_record(folder / "result.json", way_out), read_json(folder / "args.json", way_out)
    if "dev_labels" not in result:
        raise InputError(
            f"{folder}/result.json: no dev_labels found: an older version of the code made it; run it again"
        )
    environment = read_json(folder / "environment.json", way_out)
    metrics, trajectories = read_lines(folder / "metrics.jsonl"), read_lines(folder / "trajectories.jsonl")
    looks, episodes = {}, [line for line in metrics if "episode" in line]
    for line in metrics:
        if "dev" in line["scores"]:
            looks.setdefault(line["phase"], []).append(line["scores"]["dev"]["correct"])
    return {
        "run": f"{folder.parent.name}/{folder.name}",
        **{
            name: result[name]
            for name in (
                "task",
                "protocol",
                "set",
                "loss",
                "reward",
                "curriculum",
                "seed",
                "stopped_after",
                "select_on",
                "dev_labels",
                "rows",
                "seconds",
                "peak_memory_bytes",
            )
        },
        "phase_order": result["protocol_choices"]["phase_order"],
        "phases": {name: phase["identity"][:16] for name, phase in result["phases"].items()},
        "encoder": {
            **{side: Path(result[f"{side}_model"]).name for side in ("teacher", "student")},
            "nlayers": result["nlayers"],
            **{f"{side}_sha256": result["data"][f"{side}_model"] for side in ("teacher", "student")},
        },
        "flags": {name: value for name, value in args.items() if name not in NOT_A_SETTING},
        "data": {name: split for name, split in result["data"].items() if isinstance(split, dict)},
        "looks": looks,
        "rewards": [round(line["reward"], 6) for line in episodes],
        "entropies": [round(line["entropy"], 6) for line in episodes],
        "actions": [
            "".join(SIGNS[args["tasks"].index(task)] for task in line["actions"]) for line in trajectories
        ],
        "environment": {name: environment[name] for name in ENVIRONMENT},
    }


def find_runs(path):
    """(folders of finished runs, folders of unfinished ones) at or up to two levels below a folder."""
    folders = sorted(
        {found.parent for depth in ("", "*/", "*/*/") for found in path.glob(f"{depth}args.json")}
    )
    return ([folder for folder in folders if (folder / "result.json").is_file()],
            [folder for folder in folders if not (folder / "result.json").is_file()])


def read_compact(path):
    """The records of a file that write_compact wrote."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(json.loads(line))
            assert isinstance(records[-1]["rows"], dict) and isinstance(records[-1]["phases"], dict)
        except (ValueError, KeyError, TypeError, AssertionError):
            raise InputError(
                f"{path}:{number}: not the record of a run; expected what make_tables.py --compact wrote"
            ) from None
    return records


def write_compact(records, path):
    """A line a record, in the order of their names."""
    path.write_text(
        "".join(
            json.dumps(record, separators=(",", ":")) + "\n"
            for record in sorted(records, key=lambda r: r["run"])
        ),
        encoding="utf-8",
    )


def read_runs(paths):
    """(records, {run: its folder or compact file}, folders of unfinished runs) of run folders, folders of
    them, and compact files."""
    records, places, unfinished = {}, {}, []
    for path in paths:
        if path.is_file():
            found = [(record, path) for record in read_compact(path)]
        else:
            finished, left = find_runs(path)
            unfinished += left
            found = [(read_folder(folder), folder) for folder in finished]
        if not found:
            raise InputError(
                f"{path}: no finished run found; expected a run folder, a folder of run folders or a compact"
                " file"
            )
        for record, place in found:
            if record["run"] in records:
                raise InputError(f"{path}: run {record['run']} found twice; give it once")
            records[record["run"]], places[record["run"]] = record, place
    return [records[name] for name in sorted(records)], places, unfinished


def check_comparable(records):
    """InputError unless all records are of one protocol, encoder and selecting split and, task by task, of
    the same flags and data."""
    first, by_task = records[0], {}
    for record in records:
        for name in ("protocol", "set", "encoder", "select_on"):
            if record[name] != first[name]:
                raise InputError(
                    f"runs {first['run']} and {record['run']}: {name} {first[name]} and {record[name]}; a"
                    " table takes runs of one protocol, encoder and selection"
                )
        other = by_task.setdefault(record["task"], record)
        differ = [
            f"--{name} {other['flags'].get(name)} and {value}"
            for name, value in record["flags"].items()
            if other["flags"].get(name) != value
        ]
        differ += [
            f"{name} has other examples"
            for name in record["data"]
            if other["data"].get(name) != record["data"][name]
        ]
        if differ:
            raise InputError(
                f"runs {other['run']} and {record['run']}: {'; '.join(differ)}; the runs of a task in a table"
                " differ in variant and seed alone"
            )


class Found:
    """Rows of runs by task, row and seed: what result.json says of a row, with the looks of its phase and its
    record. Where phases 2 and 3 alternate, a distilled student is another one with each loss: the rows kd and
    kd_200 are then the collaborative ones. InputError where runs say different things of one row and seed."""

    def __init__(self, records):
        self.records, self.cells = records, {}
        self.alternating = records[0]["phase_order"] == "alternating"
        for record in records:
            for name, row in ROWS.items():
                if self.alternating and row.found_as in ("kd", "kd_200") and record["loss"] != "col":
                    continue
                figures = record["rows"].get(row.found_as)
                wanted = all(
                    value in (None, record[key])
                    for key, value in (
                        ("loss", row.loss),
                        ("reward", row.reward),
                        ("curriculum", row.curriculum),
                    )
                )
                if wanted and figures and figures["dev"]:
                    looks = record["looks"][row.found_as if row.phase != "phase 4" else "mpdistil"]
                    new = {**figures["dev"], "looks": looks, "record": record}
                    cell = self.cells.setdefault((record["task"], name), {}).setdefault(record["seed"], new)
                    if cell["right"] != new["right"]:
                        raise InputError(
                            f"runs {cell['record']['run']} and {record['run']}: both have the row {name} of"
                            f" {record['task']}, seed {record['seed']}, with different answers; give one of"
                            " them"
                        )
        self.tasks = [task for task in TASKS if any(record["task"] == task for record in records)]

    def cell(self, task, name):
        """{seed: figures}, in the order of seeds."""
        return dict(sorted(self.cells.get((task, name), {}).items()))

    def seeds(self, task, *names):
        """Seeds that all these rows have."""
        return [
            seed for seed in self.cell(task, names[0]) if all(seed in self.cell(task, name) for name in names)
        ]

    def right(self, task, names, seeds):
        """Right (1) or wrong (0), the mean over the rows `names`: (seeds, examples)."""
        return np.mean(
            [
                [[int(sign) for sign in self.cell(task, name)[seed]["right"]] for seed in seeds]
                for name in names
            ],
            axis=0,
        )

    def majority(self, task):
        """Share of the most frequent class on dev."""
        counts = self.dev_labels(task)
        return max(counts) / sum(counts)

    def dev_labels(self, task):
        """Examples of each class on dev."""
        return next(record["dev_labels"] for record in self.records if record["task"] == task)


def process_seconds(records):
    """Seconds of training behind runs: phase 4 of each, and every phase that they share once."""
    shared = {
        identity: record["seconds"][name] for record in records for name, identity in record["phases"].items()
    }
    return sum(shared.values()) + sum(record["seconds"].get("mpdistil", 0) for record in records)

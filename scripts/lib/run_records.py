"""Finished runs as records: what tables and figures are made from, read from run folders or from a compact
file without weights.

A record is a JSON object: `run` (task folder/run folder), what was run (task, protocol, set, loss, reward,
curriculum, seed, encoder, select_on, flags, phase_order), what it read (data, labels of dev), and what came
out: rows as in result.json; looks, the right answers on dev of each look at it, by phase (where
another figure than accuracy is the task's first one: that); by episode
rewards, entropies and actions, a sign a step (0: the first of flags.tasks); phases, the identities of those
that runs share; code, checksums of what each phase calls; rates, how they were chosen, if on quiz; seconds,
peak memory; kd_200_batch; environment, where and by what commit it was computed, and phase_environments, the
same of the phases whose artefacts say so.
"""
import json
import string
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lib.rates import summary_beside
from lib.rows import LEARNING_SET, ROWS, label_of

from arguments import NOT_PART_OF_THE_RUN, PROTOCOLS, with_defaults
from bookkeeping.errors import InputError
from bookkeeping.files import read_json, read_record
from bookkeeping.identity import PROVENANCE, provenance_of
from metrics import floor_of
from tasks import DESCRIPTION, KINDS, TASKS

# what may differ between the runs of one task in a table, and what the record says elsewhere
NOT_A_SETTING = {
    *NOT_PART_OF_THE_RUN, *(row.flag for row in ROWS.values() if row.flag), "task", "data_dir", "seed",
    "use_comp_loss", "reward_function", "curriculum", "protocol", "protocol_choices", "set", "teacher_model",
    "student_model", "nlayers", "select_on", "device", "export", "baselines", "baseline_set"}
OF_RESULT = ("task", "protocol", "set", "loss", "reward", "curriculum", "seed", "stopped_after", "select_on",
             "dev_labels", "rows", "seconds", "peak_memory_bytes")
OF_NEWER_RESULT = ("kind", "metrics", "dev_mismatched_labels")  # older results, and tasks without, lack them
OF_PHASE_4 = [name for name, row in ROWS.items() if row.phase == "phase 4"]
# what reaches a student by the policy's picks alone (the exceptions: same_student)
OF_THE_PICKS = {"policy_learning_rate", "meta_learning_rate", "meta_epochs", "advantage", "credit",
                "discount_from", "reward_of", "reward_precision", "reward_weights"}
# of the curriculum's tasks, in the order of the policy's actions
SIGNS = string.digits + string.ascii_lowercase


# --- reading ------------------------------------------------------------------------------------------------

def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_folder(folder):
    """The record of a finished run's folder; InputError if it cannot be read."""
    way_out = f"give finished runs of main_superglue.py, or remove {folder}"
    result, args = read_record(folder / "result.json", way_out), read_json(folder / "args.json", way_out)
    if "dev_labels" not in result:
        raise InputError(f"{folder}/result.json: no dev_labels found: an older version of the code made it;"
                         " run it again")
    metrics, trajectories = read_lines(folder / "metrics.jsonl"), read_lines(folder / "trajectories.jsonl")
    looks, episodes = {}, [line for line in metrics if "episode" in line]
    for line in metrics:
        if "dev" in line["scores"]:
            scores, level = line["scores"]["dev"], result.get("metrics", ["accuracy"])[0]
            look = scores["correct"] if level == "accuracy" else round(scores[level], 6)
            looks.setdefault(line["phase"], []).append(look)
    signs = dict(zip(args["tasks"], SIGNS))
    return {
        "run": f"{folder.parent.name}/{folder.name}",
        **{name: result[name] for name in OF_RESULT},
        **{name: result[name] for name in OF_NEWER_RESULT if name in result},
        "phase_order": result["protocol_choices"]["phase_order"],
        "phases": {name: phase["identity"][:16] for name, phase in result["phases"].items()},
        "code": {name: code["sha256"][:16] for name, code in result.get("code", {}).items()},
        "encoder": encoder_of(result),
        "flags": {name: value for name, value in args.items() if name not in NOT_A_SETTING},
        "data": {name: split for name, split in result["data"].items() if isinstance(split, dict)},
        "descriptions": {name: text for name, text in result["data"].items() if name.endswith(DESCRIPTION)},
        # the name that a sweep gives the runs of the row mpdistil_learning
        **({"learning": True} if "-learning-seed" in folder.name else {}),
        "looks": looks,
        "rewards": [round(line["reward"], 6) for line in episodes],
        "entropies": [round(line["entropy"], 6) for line in episodes],
        "actions": ["".join(signs[task] for task in line["actions"]) for line in trajectories],
        "rates": summary_beside(folder, args),
        "kd_200_batch": batch_size_of(folder, result["phases"].get("kd_200")),
        "environment": provenance_of(read_json(folder / "environment.json", way_out)),
        "phase_environments": {name: provenance_of(phase["environment"])
                               for name, phase in result["phases"].items() if phase.get("environment")},
    }


def encoder_of(result):
    """What a record says of the encoders of a run."""
    return {**{side: Path(result[f"{side}_model"]).name for side in ("teacher", "student")},
            "nlayers": result["nlayers"],
            **{f"{side}_sha256": result["data"][f"{side}_model"] for side in ("teacher", "student")}}


def batch_size_of(folder, phase):
    """Examples a step of a phase of the run, as its artefact has it; None without one."""
    path = folder / phase["folder"] / "phase.json" if phase else None
    if path is None or not path.is_file():
        return None
    return read_record(path, f"remove {path.parent}")["depends_on"]["settings"]["batch_size"]


def batches_of(record):
    """Examples a step of kd_200 and of phase 4; None where it is not known. In records that are older than
    the figure, kd_200 had the batches of phase 2."""
    flags = record["flags"]
    return record.get("kd_200_batch", flags.get("train_dataloader_size")), flags.get("val_dataloader_size")


def find_runs(path):
    """(folders of finished runs, folders of unfinished ones) at or up to two levels below a folder."""
    depths = ("", "*/", "*/*/")
    folders = sorted({found.parent for depth in depths for found in path.glob(f"{depth}args.json")})
    finished = [folder for folder in folders if (folder / "result.json").is_file()]
    return finished, [folder for folder in folders if folder not in finished]


def read_compact(path):
    """The records of a file that write_compact wrote."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(json.loads(line))
            assert isinstance(records[-1]["rows"], dict) and isinstance(records[-1]["phases"], dict)
        except (ValueError, KeyError, TypeError, AssertionError):
            raise InputError(f"{path}:{number}: not the record of a run; expected what make_tables.py"
                             " --compact wrote") from None
    return records


def write_compact(records, path):
    """A line a record, in the order of their names."""
    records = sorted(records, key=lambda record: record["run"])
    path.write_text("".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records),
                    encoding="utf-8")


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
            raise InputError(f"{path}: no finished run found; expected a run folder, a folder of run folders"
                             " or a compact file")
        for record, place in found:
            if record["run"] in records:
                raise InputError(f"{path}: run {record['run']} found twice; give it once")
            records[record["run"]], places[record["run"]] = record, place
    return [records[name] for name in sorted(records)], places, unfinished


# --- what may stand in one table ----------------------------------------------------------------------------

def learning_last(records):
    """Records in their order, those of policies that can learn last: what a page says of all is read from the
    first one."""
    return sorted(records, key=lambda record: record.get("learning", False))


def check_comparable(records):
    """InputError unless all records are selected on dev, of one protocol and encoder and, task by task, of
    the same flags and data."""
    records = learning_last(records)
    first, by_task = records[0], {}
    for record in records:
        learning = record.get("learning", False)
        if record["select_on"] != "dev":
            raise InputError(
                f"run {record['run']}: --select_on {record['select_on']}: phases 3 and 4 train on quiz, so"
                " that their selection is on training data; a table takes runs that select on dev, run it"
                " again without the flag")
        for name in ("protocol", "set", "encoder"):
            there, here = ((of_the_table(one, learning)[0] if name == "set" else one[name])
                           for one in (first, record))
            if there != here:
                raise InputError(f"runs {first['run']} and {record['run']}: {name} {first[name]} and"
                                 f" {record[name]}; a table takes runs of one protocol and encoder")
        other = by_task.setdefault(record["task"], record)
        there, here = (with_defaults(of_the_table(one, learning)[1]) for one in (other, record))
        differ = [f"--{name} {there.get(name)} and {here.get(name)}"
                  for name in {**other["flags"], **record["flags"]} if there.get(name) != here.get(name)]
        differ += [f"{name} {other.get(name)} and {record.get(name)}"
                   for name in ("kind", "metrics", "descriptions")
                   if name in other and name in record and other[name] != record[name]]
        differ += [f"{name} has other examples" for name in record["data"]
                   if other["data"].get(name) != record["data"][name]]
        if differ:
            raise InputError(f"runs {other['run']} and {record['run']}: {'; '.join(differ)}; the runs of a"
                             " task in a table differ in variant and seed alone")


def of_the_table(record, learning):
    """(choices of --set, flags) of a record that all runs of its table share. learning: whether it is
    compared with a run whose policy can learn, which has some of its own (rows.LEARNING_SET)."""
    if not learning:
        return record["set"], record["flags"]
    names = [change.split("=")[0] for change in LEARNING_SET]
    return ([change for change in record["set"] if change.split("=")[0] not in names],
            {name: value for name, value in record["flags"].items() if name != "policy_learning_rate"})


def environments_of(record):
    """Where and by what code a run and the phases that it reuses were computed."""
    return [record["environment"], *record.get("phase_environments", {}).values()]


def mixture_of(records):
    """Texts that say in what the code and the machines behind records differ, or that the code was not that
    of a commit; none if all is well."""
    texts, codes = [], {}  # (phase, its code): the first run that has it
    for record in records:
        for phase, code in record.get("code", {}).items():
            codes.setdefault(phase, {}).setdefault(code, record["run"])
    texts += [f"the code of {phase} ({' and '.join(found.values())})" for phase, found in codes.items()
              if len(found) > 1]
    for name in PROVENANCE[:-1]:
        seen = {}  # value: the first run that has it
        for record in records:
            for environment in environments_of(record):
                if name in environment:
                    seen.setdefault(environment[name], record["run"])
        if len(seen) > 1:
            texts.append(f"{name} " + " and ".join(f"{value} ({run})" for value, run in seen.items()))
    changed = [record for record in records
               if any(environment.get("git_changes") for environment in environments_of(record))]
    if changed:
        texts.append(f"files that differ from their commit in {len(changed)} of {len(records)} runs"
                     f" ({changed[0]['run']}{', ...' if len(changed) > 1 else ''})")
    return texts


def check_unmixed(records):
    """InputError unless all records were made by the code of one commit, on one kind of machine."""
    texts = mixture_of(records)
    if texts:
        raise InputError(f"runs of different code or machines: {'; '.join(texts)}; a table takes runs of one"
                         " commit, its files unchanged, and one machine: run them again, or give --mixed,"
                         " which says it on the page")


# --- rows of tables -----------------------------------------------------------------------------------------

def facts_of(record):
    """rules and metrics of a record's task; records that are older than these facts are of tasks in the
    table."""
    if "kind" not in record:
        return TASKS[record["task"]]
    return SimpleNamespace(rules=KINDS[record["kind"]], metrics=tuple(record["metrics"]))


def example_scores(figures):
    """What paired tests compare of a row's figures, an example each, larger is better."""
    return [int(sign) for sign in figures["right"]] if "right" in figures else figures["example_scores"]


def choice_of(record, name):
    """The value of a choice of the protocol."""
    changes = dict(change.split("=", 1) for change in record["set"])
    return changes.get(name, getattr(PROTOCOLS[record["protocol"]], name))


class Found:
    """Rows of runs by task, row and seed: what result.json says of a row, with the looks of its phase and
    its record. Which loss's runs a row may come from: Row.losses. InputError where runs say different
    things of one row and seed."""

    def __init__(self, records):
        self.records, self.cells = learning_last(records), {}
        records = self.records
        self.alternating = records[0]["phase_order"] == "alternating"
        self.attached = choice_of(records[0], "meta_term") == "attached"
        for record in records:
            for name in ROWS:
                self.add(record, name)
        there = {record["task"]: record for record in records}
        self.tasks = [*(task for task in TASKS if task in there), *sorted(there.keys() - TASKS.keys())]
        self.facts = {task: facts_of(there[task]) for task in self.tasks}

    def add(self, record, name):
        """Take a row from a record that has it."""
        row = ROWS[name]
        figures = record["rows"].get(row.found_as)
        if not figures or not figures["dev"] or (
                record["loss"] not in row.losses(self.alternating, self.attached)):
            return
        if row.reward not in (None, record["reward"]) or row.curriculum not in (None, record["curriculum"]):
            return
        if row.phase == "phase 4" and row.learning != record.get("learning", False):
            return
        looks = record["looks"][row.found_as if row.phase != "phase 4" else "mpdistil"]
        new = {**figures["dev"], "looks": looks, "record": record, "splits": figures}
        cell = self.cells.setdefault((record["task"], name), {}).setdefault(record["seed"], new)
        if example_scores(cell) != example_scores(new):
            raise InputError(f"runs {cell['record']['run']} and {record['run']}: both have the row {name} of"
                             f" {record['task']}, seed {record['seed']}, with different answers; give one of"
                             " them")

    def cell(self, task, name):
        """{seed: figures}, in the order of seeds."""
        return dict(sorted(self.cells.get((task, name), {}).items()))

    def seeds(self, task, *names):
        """Seeds that all these rows have."""
        cells = [self.cell(task, name) for name in names]
        return [seed for seed in cells[0] if all(seed in cell for cell in cells)]

    def counts(self, task):
        """Whether an example's answer is right or wrong."""
        return self.facts[task].rules.labels.counts

    def level(self, task):
        """The name of the figure that looks and curves are of, a share of 1: the task's first one."""
        return self.facts[task].metrics[0]

    def scores(self, task, names, seeds):
        """Right (1) or wrong (0), of a regression minus the squared errors, the mean over the rows `names`:
        (seeds, examples)."""
        cells = [self.cell(task, name) for name in names]
        return np.mean([[example_scores(cell[seed]) for seed in seeds] for cell in cells], axis=0)

    def looks(self, task, name):
        """The level at each look, of each seed: [(looks)]."""
        return [np.array(figures["looks"]) / (figures["total"] if self.level(task) == "accuracy" else 1)
                for figures in self.cell(task, name).values()]

    label_of = staticmethod(label_of)

    def same_run(self, task, name):
        """The first row that is the same computation as this one; the row itself, if there is none before
        it."""
        cell = self.cell(task, name)
        before = OF_PHASE_4[:OF_PHASE_4.index(name)] if cell and name in OF_PHASE_4 else []
        for other in before:
            there = self.cell(task, other)
            if there.keys() == cell.keys() and all(same_student(there[seed], cell[seed]) for seed in cell):
                return other
        return name

    def floor(self, task, split="dev"):
        """The scores of the best constant answer to dev; None where its labels are not known."""
        labels = next(record.get(f"{split}_labels") for record in self.records if record["task"] == task)
        return labels and floor_of(self.facts[task], labels)


def same_student(one, other):
    """Whether two runs of phase 4 with one seed kept the same student: up to the look that was kept they
    trained one student in one way on the same picks, and it gave the same answers. What is left, rewards,
    losses and OF_THE_PICKS, reaches the student by the picks alone, but for state_gradient=attached and
    meta_term=attached. Equal answers alone do not show it: two students may well get the same examples
    right."""
    def until_kept(figures):
        record, kept = figures["record"], figures.get("episode")
        of_state = choice_of(record, "state_gradient") == "attached"
        of_term = choice_of(record, "meta_term") == "attached"
        settings = {**with_defaults(record["flags"]), **dict(
            change.split("=", 1) for change in record["set"])}
        return (kept, example_scores(figures), record["phases"].get("kd"), figures["looks"][:kept],
                record["actions"][:kept], record["rewards"][:kept] if of_state else None,
                (record["loss"], record["phases"].get("meta_teacher")) if of_term else None,
                {name: value for name, value in settings.items() if of_state or name not in OF_THE_PICKS})

    return until_kept(one) == until_kept(other)


def process_seconds(records):
    """Seconds of training behind runs: phase 4 of each, and every phase that they share once."""
    shared = {identity: record["seconds"][name] for record in records
              for name, identity in record["phases"].items()}
    return sum(shared.values()) + sum(record["seconds"].get("mpdistil", 0) for record in records)

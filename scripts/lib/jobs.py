"""The runs of a sweep: which ones the rows of a table need, and whether each is finished."""
import argparse
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import lib
from lib.rows import LEARNING_RATE, LEARNING_SET, LOSSES, PHASES, ROWS

from arguments import PATHS, loss_name, parse_arguments, resolve_protocol
from bookkeeping.errors import InputError
from bookkeeping.files import read_json, read_record
from bookkeeping.finished import finished_result, same_place
from data_utils import resolve_settings

ENCODERS = ("--teacher_model", "--student_model")


@dataclass(eq=False)
class Job:
    """One run. words: its flags; args: what they are parsed to; kind: jobs of one kind and task take about
    as long; after: the Job that computes what it shares; result: its result.json, once it is finished."""
    words: list
    args: argparse.Namespace
    kind: str
    after: object = None
    result: dict | None = None
    process: subprocess.Popen | None = field(default=None, repr=False)
    started: float = 0.0

    def __post_init__(self):
        if self.args.precision == "auto":  # which one it is depends on the machine that runs it
            raise InputError("argument --precision: auto found, expected fp32, tf32 or bf16: all runs of a"
                             " sweep must compute alike, on whichever machine they run")

    @property
    def folder(self):
        return self.args.output_dir

    @property
    def log(self):
        return self.folder.with_name("logs") / f"{self.folder.name}.log"

    @property
    def command(self):
        """The words of the command, which works in any folder."""
        return [sys.executable, str(lib.ROOT / "main_superglue.py"), *self.words]

    def finished(self):
        """Whether the folder holds this run, finished: the run itself decides it in the same way.
        InputError where it holds something else."""
        if self.result is None:
            try:
                self.result = self.find_result()
            except InputError as error:
                raise InputError(f"{error} (a sweep takes no --fresh: remove the folder, or give the sweep"
                                 " another --output_dir)") from None
        return self.result is not None

    def find_result(self):
        """The result of the run, if it is finished. Where its data or encoders lay elsewhere, it takes
        reading them to know: that is left to the run, which then finds itself finished, or another one."""
        if not (self.folder / "args.json").is_file():
            return finished_result(self.folder, None)  # the data, which complete the settings, may be missing
        settings = resolve_settings(self.args)
        result = finished_result(self.folder, settings, by_content=True)
        before = read_json(self.folder / "args.json", f"remove {self.folder}")
        return result if all(same_place(before.get(name), settings[name]) for name in PATHS) else None

    def end(self):
        """Take note that the run has just ended well."""
        self.result = read_record(self.folder / "result.json", f"remove {self.folder}")

    def has_shared(self):
        """Whether the run has got as far as the phases that the others share."""
        metrics = self.folder / "metrics.jsonl"
        return metrics.is_file() and '"phase": "meta_teacher"' in metrics.read_text(encoding="utf-8")

    def seconds(self):
        """Seconds of the phases that are this finished job's part in the sweep."""
        def own(phase):
            return phase == "mpdistil" or self.kind == "shared col" or (
                self.kind != "phase 4" and phase not in self.result["reused"])

        return sum(seconds for phase, seconds in self.result["seconds"].items() if own(phase))


def absolute(text):
    """A file's or folder's absolute path, links as they are, since another machine may have them elsewhere;
    anything else, such as a hub id, as it is."""
    return os.path.abspath(text) if Path(text).exists() else str(text)


def absolute_encoders(words):
    """Flags of main_superglue.py, the encoders' folders as absolute paths."""
    made = []
    for word in words:
        flag, equals, value = word.partition("=")
        if equals and flag in ENCODERS:
            word = f"{flag}={absolute(value)}"
        made.append(absolute(word) if made and made[-1] in ENCODERS else word)
    return made


def without_flag(words, flag):
    """(the words without a flag that takes several values, the flag with all its values)."""
    rest, taken, inside = [], [], False
    for word in words:
        inside = word == flag or inside and not word.startswith("--")
        (taken if inside else rest).append(word)
    return rest, taken


def plan(tasks, seeds, rows, output_dir, data_dir, more, rates=None):
    """The Jobs that the rows need, a seed after the other, each after the one whose phases it shares. All
    paths in their flags are absolute. rates: {task: words of its runs' commands}. InputError where flags
    contradict each other."""
    more, output_dir = absolute_encoders(more), Path(os.path.abspath(output_dir))
    data_dir = data_dir if data_dir == "hub" else os.path.abspath(data_dir)

    more, constants = without_flag(more, "--baseline_set")

    def parse(task, words):
        words = ["--task", task, "--data_dir", data_dir, *more, *(rates or {}).get(task, ()), *words]
        return words, parse_arguments(words)

    protocol = resolve_protocol(parse(tasks[0], [])[1])
    ways = protocol.phase_order == "alternating", protocol.meta_term == "attached"
    wanted = [(ROWS[name], ROWS[name].losses(*ways)[0]) for name in rows]
    last = max((row.phase for row, _ in wanted), key=PHASES.index)
    variants = list(dict.fromkeys((loss, row.reward, row.curriculum, row.learning) for row, loss in wanted
                                  if row.phase == "phase 4"))
    learning = ["--set", *LEARNING_SET, "--policy_learning_rate", f"{LEARNING_RATE:g}"]
    if any(row.learning for row, _ in wanted):
        made = vars(resolve_protocol(parse(tasks[0], learning)[1]))
        wrong = [change for change in LEARNING_SET if made[change.split("=")[0]] != change.split("=")[1]]
        if wrong:
            raise InputError(f"--rows mpdistil_learning: --set gives another value than {' '.join(wrong)};"
                             " leave one of the two out")
    losses = [loss for loss in LOSSES if loss == "col" or any(other == loss for _, other in wanted)]
    controls, methods = [row.flag for row, _ in wanted if row.flag], [row.found_as for row, _ in wanted
                                                                      if row.baseline]
    jobs = []

    def add(task, seed, words, name=None, **more_of_job):
        """name: of a run whose folder is not named by its variant."""
        words, args = parse(task, ["--seed", str(seed), *words])
        named = args.output_dir.name
        if name:
            named = f"{named.split(f'-{loss_name(args)}-')[0]}-{name}-seed{seed}"
        folder = output_dir / task.lower()
        words += ["--output_dir", str(folder / named), "--phase_dir", str(folder / "phases")]
        jobs.append(Job(words, parse_arguments(words), **more_of_job))
        return jobs[-1]

    for seed in seeds:
        for task in tasks:
            shared = {}
            for loss in losses:
                words = ["--use_comp_loss"] if loss == "com" else [f"--{flag}" for flag in controls]
                if methods and loss == "col":
                    words += ["--baselines", *methods, *constants]
                stop = "meta_teacher" if last == "phase 4" or loss == "com" else last
                name = "-".join([loss, "shared", *[*controls, *methods] * (loss == "col")])
                shared[loss] = add(task, seed, [*words, "--stop_after", stop], name, kind=f"shared {loss}",
                                   after=shared.get("col"))
            for loss, reward, curriculum, learns in variants:
                words = ["--reward_function", reward, "--curriculum", curriculum]
                words += ["--use_comp_loss"] * (loss == "com") + learning * learns
                add(task, seed, words, f"{loss}-{reward}-learning" if learns else None, kind="phase 4",
                    after=shared[loss])
    return jobs

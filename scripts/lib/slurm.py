"""The backend `slurm`: a sweep as one array job, an element a (task, seed).

An element is sweep.py for its cell, with --record. SLURM sends it SIGUSR1 some time before the limit, or when
a job of higher priority wants its place: the runs save, and the element asks for its job to be put back into
the queue. Of the cluster sbatch, squeue and scontrol are asked, never sacct, which many clusters do not have:
what became of an element that left the queue stands in its record.

In OUTPUT/slurm/<time>/ lie job.sh, cells.json (what each element is), <element>.log and <element>.json (the
record). The job's name holds the folder's, so that an element in the queue is found again by its name alone.
"""
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass

import lib
import lib.local
from lib.jobs import absolute, absolute_encoders

from bookkeeping.errors import InputError
from bookkeeping.files import check_folder, lock, read_json, write_json

LEAD = 120   # seconds before the time limit at which an element is told
EARLY = 60   # SLURM may tell it this much earlier
FRUITLESS = 2  # starts in a row without a step, after which a job is not put back any more
OURS = {  # flags of sbatch that the script sets itself
    "--array": "-a", "--job-name": "-J", "--output": "-o", "--error": "-e", "--open-mode": None,
    "--requeue": None, "--no-requeue": None, "--wait": "-W", "--wrap": None, "--parsable": None}


@dataclass
class Cell:
    """A (task, seed), its jobs, and the command that an element runs for it."""
    task: str
    seed: int
    jobs: list
    command: list

    @property
    def name(self):
        return f"{self.task} seed {self.seed}"

    def finished(self):
        return all([job.finished() for job in self.jobs])


@dataclass
class State:
    """What is known of a cell: finished, running, queued, failed, stopped or missing; where: a log, or the
    element's number in the queue; why: a word about it; command: as it was submitted."""
    kind: str
    where: str = ""
    why: str = ""
    command: list | None = None

    def __str__(self):
        return " ".join([self.kind, *[f"({self.where}{': ' * bool(self.why)}{self.why})"] * bool(self.where)])


# --- what an element does -----------------------------------------------------------------------------------

def given(flag, values):
    """A flag's words; none where it has no values."""
    return [flag, *values] if values else []


def cells_of(jobs, options):
    """The Cells of a sweep, in the order of their first jobs."""
    cells = {}
    for job in jobs:
        task, seed = job.args.task, job.args.seed
        command = [sys.executable, str(lib.ROOT / "scripts" / "sweep.py"), "--data_dir",
                   options.data_dir if options.data_dir == "hub" else absolute(options.data_dir),
                   "--tasks", task, "--seeds", str(seed), "--rows", *options.rows,
                   "--output_dir", str(options.output_dir.resolve()), "--jobs", str(options.jobs),
                   *given("--rates", [str(path.resolve()) for path in options.rates or ()]),
                   *given("--curriculum_tasks", options.curriculum_tasks),
                   *absolute_encoders(options.more), "--go"]
        cells.setdefault((task, seed), Cell(task, seed, [], command)).jobs.append(job)
    return list(cells.values())


def run_cell(jobs, options):
    """Be an element: run its cell and keep the record of it; ask for the job back after a notice. Returns the
    exit code of the sweep, or 1 where the job is not put back for want of progress."""
    element = f"{os.environ.get('SLURM_ARRAY_JOB_ID', '?')}_{os.environ.get('SLURM_ARRAY_TASK_ID', '?')}"
    record = {"starts": 0, "fruitless": 0}
    if options.record.is_file():
        record = read_json(options.record, f"remove {options.record}")
    record |= {"state": "running", "element": element, "starts": record["starts"] + 1}
    write_json(options.record, record)
    before, code, state = reached(jobs), 2, "failed"
    try:
        code = lib.local.run(jobs, options)
        state = "finished" if code == 0 else "stopped" if code > 128 else "failed"
        # scancel sends SIGTERM, for good; where it means another job's turn, SLURM puts this one back itself
        if code == 128 + lib.local.NOTICE:
            record["fruitless"] = 0 if moved(before, reached(jobs)) else record["fruitless"] + 1
            if record["fruitless"] == FRUITLESS:
                state, code = "failed", 1
                print(f"{FRUITLESS} starts in a row ended before a step was made: the job is not put back"
                      " into the queue. Give it a longer --time; the same command then goes on")
            else:
                state = "put back"
    finally:
        write_json(options.record, record | {"state": state, "code": code})
    if state == "put back" and not put_back(element):
        write_json(options.record, record | {"state": "stopped", "code": code})
    return code


def put_back(element):
    """Have the job put back into the queue, which ends it here. Returns whether SLURM will."""
    sys.stdout.flush()  # from now on SLURM may end this process
    done = subprocess.run(["scontrol", "requeue", element], capture_output=True, text=True)
    print(f"{element}: put back into the queue, goes on from what is saved" if not done.returncode else
          f"scontrol requeue {element}: {one_line(done.stderr)}; the same command goes on", flush=True)
    return not done.returncode


def reached(jobs):
    """How far a cell's runs have come: ({run: lines of its metrics.jsonl}, checksums of saved states)."""
    lines, states = {}, set()
    for job in jobs:
        metrics = job.folder / "metrics.jsonl"
        lines[job.folder.name] = len(metrics.read_bytes().splitlines()) if metrics.is_file() else 0
    folder = jobs[0].folder.parent
    for path in (*folder.glob("phases/.*.state/state-*.json"), *folder.glob("*/state/state-*.json")):
        try:
            state = read_json(path, "")
        except (InputError, OSError):  # another run is just replacing it
            continue
        if state.get("run") in lines:
            states.add(state["sha256"])
    return lines, states


def moved(before, after):
    """Whether a step was made between two answers of reached()."""
    return bool(after[1] - before[1]) or any(count > before[0][run] for run, count in after[0].items())


# --- what is asked of the cluster ---------------------------------------------------------------------------

def one_line(text):
    return " ".join(text.split())[:300]


def ask(*command):
    """What a command of SLURM prints. InputError where it fails or is missing."""
    if not shutil.which(command[0]):
        raise InputError(f"argument --cluster: slurm found, but the command {command[0]} is not on the PATH:"
                         " give the line on a login node of the cluster, or leave --cluster out to run here")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{command[0]}: {one_line(done.stderr or done.stdout)}; mend what it names and give"
                         " the same command again: nothing was submitted")
    return done.stdout


def queue():
    """{(job name, element): (number in the queue, state, reason)} of this user's elements."""
    found = {}
    for line in ask("squeue", "--noheader", "--array", "--user", str(os.getuid()),
                    "--format", "%i|%T|%r|%j").splitlines():
        number, state, reason, name = line.strip().split("|", 3)
        if "_" in number:
            found[name, number.split("_")[1]] = number, state, reason
    return found


def largest_array():
    """How many elements the cluster lets an array have; None where it does not say."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.M)
    return int(found[1]) if found else None


def job_name(folder):
    """mpdistil-<which sweep>-<which submission>."""
    return f"mpdistil-{hashlib.sha256(str(folder.parent.resolve()).encode()).hexdigest()[:8]}-{folder.name}"


def states_of(cells, root, elements):
    """{cell's name: State}. root: OUTPUT/slurm; elements: of queue()."""
    found = {cell.name: State("finished" if cell.finished() else "missing") for cell in cells}
    for folder in sorted(path.parent for path in root.glob("*/cells.json")):  # the newest submission last
        for number, cell in enumerate(read_json(folder / "cells.json", f"remove {folder}")["cells"]):
            before = found.get(cell["name"])
            if before is None:
                continue
            element = elements.get((job_name(folder), str(number)))
            if element:
                kind = "queued" if element[1] in ("PENDING", "REQUEUED") else "running"
                why = "" if element[2] in ("None", "") else element[2]
                found[cell["name"]] = State(kind, element[0], why, cell["command"])
            elif before.kind not in ("finished", "queued", "running"):
                found[cell["name"]] = left_behind(folder, number)
    return found


def left_behind(folder, number):
    """The State of an element that is not in the queue any more, its runs unfinished."""
    log, path = folder / f"{number}.log", folder / f"{number}.json"
    if not path.is_file():
        return State("failed", str(log), "ended before it began with its runs") if log.is_file() else (
            State("stopped", str(folder), "it left the queue before it was started"))
    record = read_json(path, f"remove {path}")
    if record["state"] == "finished":  # of fewer rows than are wanted now
        return State("missing")
    if record["state"] in ("running", "put back"):
        return State("failed", str(log), "it is gone from the queue without a word: killed, out of memory,"
                     " out of time, or its node was lost")
    return State(record["state"], str(log), f"code {record['code']}")


# --- the script ---------------------------------------------------------------------------------------------

def sbatch_flags(words):
    """{flag: value} of --sbatch; the value of a flag without one is ''."""
    flags = {}
    for number, word in enumerate(words):
        following = words[number + 1] if words[number + 1:] and not words[number + 1].startswith("-") else ""
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            flags[flag] = value if equals else following
        elif word.startswith("-"):
            flags[word[:2]] = word[2:] or following
    return flags


def seconds_of(text):
    """Seconds of a time limit as sbatch takes it; None: no limit. ValueError where it is none."""
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return None
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        raise ValueError(text)
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is None and len(parts) < 3:  # minutes, minutes:seconds
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def check_sbatch(text):
    """Seconds before the limit at which an element is to be told. InputError where --sbatch holds what cannot
    work."""
    where = f"argument --sbatch: {text!r} found"
    if "\n" in text:
        raise InputError(f"{where}, expected one line")
    try:
        flags = sbatch_flags(shlex.split(text))
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    for long, short in OURS.items():
        if long in flags or short in flags:
            raise InputError(f"{where}: the script sets {long} itself; leave it out")
    lead, limit = LEAD, flags.get("--time", flags.get("-t"))
    if "--signal" in flags:
        found = re.fullmatch(r"B:(?:SIG)?USR1@(\d+)", flags["--signal"])
        if not found:
            raise InputError(f"{where}: expected --signal=B:USR1@SECONDS, since the runs save at SIGUSR1,"
                             " which the first process of a job hands on to them")
        lead = int(found[1])
    if not limit:
        raise InputError(f"{where}: no --time; give one, such as --time=08:00:00, so that a job is told"
                         " before its end. A cell that needs more goes on by itself")
    try:
        seconds = seconds_of(limit)
    except ValueError:
        raise InputError(f"{where}: --time={limit} is no time limit, expected one such as 08:00:00") from None
    if seconds is not None and seconds <= lead + EARLY:
        raise InputError(f"{where}: --time={limit} leaves no time to work: a job is told to save {lead} to"
                         f" {lead + EARLY} s before its end. Give over {-(-(lead + EARLY) // 60)} minutes")
    return lead


def script(cells, folder, options):
    """The text of job.sh."""
    lead = check_sbatch(options.sbatch)
    output = str(folder).replace("%", "%%")  # SLURM's own signs begin with %
    at_once = f"%{options.at_once}" if options.at_once else ""
    own = "" if "--signal" in options.sbatch else f"#SBATCH --signal=B:USR1@{lead}\n"
    number = cells[0].command.index("--tasks")
    common, after = cells[0].command[:number], cells[0].command[number + 4:]
    which = "\n".join(f"  {number}) cell=(--tasks {shlex.quote(cell.task)} --seeds {cell.seed}) ;;"
                      for number, cell in enumerate(cells))
    return f"""#!/bin/bash
#SBATCH --job-name={job_name(folder)}
#SBATCH --array=0-{len(cells) - 1}{at_once}
#SBATCH --output="{output}/%a.log" --open-mode=append
#SBATCH --requeue
{own}#SBATCH {options.sbatch}

# at SIGUSR1 the runs save, and the job asks to be put back; until Python listens, it is let pass
trap '' USR1
case $SLURM_ARRAY_TASK_ID in
{which}
esac
{options.setup or ""}
# exec: many clusters signal a job's first process alone, which must be Python
exec {shlex.join(common)} "${{cell[@]}}" {shlex.join(after)} \\
  --record {shlex.quote(str(folder))}/"$SLURM_ARRAY_TASK_ID".json
"""


def new_folder(root):
    """A folder for a submission, named by the time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (stamp, *(f"{stamp}-{number}" for number in range(2, 100)))
    return next(root / name for name in names if not (root / name).exists())


# --- the backend --------------------------------------------------------------------------------------------

def run(jobs, options):
    """Submit the cells that are neither finished nor in the queue, and say how all of them stand; without
    --go print the script alone. Returns the exit code."""
    cells, root = cells_of(jobs, options), options.output_dir.resolve() / "slurm"
    check_sbatch(options.sbatch)
    if not options.go:
        print(script(cells, new_folder(root), options), end="")
        return 0
    check_folder(root, "--output_dir")
    root.mkdir(parents=True, exist_ok=True)
    with lock(root / ".lock", busy=f"{root}: another process is submitting this sweep; give the same command"
              " again when it has ended"):
        return submit(cells, root, options)


def submit(cells, root, options):
    """As run, one process at a time."""
    ask("sbatch", "--version")
    states = states_of(cells, root, queue())
    for cell in cells:
        state = states[cell.name]
        print(f"{cell.name}: {state}")
        if state.kind in ("queued", "running") and state.command != cell.command:
            raise InputError(f"--output_dir: {cell.name} is in the queue as {state.where}, with other flags"
                             f" ({differing(state.command, cell.command)}): two jobs must not work in one"
                             f" folder. Wait for it, end it by `scancel {state.where}`, or give another"
                             " --output_dir")
    left = [cell for cell in cells if states[cell.name].kind not in ("finished", "queued", "running")]
    if not left:
        print("nothing to submit")
        return 0
    most = largest_array()
    if most and len(left) > most:
        raise InputError(f"argument --seeds: {len(left)} cells (a task and a seed each), but this cluster"
                         f" takes arrays of at most {most} elements (MaxArraySize): give fewer --tasks or"
                         " --seeds at a time")
    folder = new_folder(root)
    folder.mkdir()
    try:
        write_json(folder / "cells.json", {"cells": [{"name": cell.name, "command": cell.command}
                                                     for cell in left]})
        (folder / "job.sh").write_text(script(left, folder, options), encoding="utf-8")
        number = ask("sbatch", "--parsable", str(folder / "job.sh")).split(";")[0].strip()
    except BaseException:
        shutil.rmtree(folder)
        raise
    print(f"submitted: {len(left)} of {len(cells)} cells as job {number}, script and logs in {folder}; the"
          " same command says how they stand")
    return 0


def differing(there, here):
    """The words of two commands that differ."""
    words = [word for word in dict.fromkeys([*there, *here]) if there.count(word) != here.count(word)]
    return ", ".join(words[:6]) or "in another order"

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
from pathlib import Path

import lib
import lib.local
from lib.jobs import absolute, absolute_encoders

from bookkeeping.errors import InputError
from bookkeeping.files import check_folder, lock, read_json, write_json

LEAD = 120   # seconds before the time limit at which an element is told
EARLY = 60   # SLURM may tell it this much earlier
FRUITLESS = 2  # starts in a row without a step, after which a job is not put back any more
OURS = {  # flags of sbatch that the script sets itself, or with which a job is not found again
    "--array": "-a", "--job-name": "-J", "--output": "-o", "--error": "-e", "--open-mode": None,
    "--requeue": None, "--no-requeue": None, "--wait": "-W", "--wrap": None, "--parsable": None,
    "--clusters": "-M", "--test-only": None}


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
    element's number in the queue; why: a word about it."""
    kind: str
    where: str = ""
    why: str = ""

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
                   options.data_dir if options.data_dir == "hub" else os.path.abspath(options.data_dir),
                   "--tasks", task, "--seeds", str(seed), "--rows", *options.rows,
                   "--output_dir", os.path.abspath(options.output_dir), "--jobs", str(options.jobs),
                   *given("--rates", [absolute(path) for path in options.rates or ()]),
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
        record["fruitless"] = 0 if moved(before, reached(jobs)) else record["fruitless"] + 1
        # scancel sends SIGTERM, for good; where it means another job's turn, SLURM puts this one back itself
        if code == 128 + lib.local.NOTICE:
            state = "put back"
            if record["fruitless"] >= FRUITLESS:
                state, code = "failed", 1
                print(f"{FRUITLESS} starts in a row ended before a step was made: the job is not put back"
                      " into the queue. Give it a longer --time, or a partition whose jobs are less often"
                      " made to give way; the same command then goes on")
    finally:
        write_json(options.record, record | {"state": state, "code": code})
    if state == "put back" and not put_back(element):
        write_json(options.record, record | {"state": "stopped", "code": code})
    return code


def put_back(element):
    """Have the job put back into the queue, which ends it here. Returns whether SLURM will."""
    sys.stdout.flush()  # from now on SLURM may end this process
    try:
        done = subprocess.run(["scontrol", "requeue", element], capture_output=True, text=True)
        why = one_line(done.stderr) if done.returncode else ""
    except OSError as error:  # not on this node, or not on the PATH that --setup left
        why = str(error)
    print(f"{element}: not put back into the queue (scontrol requeue: {why}); the same command goes on" if why
          else f"{element}: put back into the queue, goes on from what is saved", flush=True)
    return not why


def reached(jobs):
    """How far a cell's runs have come: ({run: lines of its metrics.jsonl, and whether it is finished},
    checksums of saved states)."""
    lines, states = {}, set()
    for job in jobs:
        metrics = job.folder / "metrics.jsonl"
        lines[job.folder.name] = len(metrics.read_bytes().splitlines()) if metrics.is_file() else 0
        lines[f"{job.folder.name}, finished"] = int((job.folder / "result.json").is_file())
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
    """What a command of SLURM prints. InputError where it fails or is missing. What a user's profile makes
    squeue leave out is asked for all the same."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("SQUEUE_") and name != "SLURM_CLUSTERS"}
    if not shutil.which(command[0]):
        raise InputError(f"argument --cluster: slurm found, but the command {command[0]} is not on the PATH:"
                         " give the line on a login node of the cluster, or leave --cluster out to run here")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise InputError(f"{command[0]}: {one_line(done.stderr or done.stdout)}; mend what it names and give"
                         " the same command again")
    return done.stdout


def queue():
    """{(job name, element): (number in the queue, state, reason)} of this user's elements."""
    found = {}
    for line in ask("squeue", "--all", "--noheader", "--array", "--user", str(os.getuid()),
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
    """{cell's name: State}. root: OUTPUT/slurm; elements: of queue(). InputError where a cell is in the queue
    with other flags."""
    found = in_queue(cells, root, elements)
    found |= {cell.name: State("finished" if cell.finished() else "missing") for cell in cells
              if cell.name not in found}
    for folder, number, cell in submitted(root):
        before = found.get(cell["name"])
        if before and before.kind not in ("finished", "queued", "running"):
            found[cell["name"]] = left_behind(folder, number)
    return found


def submitted(root):
    """(folder, number, cell) of every element that was ever submitted, the newest submission last."""
    for folder in sorted(path.parent for path in root.glob("*/cells.json")):
        for number, cell in enumerate(read_json(folder / "cells.json", f"remove {folder}")["cells"]):
            yield folder, number, cell


def in_queue(cells, root, elements):
    """{cell's name: State} of those that are in the queue; arguments as in states_of. Their folders are not
    looked into, since they are being written to."""
    found, wanted = {}, {cell.name: cell.command for cell in cells}
    for folder, number, cell in submitted(root):
        element, command = elements.get((job_name(folder), str(number))), wanted.get(cell["name"])
        if element is None or command is None:
            continue
        if command != cell["command"]:
            raise InputError(
                f"--output_dir: {cell['name']} is in the queue as {element[0]}, with other flags"
                f" ({differing(cell['command'], command)}): two jobs must not work in one folder. Wait for"
                f" it, end it by `scancel {element[0]}`, or give another --output_dir")
        kind = "queued" if element[1] in ("PENDING", "REQUEUED") else "running"
        found[cell["name"]] = State(kind, element[0], "" if element[2] == "None" else element[2])
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
    for long, short in OURS.items():  # sbatch takes abbreviations too
        if short in flags or any(long.startswith(flag) for flag in flags if len(flag) > 4):
            raise InputError(f"{where}: {long} is set here, or cannot be used; leave it out")
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
    cells, root = cells_of(jobs, options), Path(os.path.abspath(options.output_dir)) / "slurm"
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
        print(f"{cell.name}: {states[cell.name]}")
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
    write_json(folder / "cells.json", {"cells": [{"name": cell.name, "command": cell.command}
                                                 for cell in left]})
    (folder / "job.sh").write_text(script(left, folder, options), encoding="utf-8")
    number = hand_over(folder)
    print(f"submitted: {len(left)} of {len(cells)} cells as job {number}, script and logs in {folder}; the"
          " same command says how they stand")
    return 0


def hand_over(folder):
    """sbatch a folder's job.sh; returns the job's number. The script's own flags are given once more, since
    variables such as SBATCH_TIMELIMIT outweigh a script, but not the command. InputError where sbatch fails;
    the folder is removed unless the job may be in the queue all the same."""
    lines = (folder / "job.sh").read_text(encoding="utf-8").splitlines()
    flags = [word for line in lines if line.startswith("#SBATCH ") for word in shlex.split(line)[1:]]
    try:
        return ask("sbatch", "--parsable", *flags, str(folder / "job.sh")).split(";")[0].strip()
    except InputError as error:
        try:
            there = any(name == job_name(folder) for name, _ in queue())
        except InputError:
            there = None
        if there is False:
            shutil.rmtree(folder)
            raise InputError(f"{error}; nothing was submitted") from None
        raise InputError(f"{error}; {'it' if there else 'it may be that it'} was submitted nevertheless, from"
                         f" {folder}: look with squeue before you give it again") from None


def differing(there, here):
    """The words of two commands that differ."""
    words = [word for word in dict.fromkeys([*there, *here]) if there.count(word) != here.count(word)]
    return ", ".join(words[:6]) or "in another order"

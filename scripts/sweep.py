"""All runs that rows of the paper's tables need, for tasks x seeds: printed as commands, or run with --go.

    python scripts/sweep.py --data_dir data --tasks CB COPA --seeds 42 43 44 --teacher_model encoders/MiniLM --nlayers 3
    python scripts/sweep.py ... --jobs 2 --go

Flags that are not listed below go to main_superglue.py as they are. Per task and seed a first run computes
what the others share (teacher, distilled students, meta-teacher), then come the runs of phase 4. With --go,
runs that are finished are skipped, those that were ended go on, those that failed are listed at the end with
their logs and tried again when the same command is given. SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and SIGHUP are
passed on to the runs, which save and end; a second one ends them at once. A run counts as finished by its
arguments: remove its folder where data or code have changed.
"""

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]

import arguments
from arguments import NOT_PART_OF_THE_RUN, OneLineParser, loss_name, parse_arguments, resolve_protocol
from bookkeeping.errors import InputError
from bookkeeping.signals import STOP_SIGNALS
from data_utils import curriculum_tasks, load_data
from lib.rows import ALIASES, PHASES, ROWS, find_rows
from tasks import TASKS, find_task, protocol_task

OWN = (
    "--task",
    "--seed",
    "--use_comp_loss",
    "--reward_function",
    "--curriculum",
    "--undistilled",
    "--kd_200",
    "--stop_after",
    "--output_dir",
    "--phase_dir",
    "--fresh",
)  # flags of main_superglue.py that the sweep sets itself
SIGNALS = (*STOP_SIGNALS, signal.SIGHUP)  # the last: a terminal that is closed
STOPS = (*arguments.PHASES, None)  # None: the whole run


@dataclass(eq=False)
class Job:
    """One run. words: its flags; args: what they are parsed to; after: the Job that computes what it shares;
    kind: jobs of one kind and task take about as long."""
    words: list
    args: argparse.Namespace
    kind: str
    after: object = None
    process: subprocess.Popen | None = field(default=None, repr=False)
    started: float = 0.0

    @property
    def folder(self):
        return self.args.output_dir

    @property
    def log(self):
        return self.folder.with_name("logs") / f"{self.folder.name}.log"

    @property
    def command(self):
        return [sys.executable, str(ROOT / "main_superglue.py"), *self.words]

    def finished(self):
        """Whether the folder holds this run, finished; ValueError if it is another one's."""
        if not (self.folder / "args.json").is_file():
            return False
        there = self.read("args.json")
        for name, wanted in vars(self.args).items():
            found = there.get(name)
            if name == "task":
                found, wanted = str(found).lower(), wanted.lower()
            if name == "tasks":  # without the flag they are those of the data; the main task is always one
                found = sorted(task.lower() for task in found or ())
                wanted = sorted({*map(str.lower, wanted), self.args.task.lower()}) if wanted else found
            if name not in NOT_PART_OF_THE_RUN and found != wanted:
                raise ValueError(
                    f"{self.folder}: holds a run with --{name} {found!r}, wanted is {wanted!r}; give another"
                    " --output_dir"
                )
        return (self.folder / "result.json").is_file() and (
            STOPS.index(self.read("result.json")["stopped_after"]) >= STOPS.index(self.args.stop_after))

    def read(self, name):
        """The JSON object in a file of the run's folder."""
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
            assert isinstance(content, dict)
        except (ValueError, AssertionError):
            raise ValueError(
                f"{self.folder / name}: not the JSON that a run wrote; remove {self.folder}"
            ) from None
        return content

    def has_shared(self):
        """Whether the run has got as far as the phases that the others share."""
        metrics = self.folder / "metrics.jsonl"
        return metrics.is_file() and '"phase": "meta_teacher"' in metrics.read_text(encoding="utf-8")

    def seconds(self):
        """Seconds of the phases that are this job's part in the sweep."""
        result = self.read("result.json")
        return sum(
            seconds
            for name, seconds in result["seconds"].items()
            if self.kind == "shared col"
            or name == "mpdistil"
            or (self.kind != "phase 4" and name not in result["reused"])
        )


def plan(tasks, seeds, rows, output_dir, data_dir, more):
    """The Jobs that the rows need, a seed after the other, each after the one whose phases it shares."""
    wanted, jobs = [ROWS[name] for name in rows], []
    last = max((row.phase for row in wanted), key=PHASES.index)
    variants = list(
        dict.fromkeys((row.loss, row.reward, row.curriculum) for row in wanted if row.phase == "phase 4")
    )
    losses = [loss for loss in ("col", "com") if loss == "col" or any(row.loss == loss for row in wanted)]
    extras = [row.flag for row in wanted if row.flag]

    def job(task, seed, words, name=None, **more_of_job):
        words = ["--task", task, "--data_dir", str(data_dir), "--seed", str(seed), *more, *words]
        args = parse_arguments(words)
        name = (
            f"{args.output_dir.name.split(f'-{loss_name(args)}-')[0]}-{name}-seed{seed}"
            if name
            else args.output_dir.name
        )
        folder = output_dir / task.lower()
        words += ["--output_dir", str(folder / name), "--phase_dir", str(folder / "phases")]
        jobs.append(Job(words, parse_arguments(words), **more_of_job))
        return jobs[-1]

    for seed in seeds:
        for task in tasks:
            shared = {}
            for loss in losses:
                words = ["--use_comp_loss"] if loss == "com" else [f"--{flag}" for flag in extras]
                stop = "meta_teacher" if last == "phase 4" or loss == "com" else last
                shared[loss] = job(
                    task,
                    seed,
                    [*words, "--stop_after", stop],
                    "-".join([loss, "shared", *extras * (loss == "col")]),
                    kind=f"shared {loss}",
                    after=shared.get("col"),
                )
            for loss, reward, curriculum in variants:
                words = [
                    "--reward_function",
                    reward,
                    "--curriculum",
                    curriculum,
                    *["--use_comp_loss"] * (loss == "com"),
                ]
                job(task, seed, words, kind="phase 4", after=shared[loss])
    return jobs


def expected_seconds(jobs):
    """A function job -> seconds, from the finished jobs of its kind, of its task if there are any; None
    without any."""
    known = {}
    for job in jobs:
        if job.finished():
            for key in ((job.kind, job.args.task.lower()), job.kind):
                known.setdefault(key, []).append(job.seconds())
    means = {key: statistics.mean(values) for key, values in known.items()}
    return lambda job: means.get((job.kind, job.args.task.lower()), means.get(job.kind))


def spoken(seconds):
    """A length of time as one reads it."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


class Sweep:
    """Runs jobs, some side by side."""

    def __init__(self, jobs, side_by_side):
        self.jobs, self.side_by_side = jobs, side_by_side
        self.waiting = [job for job in jobs if not job.finished()]
        self.running, self.failed, self.signum = [], [], None
        self.ended = set(jobs) - set(self.waiting)
        self.expect = expected_seconds(jobs)

    def stop(self, signum, frame):
        """Hand a signal on; at the second one the runs end without saving."""
        for job in self.running:
            job.process.send_signal(signal.SIGKILL if self.signum else signal.SIGTERM)
        self.signum = signum

    def start(self, job):
        job.log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if self.side_by_side > 1:  # each its part of the cores, unless said otherwise
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.side_by_side)))
        with open(job.log, "a", encoding="utf-8") as log:
            # a session of its own: Ctrl-C reaches the sweep alone, which hands it on once
            job.process = subprocess.Popen(
                job.command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        job.started = time.monotonic()
        self.running.append(job)
        if self.signum:  # it came while the run was being started
            job.process.send_signal(signal.SIGTERM)

    def step(self, bar):
        """Take note of what ended, begin what may begin."""
        for job in [job for job in self.running if job.process.poll() is not None]:
            self.running.remove(job)
            self.ended.add(job)
            code, took = job.process.returncode, time.monotonic() - job.started
            if code and not self.signum:
                self.failed.append(job)
            if not code:
                self.expect = expected_seconds(self.jobs)
                bar.update()
            what = "done" if not code else f"ended with code {code}, log {job.log}"
            tqdm.write(f"{job.folder}: {what} after {took:.0f} s; {self.left()}", file=sys.stdout)
            sys.stdout.flush()
        while self.waiting and not self.signum and len(self.running) < self.side_by_side:
            job = next((job for job in self.waiting if job.after is None or job.after in self.ended), None)
            if job is None:
                break
            self.waiting.remove(job)
            if job.after in self.failed and not job.after.has_shared():
                self.failed.append(job)
                self.ended.add(job)
                continue
            self.start(job)
        bar.set_postfix_str(self.left())

    def left(self):
        """How much time is left, about."""
        expected = [(job, self.expect(job)) for job in (*self.running, *self.waiting)]
        known = [
            max(0, seconds - (time.monotonic() - job.started if job in self.running else 0))
            for job, seconds in expected
            if seconds is not None
        ]
        text, unknown = f"runs left: {len(expected)}", len(expected) - len(known)
        if known:
            text += f", about {spoken(sum(known) / self.side_by_side)}"
        return text + f", {unknown} of them not like any that is finished" * bool(unknown)

    def run(self):
        """Returns the exit code: 0 all done, 1 some failed, 128 + n ended by signal n."""
        before = {signum: signal.signal(signum, self.stop) for signum in SIGNALS}
        try:
            with tqdm(
                total=len(self.jobs),
                initial=len(self.ended),
                desc="runs",
                disable=None,
                dynamic_ncols=True,
                bar_format="{desc} {n}/{total} |{bar}| {elapsed}{postfix}",
            ) as bar:
                self.step(bar)
                while self.running:
                    time.sleep(0.2)
                    self.step(bar)
        finally:
            for job in self.running:  # an error ended the loop
                job.process.terminate()
                job.process.wait()
            for signum, handler in before.items():
                signal.signal(signum, handler)
        for job in self.failed:
            last = (
                job.log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:] if job.process else []
            )
            why = (
                f"see {job.log}: {' '.join(last)}"
                if job.process
                else f"not begun, since {job.after.folder} failed"
            )
            print(f"failed: {job.folder}: {why}")
        if self.signum:
            print(f"ended by {signal.Signals(self.signum).name}; the same command goes on")
            return 128 + self.signum
        print(f"{len(self.jobs) - len(self.failed)} of {len(self.jobs)} runs are finished"
              + ("; the same command tries the others again" if self.failed else ""))
        return 1 if self.failed else 0


# --- how long a sweep takes ---------------------------------------------------------------------------------

def split_tokens(args):
    """Tokens of each split of the main task as the encoder reads them, mean tokens of a quiz example over the
    curriculum's tasks, examples of train and quiz, and layers of the teacher."""
    # here: transformers takes seconds, and only an estimate needs it
    from bookkeeping.checkpoints import load_config, open_checkpoints
    protocol = resolve_protocol(args)
    task = protocol_task(find_task(args.task), protocol)
    tasks = [protocol_task(entry, protocol) for entry in curriculum_tasks(args.tasks, task, args.data_dir)]
    checkpoints = open_checkpoints(args)
    data, quiz = load_data(args, task, tasks, checkpoints.tokenizer, protocol)
    tokens = {name: len(split.input_ids) for name, split in data.items()}
    per_example = {name: len(split.input_ids) / len(split) for name, split in quiz.items()}
    return {
        "tokens": tokens,
        "train": len(data["train"]),
        "quiz": len(data["quiz"]),
        "main_example": per_example[task.name],
        "curriculum_example": statistics.mean(per_example.values()),
        "encoder": checkpoints.teacher_sha256,
        "layers": load_config(checkpoints.teacher, "--teacher_model").num_hidden_layers,
    }


def work_of(args, facts):
    """{phase: tokens x layers that go through an encoder forward}, a training step counted three times:
    forward, and twice that backward. What is computed once per example from frozen encoders is left out (at
    most one pass of the teacher)."""
    tokens, steps = facts["tokens"], -(-facts["quiz"] // args.val_dataloader_size)
    epochs = {"teacher": args.teacher_epochs, "kd": args.epochs, "student": args.epochs}
    work = {
        phase: (
            count
            * (3 * tokens["train"] + tokens["dev"])
            * (facts["layers"] if phase == "teacher" else args.nlayers)
        )
        for phase, count in epochs.items()
    }
    train_batch = args.train_dataloader_size * tokens["train"] / facts["train"]
    example = facts["main_example"] if args.curriculum == "main_task" else facts["curriculum_example"]
    work["kd_200"] = args.num_episodes * args.nlayers * (3 * steps * train_batch + tokens["dev"])
    work["mpdistil"] = (
        args.num_episodes * args.nlayers * (3 * facts["quiz"] * example + tokens["quiz"] + tokens["dev"])
    )
    return work


def measured_rates(folders):
    """({phase: median seconds per unit of work_of} of finished runs, sha256 of their encoder)."""
    rates, encoders, known = {}, set(), {}
    for folder in folders:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        args = argparse.Namespace(**json.loads((folder / "args.json").read_text(encoding="utf-8")))
        encoders.add(result["data"]["teacher_model"])
        key = args.task, args.teacher_model, args.data_dir, args.max_seq_length
        if key not in known:
            known[key] = split_tokens(args)
        facts = known[key]
        for phase, work in work_of(args, facts).items():
            if phase in result["seconds"]:
                rates.setdefault(phase, []).append(result["seconds"][phase] / work)
    if len(encoders) != 1:
        raise ValueError(f"--estimate_from: runs with {len(encoders)} different encoders found, expected one")
    return {phase: statistics.median(values) for phase, values in rates.items()}, encoders.pop()


def estimate(jobs, folders, side_by_side):
    """Lines that say how long the jobs take, per task, by the steps of finished runs."""
    rates, encoder = measured_rates(folders)
    total, computed = {}, set()
    for job in jobs:
        task, args = job.args.task, job.args
        if task not in total:
            total[task] = {"facts": split_tokens(args), "seconds": 0.0}
        facts = total[task]["facts"]
        if facts["encoder"] != encoder:
            raise ValueError(
                f"--estimate_from: measured with another encoder than --teacher_model {args.teacher_model};"
                " give runs of the same"
            )
        phases = ["teacher", "kd", *["student"] * args.undistilled, *["kd_200"] * args.kd_200]
        if args.stop_after in ("teacher", "kd"):
            phases = [phase for phase in phases if phase == "teacher" or args.stop_after == "kd"]
        # then a distilled student is another one with each loss
        alternating = resolve_protocol(args).phase_order == "alternating"
        shared = [
            (task, args.seed, phase, loss_name(args) * (alternating and phase != "teacher"))
            for phase in phases
        ]
        phases = [key[2] for key in shared if key not in computed] + ["mpdistil"] * (args.stop_after is None)
        computed.update(shared)
        work = work_of(args, facts)
        missing = [phase for phase in phases if phase not in rates]
        if missing:
            raise ValueError(f"--estimate_from: no run there that has {', '.join(missing)}")
        total[task]["seconds"] += sum(rates[phase] * work[phase] for phase in phases)
    for task, found in total.items():
        yield f"# {task}: about {found['seconds'] / 3600:.1f} h"
    seconds = sum(found["seconds"] for found in total.values())
    yield (
        f"# {len(jobs)} runs: about {seconds / 3600:.1f} h in all, {seconds / 3600 / side_by_side:.1f} h with"
        f" --jobs {side_by_side} where {side_by_side} processes are each as fast as those measured"
        f" ({', '.join(sorted(rates))}); start-up not counted"
    )


# --- the command line ---------------------------------------------------------------------------------------

def parse(argv=None):
    parser = OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                           epilog="All other flags go to main_superglue.py.")
    parser.add_argument("--data_dir", required=True, help="as main_superglue.py takes it")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=list(TASKS),
        metavar="TASK",
        help=f"main tasks (default: {' '.join(TASKS)})",
    )
    parser.add_argument(
        "--curriculum_tasks",
        nargs="+",
        metavar="TASK",
        help="main_superglue.py's --tasks: curriculum tasks (default: every task found in --data_dir)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], metavar="SEED", help="(default: 42)")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["all"],
        metavar="ROW",
        help=f"of {', '.join([*ROWS, *ALIASES])} (default: all)",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs"),
        help=(
            "run folders are made in <output_dir>/<task>/, which "
            "also holds phases/ and logs/; one for each encoder and set of flags (default: runs)"
        ),
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs side by side, each with its part of the cores (default: 1)"
    )
    parser.add_argument("--go", action="store_true", help="run the commands instead of printing them")
    parser.add_argument(
        "--estimate_from",
        nargs="+",
        type=Path,
        metavar="RUN_FOLDER",
        help="also say how long the sweep takes, by the steps of these finished runs of the same encoder",
    )
    args, more = parser.parse_known_args(argv)
    if args.curriculum_tasks:
        more = ["--tasks", *args.curriculum_tasks, *more]
    if args.jobs < 1:
        parser.error(f"argument --jobs: {args.jobs} found, expected at least 1")
    taken = [word for word in more if word.split("=")[0] in OWN]
    if taken:
        parser.error(f"{taken[0]}: the sweep sets it itself; leave it out")
    try:
        args.tasks = list(dict.fromkeys(find_task(task, "argument --tasks").name for task in args.tasks))
    except InputError as error:
        parser.error(str(error))
    args.seeds = list(dict.fromkeys(args.seeds))
    for folder in args.estimate_from or ():
        if not (folder / "result.json").is_file():
            parser.error(
                f"argument --estimate_from: {folder}: no result.json found, expected the folder of a"
                " finished run"
            )
    try:
        args.rows = find_rows(args.rows)
    except ValueError as error:
        parser.error(f"argument --rows: {error}")
    return args, more


def main(argv=None):
    args, more = parse(argv)
    jobs = plan(args.tasks, args.seeds, args.rows, args.output_dir, args.data_dir, more)
    try:
        for line in estimate(jobs, args.estimate_from, args.jobs) if args.estimate_from else ():
            print(line)
        if args.go:
            return Sweep(jobs, args.jobs).run()
        for job in jobs:
            print(
                f"{'# finished: ' if job.finished() else ''}{shlex.join(['python', 'main_superglue.py', *job.words])}"
            )
    except (ValueError, InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""All runs that rows of the paper's tables need, for tasks x seeds: printed as commands, or run with --go.

    python scripts/sweep.py --data_dir data --tasks CB COPA --seeds 42 43 44 --teacher_model encoders/MiniLM
    python scripts/sweep.py ... --jobs 2 --go

Flags that are not listed below go to main_superglue.py as they are. Per task and seed a first run computes
what the others share (teacher, distilled students, meta-teacher), then come the runs of phase 4. With --go,
runs that are finished are skipped, those that were ended go on, those that failed are listed at the end
with their logs and tried again when the same command is given. A folder that holds another run, or one that
other code made, is an error; data that changed in place are not noticed. SIGINT (Ctrl-C), SIGTERM, SIGUSR1
and SIGHUP are passed on to the runs, which save and end; a second one ends them at once. """
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from lib.commands import exit_code
from lib.cost import estimate, expected_seconds, spoken
from lib.jobs import plan
from lib.rates import RATES_FILE, read_rates, words_of
from lib.rows import ALIASES, ROWS, find_rows

from arguments import OneLineParser
from bookkeeping.errors import InputError
from bookkeeping.signals import STOP_SIGNALS
from tasks import find_task, tasks_of

# flags of main_superglue.py that the sweep sets itself
OWN = ("--task", "--seed", "--use_comp_loss", "--reward_function", "--curriculum", "--stop_after",
       "--output_dir", "--phase_dir", "--fresh", *(f"--{row.flag}" for row in ROWS.values() if row.flag))
# SIGHUP: a terminal that is closed; not every system has it
SIGNALS = (*STOP_SIGNALS, *(signal.Signals[name] for name in ("SIGHUP",) if hasattr(signal, name)))


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
            job.process = subprocess.Popen(job.command, stdout=log, stderr=subprocess.STDOUT, env=environment,
                                           start_new_session=True)
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
                job.end()
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
        left = [*self.running, *self.waiting]
        known = [(job, self.expect(job)) for job in left if self.expect(job) is not None]
        text = f"runs left: {len(left)}"
        if known:
            now = time.monotonic()
            seconds = sum(max(0, expected - (now - job.started if job in self.running else 0))
                          for job, expected in known)
            text += f", about {spoken(seconds / self.side_by_side)}"
        unknown = len(left) - len(known)
        return text + f", {unknown} of them not like any that is finished" * bool(unknown)

    def run(self):
        """Returns the exit code: 0 all done, 1 some failed, 128 + n ended by signal n."""
        before = {signum: signal.signal(signum, self.stop) for signum in SIGNALS}
        try:
            with tqdm(total=len(self.jobs), initial=len(self.ended), desc="runs", disable=None,
                      dynamic_ncols=True, bar_format="{desc} {n}/{total} |{bar}| {elapsed}{postfix}") as bar:
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
        return self.say_end()

    def say_end(self):
        """What failed and why, and what was done. Returns the exit code."""
        for job in self.failed:
            if job.process:
                last = job.log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
                print(f"failed: {job.folder}: see {job.log}: {' '.join(last)}")
            else:
                print(f"failed: {job.folder}: not begun, since {job.after.folder} failed")
        if self.signum:
            print(f"ended by {signal.Signals(self.signum).name}; the same command goes on")
            return 128 + self.signum
        print(f"{len(self.jobs) - len(self.failed)} of {len(self.jobs)} runs are finished"
              + ("; the same command tries the others again" if self.failed else ""))
        return 1 if self.failed else 0


# --- the command line ---------------------------------------------------------------------------------------

def parse(argv=None):
    """(arguments, flags for main_superglue.py)."""
    parser = OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                           epilog="All other flags go to main_superglue.py.")
    parser.add_argument("--data_dir", required=True, help="as main_superglue.py takes it")
    parser.add_argument("--tasks", nargs="+", default=tasks_of("superglue"), metavar="TASK",
                        help=f"main tasks (default: {' '.join(tasks_of('superglue'))})")
    parser.add_argument("--curriculum_tasks", nargs="+", metavar="TASK",
                        help="main_superglue.py's --tasks: curriculum tasks (default: every task of the main"
                             " task's benchmark found in --data_dir)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], metavar="SEED", help="(default: 42)")
    parser.add_argument("--rows", nargs="+", default=["all"], metavar="ROW",
                        help=f"of {', '.join([*ROWS, *ALIASES])} (default: all)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs"),
                        help="run folders are made in <output_dir>/<task>/, which also holds phases/ and"
                             " logs/; one for each encoder and set of flags (default: runs)")
    parser.add_argument("--jobs", type=int, default=1,
                        help="runs side by side, each with its part of the cores (default: 1)")
    parser.add_argument("--go", action="store_true", help="run the commands instead of printing them")
    parser.add_argument("--rates", nargs="+", type=Path, metavar="FILE",
                        help="learning rates chosen on quiz: the rates.json of tune.py, one for each task")
    parser.add_argument("--estimate_from", nargs="+", type=Path, metavar="RUN_FOLDER",
                        help="also say how long the sweep takes, by the steps of these finished runs of the"
                             " same encoder")
    args, more = parser.parse_known_args(argv)
    if args.curriculum_tasks:
        more = ["--tasks", *args.curriculum_tasks, *more]
    if args.jobs < 1:
        parser.error(f"argument --jobs: {args.jobs} found, expected at least 1")
    taken = [word for word in more if word.split("=")[0] in OWN]
    if taken:
        parser.error(f"{taken[0]}: the sweep sets it itself; leave it out")
    try:
        args.tasks = list(dict.fromkeys(find_task(task, "argument --tasks", args.data_dir).name
                                        for task in args.tasks))
    except InputError as error:
        parser.error(str(error))
    try:
        args.rows = find_rows(args.rows)
    except ValueError as error:
        parser.error(f"argument --rows: {error}")
    args.seeds = list(dict.fromkeys(args.seeds))
    for folder in args.estimate_from or ():
        if not (folder / "result.json").is_file():
            parser.error(f"argument --estimate_from: {folder}: no result.json found, expected the folder of a"
                         " finished run")
    return args, more


def sweep(args, more):
    """Plan, then say or do. Returns the exit code."""
    records = read_rates(args.rates or ())
    rates = {task: words_of(records, task, more) for task in args.tasks} if args.rates else {}
    jobs = plan(args.tasks, args.seeds, args.rows, args.output_dir, args.data_dir, more, rates)
    if jobs[0].args.select_on == "quiz":
        print("warning: --select_on quiz: make_tables.py takes no such runs, since phases 3 and 4 train on"
              " quiz", file=sys.stderr)
    for line in estimate(jobs, args.estimate_from, args.jobs) if args.estimate_from else ():
        print(line)
    if args.go:
        for task in rates:  # beside its runs, for tables
            folder = Path(args.output_dir) / task.lower()
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(records[task]["file"], folder / RATES_FILE)
        return Sweep(jobs, args.jobs).run()
    for job in jobs:
        print(f"{'# finished: ' if job.finished() else ''}{shlex.join(job.command)}")
    return 0


def main(argv=None):
    return exit_code(sweep, *parse(argv))


if __name__ == "__main__":
    sys.exit(main())

"""The backend `local`: the runs of a sweep on this machine, some side by side."""
import os
import signal
import sys
import time
from subprocess import STDOUT, Popen

from tqdm import tqdm

from lib.cost import expected_seconds, spoken

from bookkeeping.signals import STOP_SIGNALS, release

# SIGHUP: a terminal that is closed; not every system has it
SIGNALS = (*STOP_SIGNALS, *(signal.Signals[name] for name in ("SIGHUP",) if hasattr(signal, name)))
NOTICE = getattr(signal, "SIGUSR1", None)  # of a cluster: the time is nearly over


def cores():
    """CPUs that this process may use: what SLURM gave the job, else what the system lets it have."""
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    if given.isdigit():
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ended_by(code):
    """The stop signal that a run says it was ended by, by its exit code; None if it was not."""
    return next((signum for signum in SIGNALS if code in (-signum, 128 + signum)), None)


class Sweep:
    """Runs jobs, some side by side. in_cell: inside a job of a cluster, whose signals may reach a run before
    they reach this process."""

    def __init__(self, jobs, side_by_side, in_cell=False):
        self.jobs, self.side_by_side, self.in_cell = jobs, side_by_side, in_cell
        self.waiting = [job for job in jobs if not job.finished()]
        self.running, self.failed, self.signum = [], [], None
        self.ended = set(jobs) - set(self.waiting)
        self.expect = expected_seconds(jobs)

    def stop(self, signum, frame=None):
        """Hand a signal on; at a second one the runs end without saving, but for a cluster's job, which is
        sent several on its way out. What ends a sweep for good outweighs a cluster's notice."""
        at_once = self.signum is not None and not self.in_cell
        for job in self.running:
            job.process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
        if self.signum in (None, NOTICE):
            self.signum = signum

    def start(self, job):
        job.log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if self.side_by_side > 1 or self.in_cell:  # each its part of the cores, unless said otherwise
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self.side_by_side)))
        with open(job.log, "a", encoding="utf-8") as log:
            # a session of its own: Ctrl-C reaches the sweep alone, which hands it on once
            job.process = Popen(job.command, stdout=log, stderr=STDOUT, env=environment,
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
            if self.in_cell and ended_by(code) and not self.signum:
                self.stop(ended_by(code))
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
        release()
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
        if self.signum and any(job.result is None for job in self.jobs):
            print(f"ended by {signal.Signals(self.signum).name}; the same command goes on")
            return 128 + self.signum
        print(f"{len(self.jobs) - len(self.failed)} of {len(self.jobs)} runs are finished"
              + ("; the same command tries the others again" if self.failed else ""))
        return 1 if self.failed else 0


def run(jobs, options):
    """Run the jobs here. options: of sweep.py. Returns the exit code."""
    return Sweep(jobs, options.jobs, in_cell=options.record is not None).run()

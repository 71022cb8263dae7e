"""--report_to: the lines of metrics.jsonl and the rows of result.json, sent to a tracker as well.

A tracker holds a copy. It is opened before anything is computed; from then on nothing that goes wrong with it
can end the run or change what it computes. Each command sends the whole run so far, phases that were reused
included, so that the copy is whole and holds each point once: TensorBoard's events are written anew, an
offline copy of wandb replaces the one before, and to wandb's server goes what it does not have yet.
"""
import json
import os
import secrets
import shutil
from importlib import import_module
from inspect import signature
from pathlib import Path

from bookkeeping.errors import InputError
from bookkeeping.files import read_json, write_json

TRACKER_RECORD = "tracker.json"  # in the run's folder


def open_tracker(report_to, folder, settings, identity, again=False):
    """The Tracker for `report_to`, tried out; InputError with the way out if it cannot be used. folder: of
    the run, which need not be there; settings: the resolved flags; identity: of the run, a hash; again: the
    run was sent and is computed anew, as another run of the tracker."""
    if report_to == "none":
        return Tracker(report_to, None, folder, {})
    record = {} if again else read_tracker_record(folder)
    if record.get("identity") != identity:  # else what was sent is of another computation
        record = {"identity": identity}
    record.setdefault("finished", {})
    return Tracker(report_to, BACKENDS[report_to](folder, settings, record), folder, record)


def read_tracker_record(folder):
    """What tracker.json of a run's folder holds: identity, of the run that was sent; finished, {tracker:
    phase that the run stopped after} of those that have all of it; and what a backend keeps."""
    path = folder / TRACKER_RECORD
    return read_json(path, f"remove {path}") if path.is_file() else {}


def was_sent(report_to, folder, result):
    """Whether a tracker has all of a finished run already."""
    finished = read_tracker_record(folder).get("finished", {})
    return report_to == "none" or finished.get(report_to, "nothing") == result["stopped_after"]


class Tracker:
    """A backend that cannot fail: what it raises is said once, and from then on nothing is sent. It is closed
    at the end of a `with`. record: what tracker.json holds; sent: the (phase, epoch or episode) that this
    process has sent."""

    def __init__(self, name, backend, folder, record):
        self.name, self.backend, self.folder, self.record = name, backend, folder, record
        self.sent, self.say, self.started = set(), print, False

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close(failed=kind is not None)

    def start(self, say):
        """The run's folder is there now. say: for lines in the log. InputError if nothing can be sent."""
        if self.backend is None:
            return
        try:
            where = self.backend.start()
            self.record["finished"].pop(self.name, None)
            self.write_record()
        except Exception as error:
            raise InputError(f"--report_to {self.name}: {in_one_line(error)}; mend it, or leave the flag "
                             "out") from None
        self.say, self.started = say, True
        say(f"--report_to {self.name}: {where}")

    def send(self, line):
        """A line of metrics.jsonl, as a dictionary; one that was sent already is left out."""
        number = line["epoch"] if "epoch" in line else line["episode"]
        if (line["phase"], number) not in self.sent:
            self.sent.add((line["phase"], number))
            self.attempt(lambda: self.backend.send(line["phase"], number, figures_of(line)))

    def send_file(self, path):
        """The lines of a metrics.jsonl; one that was being written when its process was ended is left out."""
        if self.backend is not None:
            for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if text.endswith("\n"):
                    self.send(json.loads(text))

    def finish(self, result):
        """The rows of a result.json; nothing is left to send then."""
        self.attempt(lambda: self.backend.finish(final_figures(result)))
        self.close(failed=False, finished={self.name: result["stopped_after"]})

    def close(self, failed, finished=None):
        """End it; what was sent before stays. failed: the run ended with an error."""
        self.attempt(lambda: self.backend.close(failed))
        if self.started:
            self.record["finished"] |= finished or {}
            self.attempt(self.write_record)
        self.backend = None

    def attempt(self, action):
        """Do something that may fail; then it is said, and the run goes on without the tracker."""
        if self.backend is None:
            return
        try:
            action()
        except Exception as error:
            self.backend = None
            self.say(f"warning: --report_to {self.name}: {in_one_line(error)}; the run goes on without it")

    def write_record(self):
        write_json(self.folder / TRACKER_RECORD, self.record)


def in_one_line(error):
    return f"{type(error).__name__}: {printable(' '.join(str(error).split())[:300])}"


def printable(text):
    """Text without halves of characters, as names of files may have: no tracker takes them."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def import_tracker(module, name, needed):
    """A tracker's module; InputError if it, or what is needed of it, is not there."""
    try:
        found = import_module(module)
        getattr(found, needed)
    except ImportError as error:
        raise InputError(f"--report_to {name}: not installed ({error}); pip install {name}, or leave the "
                         "flag out") from None
    except Exception as error:  # packages that do not fit each other; a folder of that name
        raise InputError(f"--report_to {name}: cannot be used ({in_one_line(error)}); pip install "
                         f"--upgrade {name}, or leave the flag out") from None
    return found


# --- what is sent -------------------------------------------------------------------------------------------

def numbers_of(values):
    return {name: value for name, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)}


def figures_of(line):
    """{phase/name: number} of a line of metrics.jsonl."""
    phase = line["phase"]
    figures = {f"{phase}/{name}": value for name, value in numbers_of(line).items()
               if name not in ("epoch", "episode")}
    for split, scores in line["scores"].items():
        figures |= {f"{phase}/{split}/{name}": value for name, value in numbers_of(scores).items()}
    return figures


def final_figures(result):
    """{final/row/name: number} of a result: dev's figures of each row with its counts, and what answering the
    most frequent class always would give (floor)."""
    figures = {f"final/{row}/{name}": value for row, values in result["rows"].items()
               for name, value in numbers_of(values["dev"] or {}).items()}
    figures |= {f"final/{row}/{split}/{name}": value for row, values in result["rows"].items()
                for split in values if split != "dev" for name, value in numbers_of(values[split]).items()}
    counts = result.get("dev_labels")
    if isinstance(counts, list) and sum(counts):
        figures |= {"final/floor/accuracy": max(counts) / sum(counts), "final/floor/correct": max(counts),
                    "final/floor/total": sum(counts)}
    return figures


# --- TensorBoard --------------------------------------------------------------------------------------------

class TensorBoard:
    """Events in <run folder>/tensorboard. Each command writes all of them anew; readers that still hold the
    ones before drop them (purge_step)."""

    def __init__(self, folder, settings, record):
        self.module = import_tracker("torch.utils.tensorboard", "tensorboard", "SummaryWriter")
        self.folder, self.settings = Path(folder) / "tensorboard", settings

    def start(self):
        for path in self.folder.glob("events.out.tfevents.*"):
            try:
                path.unlink()
            except OSError:  # open elsewhere, where the system forbids it: then purge_step alone must do
                pass
        self.writer = self.module.SummaryWriter(str(self.folder), purge_step=0)
        self.writer.flush()
        return f"tensorboard --logdir {printable(self.folder)}"

    def send(self, phase, number, figures):
        for name, value in figures.items():
            self.writer.add_scalar(name, value, number)
        self.writer.flush()

    def finish(self, figures):
        from torch.utils.tensorboard.summary import hparams
        for name, value in figures.items():
            self.writer.add_scalar(name, value, 0)
        settings = {name: value if isinstance(value, (bool, int, float)) else printable(value)
                    for name, value in self.settings.items()}
        for summary in hparams(settings, figures):
            self.writer.file_writer.add_summary(summary)
        rows = "".join(f"| {name.removeprefix('final/')} | {value:.6g} |\n"
                       for name, value in figures.items())
        self.writer.add_text("final", f"| figure | value |\n|---|---|\n{rows}", 0)
        self.writer.flush()

    def close(self, failed):
        self.writer.close()


# --- wandb --------------------------------------------------------------------------------------------------

# how long a server that does not answer is waited for, in seconds: at the beginning, at the end
WAITING = {"init_timeout": 15, "finish_timeout": 20, "finish_timeout_raises": True}


class Wandb:
    """One run of wandb for one run folder, opened where it is made. What the environment (WANDB_PROJECT,
    WANDB_NAME, ...) or wandb's own settings say wins over what is chosen here. record: under "wandb" the id
    of the run and the folders with offline copies of it."""

    def __init__(self, folder, settings, record):
        self.wandb, self.run, self.axes = import_tracker("wandb", "wandb", "init"), None, set()
        self.record = record.setdefault("wandb", {"id": secrets.token_hex(4), "offline": []})
        try:
            known = self.wandb.setup(settings=self.settings(silent=True)).settings
            self.check_key(known)
            self.open(folder, settings, known)
        except Exception as error:
            self.attempt_teardown()
            raise InputError(f"--report_to wandb: {in_one_line(error)}; `wandb login`, or WANDB_MODE=offline "
                             "to keep the figures on this machine, or leave the flag out") from None

    def settings(self, **values):
        """wandb's settings, of those values that the environment does not set and this version knows."""
        return self.wandb.Settings(**{
            name: value for name, value in values.items()
            if f"WANDB_{name.upper()}" not in os.environ and name in self.wandb.Settings.model_fields})

    def check_key(self, known):
        """RuntimeError where wandb would ask for a key."""
        if known.mode not in ("offline", "dryrun", "disabled") and not has_key(self.wandb):
            raise RuntimeError("no API key found")

    def open(self, folder, settings, known):
        self.record["id"] = known.run_id or self.record["id"]
        place = Path(os.environ.get("WANDB_DIR", Path(folder).parent))
        before = set(place.glob(f"*/*run-*-{self.record['id']}"))
        try:
            self.run = self.wandb.init(
                project=None if known.project else "mpdistil", id=self.record["id"],
                name=None if known.run_name else printable(folder), resume=known.resume or "allow",
                dir=str(place), allow_val_change=True,
                config={name: printable(value) if isinstance(value, str) else value
                        for name, value in settings.items()},
                settings=self.settings(silent=True, console="off", **WAITING))
        except Exception:
            for left in set(place.glob(f"*/*run-*-{self.record['id']}")) - before:
                shutil.rmtree(left, ignore_errors=True)
            raise
        # what the server has already: the last epoch or episode of each phase
        self.there = {name.removesuffix("/step"): value for name, value in dict(self.run.summary).items()
                      if name.endswith("/step")}

    def start(self):
        if self.run.offline:
            self.record["offline"].append(self.run.settings.sync_dir)
            return f"kept here; to send it: wandb sync {printable(self.run.settings.sync_dir)}"
        return self.run.url or "disabled"

    def send(self, phase, number, figures):
        if number <= self.there.get(phase, 0):
            return
        if phase not in self.axes:  # wandb has one step counter for the run: each phase brings its own axis
            self.axes.add(phase)
            self.run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        self.run.log({**figures, f"{phase}/step": number})

    def finish(self, figures):
        self.run.summary.update(figures)

    def close(self, failed):
        """RuntimeError where the server does not take what is left."""
        run, self.run = self.run, None
        if run is None:
            return
        try:
            run.finish(exit_code=int(failed))
        except TimeoutError:
            raise RuntimeError("the server does not take what is left; to send it: wandb sync "
                               f"{printable(run.settings.sync_dir)}") from None
        finally:
            self.attempt_teardown()
        if run.offline and not failed:  # it holds all that the copies before it hold
            for folder in self.record["offline"][:-1]:
                if Path(folder).name.startswith("offline-run-") and folder.endswith(f"-{self.record['id']}"):
                    shutil.rmtree(folder, ignore_errors=True)
            del self.record["offline"][:-1]

    def attempt_teardown(self):
        """End wandb's own process. Its failure is not the run's: all was sent or refused before it, and a
        refusal on its way up must not be hidden by this one."""
        try:
            self.wandb.teardown()
        except Exception:
            pass


def has_key(wandb):
    """Whether wandb has a key, without asking for one."""
    if "prompt" in signature(wandb.login).parameters:
        return wandb.login(prompt=False, verify=False)
    return bool(wandb.api.api_key)  # before 0.30


BACKENDS = {"tensorboard": TensorBoard, "wandb": Wandb}

"""What lets a run be killed at any moment: states of unfinished phases on disk, signals that end a run, locks.

A state is a pair of files in a folder of its own: state-<n>.safetensors with the tensors, and state-<n>.json, written after it, with
everything else and the checksum of the first. Each is written to another name, synced and renamed, and an older pair is
removed only when a newer one is whole, so that a good state is there whenever the process ends.
"""
import hashlib
import json
import os
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data_utils import InputError

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
SHARE = 0.01  # of the time since a phase began that saving at ends of epochs and episodes may take

requested = []  # the signal that asked the run to stop, if one did


class Stopped(Exception):
    """A signal asked the run to stop, and its state is saved."""

    def __init__(self, signum):
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; what was reached is saved, the same command goes on from there")


@contextmanager
def stopping_on_signals():
    """SIGTERM, SIGINT and SIGUSR1 (which SLURM can send before a time limit) end the run at the next step, state saved. A second
    one ends it at once."""
    def ask(signum, frame):
        signal.signal(signum, before[signum])
        requested.append(signum)

    requested.clear()
    before = {}
    try:
        for signum in STOP_SIGNALS:
            before[signum] = signal.signal(signum, ask)
    except ValueError:  # not the main thread: whoever runs this there handles its own signals
        pass
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def stop_if_asked():
    """Stopped if a signal came."""
    if requested:
        raise Stopped(requested[0])


# --- files -------------------------------------------------------------------------------------------------------------

def sync(path):
    """Have the disk hold a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path, content):
    """Write content as JSON under a new name, sync, then rename: the file is whole or not there."""
    part = Path(f"{path}.part{os.getpid()}")
    part.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    sync(part)
    os.replace(part, path)


def read_json(path, way_out):
    """The JSON object in a file of ours; InputError if it is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected the JSON that a run wrote; {way_out}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: {type(content).__name__} found, expected the JSON object that a run wrote; {way_out}")
    return content


def write_record(path, content):
    """write_json of a JSON object with a checksum of itself."""
    content = json.loads(json.dumps(content, default=str))
    write_json(path, {**content, "checksum": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()})


def read_record(path, way_out):
    """What write_record wrote; InputError if it was altered."""
    content = read_json(path, way_out)
    found = content.pop("checksum", None)
    if found != hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest():
        raise InputError(f"{path}: not what a run wrote (its checksum differs); {way_out}")
    return content


def checksum(path):
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder):
    """{relative name: sha256} of all files below a folder."""
    return {str(path.relative_to(folder)): checksum(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def publish(part, folder):
    """Give a folder that was written under another name its own, when the disk holds all of it."""
    for path in sorted(part.rglob("*"), reverse=True):
        sync(path)
    sync(part)
    part.rename(folder)
    sync(folder.parent)


@contextmanager
def lock(path, say=None, busy=None):
    """Hold a lock file; the operating system frees it with the process, however that ends. If another process holds it:
    InputError with the text `busy`, or else say so and wait."""
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout:
        if busy:
            raise InputError(busy) from None
        say(f"waiting for another run, which computes the same ({path})")
        while True:
            try:
                held.acquire(timeout=0.5)
                break
            except Timeout:
                stop_if_asked()
    try:
        yield
    finally:
        held.release()


# --- states -------------------------------------------------------------------------------------------------------------

def prefixed(prefix, tensors):
    """{prefix.name: tensor}."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix, tensors):
    """What prefixed put there."""
    return {name[len(prefix) + 1:]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def training_tensors(module, optimizer):
    """Weights, gradients that wait for a step, and what the optimizer remembers."""
    gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    remembered = {f"{number}.{name}": value for number, entry in optimizer.state_dict()["state"].items() for name, value in entry.items()}
    return {**prefixed("module", module.state_dict()), **prefixed("gradient", gradients), **prefixed("optimizer", remembered)}


def restore_training(module, optimizer, tensors):
    """Put back what training_tensors gave."""
    module.load_state_dict(under("module", tensors))
    gradients = under("gradient", tensors)
    for name, parameter in module.named_parameters():
        parameter.grad = gradients[name].to(parameter.device) if name in gradients else None
    state = {}
    for name, value in under("optimizer", tensors).items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_tensors():
    """torch's global generators, which dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return prefixed("random", states)


def restore_random(tensors):
    """Put back what random_tensors gave. On another kind of device, dropout there goes on from its own generator."""
    states = under("random", tensors)
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


class Saver:
    """The state of one phase: when it is saved, and where. folder: of the state; identity: what the state belongs to, a hash;
    seconds: longest time between two saves; say: for lines in the log."""

    def __init__(self, folder, identity, seconds, say):
        self.folder, self.identity, self.seconds, self.say = Path(folder), identity, seconds, say
        self.began = self.last = time.perf_counter()
        self.cost, self.saves, self.number, self.found = 0.0, 0, 0, None

    def newest(self):
        """Path of the newest state's .json file; None if there is none."""
        return max(self.folder.glob("state-*.json"), key=lambda path: int(path.stem.split("-")[1]), default=None)

    def values(self):
        """What the newest state says, without its tensors; None if there is none of this identity. InputError if it is damaged."""
        path = self.newest()
        if self.found and path == self.found[0]:  # read and checked already
            return self.found[1]
        if path is None:
            return None
        record = read_record(path, f"remove {self.folder} to begin this phase again")
        if record["identity"] != self.identity:
            self.say(f"{self.folder}: the state there is of other code, versions, settings or devices: this phase begins again")
            self.clear()
            return None
        tensors = path.with_suffix(".safetensors")
        if not tensors.is_file() or checksum(tensors) != record["sha256"]:
            raise InputError(f"{tensors}: not the bytes that were saved (sha256); remove {self.folder} to begin this phase again")
        self.found = path, record["values"]
        return record["values"]

    def load(self):
        """(tensors, values) of the newest state, or None. From here on the phase is at work. InputError if it is damaged."""
        self.began = self.last = time.perf_counter()
        values = self.values()
        if values is None:
            return None
        path, self.found = self.found[0], None
        self.number = int(path.stem.split("-")[1])
        self.say(f"going on from {path}")
        # copies: tensors in a mapped file lie at odd addresses, where a matrix product may round another way
        return {name: tensor.clone() for name, tensor in load_file(path.with_suffix(".safetensors")).items()}, values

    def consider(self, collect, at_end=False):
        """Save collect() = (tensors, values) if it is time, and end the run if a signal asked for it."""
        now = time.perf_counter()
        due = now - self.last >= self.seconds or (at_end and self.cost <= SHARE * (now - self.began))
        if due or requested:
            self.save(*collect())
        stop_if_asked()

    def save(self, tensors, values):
        """Write a new state, then remove the older ones."""
        start = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.number += 1
        path, part = self.folder / f"state-{self.number}.safetensors", self.folder / f"part{os.getpid()}"
        seen, held = set(), {}
        for name, tensor in tensors.items():
            tensor = tensor.detach().cpu().contiguous()
            held[name] = tensor.clone() if tensor.data_ptr() in seen else tensor  # safetensors wants every tensor in a place of its own
            seen.add(tensor.data_ptr())
        try:
            save_file(held, part)
        except SafetensorError as error:  # how the library says that the disk is full
            part.unlink(missing_ok=True)
            raise OSError(f"{part}: cannot be written ({error}); the state before it is whole") from None
        sync(part)
        record = {"identity": self.identity, "sha256": checksum(part), "values": values}
        os.replace(part, path)
        write_record(path.with_suffix(".json"), record)
        sync(self.folder)
        for old in self.folder.iterdir():
            if old.stem != path.stem:
                old.unlink()
        self.saves += 1
        self.last = time.perf_counter()
        self.cost += self.last - start

    def clear(self):
        """The phase is finished, or begins again."""
        shutil.rmtree(self.folder, ignore_errors=True)


class NoSaver:
    """Saves nothing: for loops that are not part of a run."""

    def load(self):
        return None

    def consider(self, collect, at_end=False):
        pass

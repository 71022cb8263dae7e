"""The state of an unfinished phase: what a loop must remember, as data, and when it is saved.

A loop keeps everything that must survive a kill in one dictionary of objects and hands it to a Saver. What an
object is made of is found out by pack: tensors go to the safetensors file, arrays and numbers to the JSON, an
object with state_dict() and load_state_dict() (torch's convention) by these, a dataclass by its fields.

A state on disk is a pair of files in a folder of its own: state-<n>.safetensors, and state-<n>.json, written
after it, with everything else and the checksum of the first. Each is written to another name, synced and
renamed, and an older pair is removed only when a newer one is whole, so that a good state is there whenever
the process ends.
"""
import math
import os
import shutil
import time
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bookkeeping.errors import InputError, TrainingError
from bookkeeping.files import checksum, read_record, sync, write_record
from bookkeeping.signals import requested, stop_if_asked

SHARE = 0.01  # of the time since a phase began that saving at ends of epochs and episodes may take
DEAREST = 0.02  # of the time that saving every so many seconds may take


# --- objects as data ----------------------------------------------------------------------------------------

def pack(value, name, tensors):
    """`value` as JSON; its tensors go into `tensors` under names that begin with `name`."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if hasattr(value, "state_dict"):
        return pack(value.state_dict(), name, tensors)
    if is_dataclass(value):
        return pack({field.name: getattr(value, field.name) for field in fields(value)}, name, tensors)
    if isinstance(value, dict):
        return {"dict": [[key, pack(entry, f"{name}.{key}", tensors)] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        return [pack(entry, f"{name}.{number}", tensors) for number, entry in enumerate(value)]
    return value


def unpack(packed, tensors):
    """What pack was given: plain values, with tensors on the host."""
    if isinstance(packed, list):
        return [unpack(entry, tensors) for entry in packed]
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        # a copy: tensors in a mapped file lie at odd addresses, where a matrix product may round another way
        return tensors[packed["tensor"]].clone()
    if "array" in packed:
        return np.asarray(packed["array"], dtype=packed["dtype"])
    return {key: unpack(entry, tensors) for key, entry in packed["dict"]}


def on_device(value, device):
    """A plain value with its tensors on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [on_device(entry, device) for entry in value]
    if isinstance(value, dict):
        return {key: on_device(entry, device) for key, entry in value.items()}
    return value


def put_back(target, value, device):
    """Make `target` what it was when `value` was packed. What `places_itself` is given tensors on the host:
    a GPU may have no room for a second copy of them."""
    if isinstance(target, dict):
        for name, entry in value.items():
            put_back(target[name], entry, device)
        return
    if not getattr(target, "places_itself", False):
        value = on_device(value, device)
    if hasattr(target, "load_state_dict"):
        target.load_state_dict(value)
    else:
        for name, entry in value.items():
            setattr(target, name, entry)


@dataclass
class Trained:
    """A module and the optimizer that trains it, with gradients that wait for a step."""
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    places_itself = True

    def state_dict(self):
        gradients = {name: parameter.grad for name, parameter in self.module.named_parameters()
                     if parameter.grad is not None}
        return {
            "module": self.module.state_dict(), "gradients": gradients,
            "optimizer": self.optimizer.state_dict()
        }

    def load_state_dict(self, state):
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, parameter in self.module.named_parameters():
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)


class GlobalGenerators:
    """torch's global generators, which dropout draws from. On another kind of device than the one that the
    state was saved on, dropout goes on from that device's own generator."""

    def state_dict(self):
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        return {"cpu": torch.get_rng_state(), **({"cuda": torch.cuda.get_rng_state()} if on_gpu else {})}

    def load_state_dict(self, states):
        torch.set_rng_state(states["cpu"].cpu())
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"].cpu())


class Meter:
    """Figures of the steps of the epoch or episode under way, and whether they and the weights are finite.

    module: whose weights are looked at. steps: a {name: scalar tensor} each, without the graphs that they
    came from, which would stay in memory. They are fetched from the device once, in means().
    """

    def __init__(self, module):
        self.module, self.where, self.rate, self.steps, self.examples = module, "", 0.0, [], []

    def begin(self, where, rate):
        """Forget the steps before. where, rate (learning rate): for messages."""
        self.where, self.rate, self.steps, self.examples = where, rate, [], []

    def add(self, figures, split, indices):
        """Take a step's figures; split and indices say what it trained on. Returns whether all of them are
        finite, as far as they can be looked at without waiting for a GPU."""
        self.steps.append({name: value.detach() for name, value in figures.items()})
        self.examples.append((split, indices))
        return all(value.device.type != "cpu" or bool(value.isfinite()) for value in self.steps[-1].values())

    def means(self):
        """{name: mean over the steps}. TrainingError, with the step's examples and the way out, at the first
        figure that is not finite, or if the last step left weights that are not."""
        table = self.table()
        bad = (~table.isfinite()).nonzero()
        if len(bad):
            step, column = bad[0].tolist()
            self.fail(step, f"{list(self.steps[0])[column]} is {table[step, column].item()}")
        if not weights_are_finite(self.module):
            self.fail(len(self.steps) - 1, "weights after it are not finite")
        return dict(zip(self.steps[0], table.mean(0).tolist(), strict=True))

    def table(self):
        """(steps, figures) float64 on the CPU."""
        return torch.stack([torch.stack([value.double()
                                         for value in step.values()])
                            for step in self.steps]).cpu()

    def fail(self, step, what):
        split, indices = self.examples[step]
        examples = ", ".join(str(split.idx[number]) for number in indices)
        raise TrainingError(
            f"{self.where}, step {step + 1}: {what} at learning rate {self.rate:g}; examples of"
            f" {split.task.name} {split.name}: idx {examples}. The last saved state, from before this step,"
            " and all finished phases are kept: lower the rate or --max_grad_norm and use another"
            " --output_dir, or mend the data or the checkpoint")

    def state_dict(self):
        if self.steps:
            self.means()  # a state that is not finite is not worth keeping
        return {"where": self.where, "rate": self.rate, "steps": self.steps}

    def load_state_dict(self, state):
        self.where, self.rate, self.steps = state["where"], state["rate"], state["steps"]
        self.examples = [(None, [])] * len(self.steps)  # they were finite when they were saved


def weights_are_finite(module):
    """Whether all weights are: the largest of each tensor's is."""
    largest = torch._foreach_norm([parameter.detach() for parameter in module.parameters()], ord=math.inf)
    return bool(torch.stack(largest).isfinite().all())


# --- states on disk -----------------------------------------------------------------------------------------

class Saver:
    """The state of one phase: when it is saved, and where. folder: of the state; identity: what the state
    belongs to, a hash; seconds: longest time between two saves; say: for lines in the log; run: the name of
    the run that saves, which the state tells."""

    def __init__(self, folder, identity, seconds, say, run=None):
        self.folder, self.identity, self.seconds, self.say = Path(folder), identity, seconds, say
        self.run = run
        self.began = self.last = time.perf_counter()
        self.cost, self.saves, self.number, self.found, self.newest_cost = 0.0, 0, 0, None, 0.0

    def newest(self):
        """(path, content) of the newest state's .json file; None if there is none of this identity.
        InputError if it is damaged."""
        path = max(self.folder.glob("state-*.json"), key=lambda path: int(path.stem.split("-")[1]),
                   default=None)
        if path is None:
            return None
        if self.found and path == self.found[0]:  # read and checked already
            return self.found
        record = read_record(path, f"remove {self.folder} to begin this phase again")
        if record["identity"] != self.identity:
            self.say(
                f"{self.folder}: the state there is of other code, versions, settings or devices: this phase "
                "begins again")
            self.clear()
            return None
        tensors = path.with_suffix(".safetensors")
        if not tensors.is_file() or checksum(tensors) != record["sha256"]:
            raise InputError(
                f"{tensors}: not the bytes that were saved (sha256); remove {self.folder} to begin this "
                "phase again")
        self.found = path, record["values"]
        return self.found

    def restore(self, state, device="cpu"):
        """Put the newest state, if there is one, back into the objects of `state`. From here on the phase is
        at work. InputError if it is damaged."""
        self.began = self.last = time.perf_counter()
        found = self.newest()
        if found is None:
            return
        (path, values), self.found = found, None
        self.number = int(path.stem.split("-")[1])
        self.say(f"going on from {path}")
        put_back(state, unpack(values, load_file(path.with_suffix(".safetensors"))), device)

    def consider(self, state, at_end=False):
        """Save `state`, a dictionary of objects, if it is time, and end the run if a signal asked for it.
        at_end: of an epoch or episode."""
        now = time.perf_counter()
        # a state that takes long to write is written less often; 0 seconds: whatever it takes
        seconds = self.seconds and max(self.seconds, self.newest_cost / DEAREST)
        due = now - self.last >= seconds or (at_end and self.cost <= SHARE * (now - self.began))
        if due or requested:
            self.save(state)
        stop_if_asked()

    def save(self, state):
        """Write a new state, then remove the older ones."""
        tensors = {}
        values = pack(state, "state", tensors)
        start = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.number += 1
        path, part = self.folder / f"state-{self.number}.safetensors", self.folder / f"part{os.getpid()}"
        seen, held = set(), {}
        for name, tensor in tensors.items():
            tensor = tensor.detach().cpu().contiguous()
            # safetensors wants every tensor in a place of its own
            held[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
            seen.add(tensor.data_ptr())
        try:
            save_file(held, part)
        except SafetensorError as error:  # how the library says that the disk is full
            part.unlink(missing_ok=True)
            raise OSError(f"{part}: cannot be written ({error}); the state before it is whole") from None
        sync(part)
        record = {"identity": self.identity, "run": self.run, "sha256": checksum(part), "values": values}
        os.replace(part, path)
        write_record(path.with_suffix(".json"), record)
        sync(self.folder)
        for old in self.folder.iterdir():
            if old.stem != path.stem:
                old.unlink()
        self.saves += 1
        self.last = time.perf_counter()
        self.newest_cost = self.last - start
        self.cost += self.newest_cost

    def clear(self):
        """The phase is finished, or begins again."""
        shutil.rmtree(self.folder, ignore_errors=True)


class NoSaver:
    """Saves nothing: for loops that are not part of a run. Whoever wants to watch a loop gives it one of
    these with a `consider` of his own, which sees the loop's state after every step."""

    def restore(self, state, device="cpu"):
        pass

    def consider(self, state, at_end=False):
        pass

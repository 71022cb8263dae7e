"""The lab's package at work, watched: what scripts/benchmark.py --peer starts in the package's environment.

    PYTHON -I scripts/lib/peer_side.py SPECIFICATION

It imports the standard library, torch, transformers and mpdistil alone; Watch also counts our side's work.
Nothing of the package is changed. Its metrics come from a hub through the module `evaluate`: offline that
module is a stand-in, which computes accuracy and takes the moment at which an evaluation ends.

A side is a process. It writes a line of JSON whenever it has done something, waits for a line before it goes
on, and what the program prints besides goes to a log.
"""
import json
import os
import sys
import time
import types

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import BertModel

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def now():
    return {clock: read() for clock, read in CLOCKS.items()}


def between(start, end):
    """Seconds, by clock."""
    return {clock: end[clock] - start[clock] for clock in CLOCKS}


class Watch:
    """What this process does between two stops: seconds, and how much. Clocks: wall, the seconds that pass,
    and cpu, those that this process is at work, which others on the machine disturb less.

    rows: by the encoder's layers, rows that it was run on until the last optimizer step; trained: those with
    gradients; tokens: of all rows, padding included; evaluated: rows after the last step. steps and
    stepping_s: of the optimizer with the most weights, which is the model's, not the policy's.
    """

    def __init__(self, log):
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        self.before_forward = lambda grad: None
        self.clear()
        run = BertModel.forward

        def forward(model, *given, **named):
            self.before_forward(torch.is_grad_enabled())
            ids = named["input_ids"] if "input_ids" in named else given[0]
            self.note(model.config.num_hidden_layers, ids)
            return run(model, *given, **named)

        forward.__wrapped__ = run
        BertModel.forward = forward
        register_optimizer_step_pre_hook(lambda *_: setattr(self, "step_began", now()))
        register_optimizer_step_post_hook(lambda optimizer, *_: self.stepped(optimizer))

    def clear(self):
        self.optimizers, self.rows, self.late, self.trained, self.tokens = {}, {}, {}, 0, 0
        self.metric_at = None
        self.began = self.last_step = now()

    def note(self, layers, ids):
        self.late[layers] = self.late.get(layers, 0) + len(ids)
        self.tokens += ids.numel()
        if torch.is_grad_enabled():
            self.trained += len(ids)

    def stepped(self, optimizer):
        """An optimizer has made a step: what ran before it was training."""
        self.last_step = now()
        size = sum(weights.numel() for group in optimizer.param_groups for weights in group["params"])
        self.optimizers.setdefault(size, []).append(between(self.step_began, self.last_step))
        for layers, rows in self.late.items():
            self.rows[layers] = self.rows.get(layers, 0) + rows
        self.late = {}

    def scored(self):
        """An evaluation has ended."""
        self.metric_at = now()

    def stop(self, kind, phase=None):
        """Tell what was done since the last stop, and wait for the turn."""
        ended, evaluated_at = now(), self.metric_at or self.last_step
        updates = self.optimizers[max(self.optimizers)] if self.optimizers else []
        seconds = {clock: {
            "seconds": between(self.began, ended)[clock],
            "stepping_s": sum(update[clock] for update in updates),
            "evaluating_s": between(self.last_step, evaluated_at)[clock],
            "after_s": between(evaluated_at, ended)[clock] if self.metric_at else 0.0} for clock in CLOCKS}
        self.tell(kind=kind, phase=phase, **seconds, steps=len(updates),
                  evaluations=int(self.metric_at is not None), rows=self.rows, trained=self.trained,
                  tokens=self.tokens, evaluated=self.late)
        self.wait()

    def start(self):
        """Tell that the work is about to begin, and what came before it took, and wait for the turn. What
        passes before this process can measure is the parent's to know."""
        self.tell(kind="start", phase=None, wall={}, cpu={"seconds": time.process_time()})
        self.wait()

    def tell(self, **record):
        self.out.write(json.dumps(record) + "\n")

    def wait(self):
        if not sys.stdin.readline():
            sys.exit("error: nobody waits for this process any longer")
        self.clear()


def peak_memory_bytes():
    """Largest resident memory of this process; None where the system does not say. (getrusage's counts what
    the parent held at the start, too.)"""
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


def stand_in(watch):
    """The module `evaluate`, with accuracy alone."""
    class Accuracy:
        def compute(self, predictions, references):
            right = sum(int(one == other) for one, other in zip(predictions, references))
            watch.scored()
            return {"accuracy": right / len(references)}

    def load(name):
        if name != "accuracy":
            sys.exit(f"error: metric {name} asked for; the stand-in has accuracy alone")
        return Accuracy()

    module = types.ModuleType("evaluate")
    module.load = load
    return module


class Rounds:
    """Where the package's epochs and episodes end: at the first pass of an encoder after an evaluation, or,
    in phase 4, which does not evaluate every time, at the first pass with gradients after the policy's step.
    So what it saves after an evaluation belongs to the round. counts: {phase: rounds}, in order."""

    def __init__(self, watch, counts):
        self.watch, self.left = watch, [name for name in counts for _ in range(counts[name])]

    def before_forward(self, grad):
        watch = self.watch
        if self.left[0] == "mpdistil":
            over = grad and len(watch.optimizers) == 2
        else:
            over = watch.metric_at is not None
        if over:
            watch.stop("round", self.left.pop(0))


def main(path):
    with open(path, encoding="utf-8") as file:
        spec = json.load(file)
    watch = Watch(spec["log"])
    torch.set_num_threads(spec["threads"])
    sys.modules["evaluate"] = stand_in(watch)
    from mpdistil import MPDistil, TrainingConfig
    from torch.utils.data import DataLoader, TensorDataset
    data = torch.load(spec["data"], weights_only=True)

    def loader(name, **more):
        return DataLoader(TensorDataset(*data[name]), batch_size=spec["batch_size"], **more)

    model = MPDistil(spec["task"], num_labels=spec["num_labels"], metric="accuracy", device="cpu",
                     teacher_model=spec["encoder"], student_model=spec["encoder"],
                     student_layers=spec["student_layers"], output_dir=spec["output_dir"])
    config = TrainingConfig(**spec["config"], output_dir=spec["output_dir"], device="cpu")
    rounds = Rounds(watch, spec["rounds"])

    def begin(grad):
        watch.start()
        watch.before_forward = rounds.before_forward

    watch.before_forward = begin
    model.train(loader("train", shuffle=True), loader("dev"), config=config,
                meta_loaders={name: loader(name, shuffle=True) for name in spec["others"]})
    watch.before_forward = lambda grad: None
    watch.stop("round", rounds.left.pop(0))
    if rounds.left:
        sys.exit(f"error: rounds not seen: {rounds.left}")
    if "test" in data:
        model.predict(loader("test"))
    watch.stop("end")
    watch.tell(kind="done", peak_memory_bytes=peak_memory_bytes(), torch=torch.__version__)


if __name__ == "__main__":
    main(sys.argv[1])

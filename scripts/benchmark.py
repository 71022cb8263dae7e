"""Time the method as it is usually run, as it runs here, and the bare training step, on one machine, in turn.

    python scripts/benchmark.py --task CB --data_dir D --teacher_model M [--student_model M] --json OUT

All other flags of main_superglue.py are taken too, and decide how long the run is that the figures are
extrapolated to. Processes of which one works at a time hold the same models and are given the same batches:

- naive: everything padded to --max_seq_length, the teacher run at every step that asks for it, evaluation in
  batches of 8, torch's default AdamW, float32. The loops and losses are the project's own.
- ours: what main_superglue.py does; and in bfloat16, where the device multiplies that in hardware and ours is
  not asked to (column "bf16").
- bare: forward, backward and fused AdamW step of the model that a phase trains, on the same batches as ours,
  and nothing else.

A round is an epoch or episode of --steps training steps; the first one is dropped, medians of the others
count. It is measured where a loop shows its state to its saver: its steps, from the order of its batches to
the last of them, and the rest, an evaluation and little else. A phase's seconds are extrapolated: median step
times number of steps, and likewise evaluations, predictions of test and, once, the frozen encoders' outputs.
What is written to disk besides (states, artefacts) is not in the figures: result.json of a run says what
saving states took. Splits of more than 256 examples are evaluated in part, and the time scaled. The naive run
uses --precision fp32 whatever is asked of ours. The column is the table's eleven rows: teacher, student, kd,
two meta-teachers and six runs of phase 4, which ours lets run --jobs side by side; the undistilled student is
counted as a distilled one.

With --baselines the methods to compare with are measured too, each in a process of its own, in turn with
kd's step: seconds of a step of the first part of the method's training, which is the dearer one, and the
largest memory of the process.

With --peer PYTHON all this is left out, and ours is measured beside the lab's package, mpdistil 0.1.0, which
the environment of PYTHON has (scripts/lib/peer.py says how). Its metrics come from a hub; a stand-in for the
module `evaluate`, with accuracy alone, lets it run offline.
"""
import argparse
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from lib import ROOT, peer

from arguments import parse_arguments, resolve_protocol
from baselines import METHODS
from bookkeeping.errors import InputError, TrainingError
from bookkeeping.files import write_json
from bookkeeping.machine import (
    cpu_name,
    keep_freed_memory,
    peak_memory_bytes,
    resolve_precision,
    set_arithmetic,
)
from bookkeeping.states import Trained
from curriculum import CurriculumTraining, Policy, QuizBatches, train_curriculum
from data_utils import RandomStreams, Split, resolve_settings
from main_superglue import Experiment, Teacher, read_inputs, train_by_method
from meta_policy import Evaluator, Training, distill_student, train_meta_teacher, train_teacher
from models import Encoder, FrozenEncoder, Heads, save_model

PHASES = ("teacher", "kd", "meta_teacher", "mpdistil")
SIDES = ("naive", "ours", "bare")
# of phase 4, in the eleven rows: four variants, two without a curriculum, which in `paper` are one run
COLUMN_RUNS = 6
COLUMN_STARTS = 8  # of the program, by scripts/sweep.py: the shared phases with either loss come first
EVALUATED = 256
PLAIN, CLOSER = "round", "closer look"  # what a process is told to do next


# --- the usual way ------------------------------------------------------------------------------------------

class RunningEncoder(FrozenEncoder):
    """A FrozenEncoder that keeps nothing: the encoder is run at every question, on the very batch that is
    asked for."""

    def outputs(self, split, indices=None, layers=0):
        if indices is None:
            self.forget()
            return super().outputs(split, None, layers)
        self.encoder.eval()
        with torch.no_grad():
            pooled, states = self.encoder(split.batch(indices, self.device), layers > 0)
        return pooled, states[:layers] if layers else None


def use_default_adamw(state):
    """Give what a loop trains an optimizer as torch picks it by itself. state: as a saver is shown it."""
    for part in state.values():
        if isinstance(part, dict):
            use_default_adamw(part)
        elif isinstance(part, Trained):
            names, groups = ("params", "lr", "weight_decay"), part.optimizer.param_groups
            part.optimizer = torch.optim.AdamW([{name: group[name] for name in names} for group in groups])


# --- rounds -------------------------------------------------------------------------------------------------

class Rounds(RandomStreams):
    """What a loop draws from, which makes a round of each of its epochs or episodes, and what it shows its
    state to, which measures the round and then waits for the word to begin the next.

    tasks: the actions take turns, for what they cost, so that each round has the same mixture. counts: how
    often the phase does what is measured. watch: the Stopwatch of a closer look. at_begin(state),
    at_step(state): what a side does besides. scale: by which an evaluation must be multiplied. found: further
    figures of the round.
    """

    def __init__(self, pipe, device, seed, steps, tasks=1):
        super().__init__(seed, "benchmark", "own_generators")
        self.pipe, self.device, self.steps, self.tasks = pipe, device, -(-steps // tasks) * tasks, tasks
        self.counts, self.watch, self.scale, self.turn = {}, None, 1.0, 0
        self.at_begin = self.at_step = lambda state: None

    def wait(self):
        self.told, self.found, self.done = self.pipe.recv(), {}, 0
        self.start = self.now()

    def now(self):
        synchronize(self.device)
        return time.perf_counter()

    # as streams

    def batches(self, size, batch_size, *purpose, count=None):
        if purpose != ("order",):
            return super().batches(size, batch_size, *purpose)
        order = super().batches(size, batch_size, *purpose, count=self.steps)
        if self.told == CLOSER and self.watch:
            self.watch.start()
        self.began = self.now()
        return order

    def action(self, probabilities=None):
        self.turn += 1
        return (self.turn - 1) % self.tasks

    def pick(self, count, *purpose):
        return self.action() if purpose == ("first_action",) else super().pick(count, *purpose)

    # as a saver

    def restore(self, state, device="cpu"):
        self.at_begin(state)
        self.pipe.send(self.counts)
        self.wait()

    def consider(self, state, at_end=False):
        if at_end:
            rest = self.began - self.start + (self.now() - self.ended) * self.scale
            step_s = (self.ended - self.began) / self.steps
            self.pipe.send({**self.found, "step_s": step_s, "evaluation_s": rest})
            return self.wait()
        self.at_step(state)
        self.done += 1
        if self.done == self.steps:
            self.ended = self.now()
            if self.told == CLOSER and self.watch:
                parts = self.watch.stop()
                self.found["parts"] = {name: seconds / self.steps for name, seconds in parts.items()}


class Stopwatch:
    """Seconds of each part of the work, each without the parts inside it. Python itself says when a function
    begins and ends (sys.setprofile), which takes time too, most where functions are short: the shares are
    what counts. teacher: which Encoder is the teacher's."""

    def __init__(self, device, teacher):
        self.device, self.teacher = device, teacher
        self.parts = {unwrap(function).__code__: name for function, name in (
            (Encoder.forward, "encoder"), (Heads.forward, "heads"), (Split.batch, "data"),
            (FrozenEncoder.outputs, "kept outputs"),
            (torch.Tensor.backward, "backward"), (torch.nn.utils.clip_grad_norm_, "clipping"),
            (torch.optim.AdamW.step, "optimizer"))}

    def start(self):
        self.seconds, self.under_way, self.last = {}, ["other"], time.perf_counter()
        sys.setprofile(self.notice)

    def stop(self):
        sys.setprofile(None)
        self.account()
        return self.seconds

    def notice(self, frame, event, argument):
        name = self.parts.get(frame.f_code)
        if name and event == "call":
            if name == "encoder":
                name = f"{'teacher' if frame.f_locals['self'] is self.teacher else 'student'}'s encoder"
            self.account()
            self.under_way.append(name)
        elif name and event == "return":
            self.account()
            self.under_way.pop()

    def account(self):
        """The time since the last change belongs to the part under way."""
        synchronize(self.device)
        now, name = time.perf_counter(), self.under_way[-1]
        self.seconds[name], self.last = self.seconds.get(name, 0.0) + now - self.last, now


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


# --- one side, in a process of its own ----------------------------------------------------------------------

class Quiet:
    """A log, with its bar, that says and keeps nothing."""

    def say(self, *words, **values):
        pass

    event = trajectory = update = set_postfix = say

    def progress(self, phase, total):
        return nullcontext(self)


def part_of_split(split):
    """At most EVALUATED examples, spread evenly over the split, and by how much their time must be scaled."""
    if len(split) <= EVALUATED:
        return split, 1.0
    positions = np.linspace(0, len(split) - 1, EVALUATED).astype(int)
    rows = split.rows(positions)

    def cut(flat):
        pieces = [slice(*split.offsets[row:row + 2]) for row in rows]
        return None if flat is None else np.concatenate([flat[piece] for piece in pieces])

    part = replace(split, idx=[split.idx[n] for n in positions], where=[split.where[n] for n in positions],
                   labels=split.labels[positions], input_ids=cut(split.input_ids),
                   token_type_ids=cut(split.token_type_ids),
                   offsets=np.concatenate([[0], np.cumsum(np.diff(split.offsets)[rows])]))
    return part, len(split) / EVALUATED


def tokens_of(split, indices):
    """Tokens of these examples, padding not counted."""
    return int(np.diff(split.offsets)[split.rows(indices)].sum())


class Side:
    """One side's models and data. A phase is a method, which ends when all its rounds are measured. steps: of
    a round; count: of rounds."""

    def __init__(self, pipe, kind, argv, folder, steps, count, threads):
        torch.set_num_threads(threads)
        start = time.perf_counter()
        usual = ["--eval_batch_size", "8", "--precision", "fp32", "--set", "padding=max_length"]
        more = {"naive": usual, "bf16": ["--precision", "bf16"]}.get(kind, [])
        kind = "ours" if kind == "bf16" else kind
        args = self.args = parse_arguments([*argv, *more])
        args.precision = resolve_precision(args.device, args.precision)
        if kind == "naive":
            args.gradient_checkpointing, args.nondeterministic = False, True
        inputs = read_inputs(args, resolve_settings(args))
        inputs.checkpoints.probe(args, inputs.protocol)
        if inputs.device.type == "cpu" and kind != "naive":
            keep_freed_memory()
        set_arithmetic(inputs.device, args.precision, args.nondeterministic)
        self.lab = Experiment(inputs, Quiet(), None)
        self.train, self.quiz = inputs.data["train"], inputs.data["quiz"]
        self.pipe, self.kind, self.steps, self.count, self.passes = pipe, kind, steps, count, 0
        self.folder = Path(folder)
        self.folder.mkdir()
        pipe.send(time.perf_counter() - start)

    def measure(self, phase):
        """Run a phase in rounds."""
        args, inputs = self.args, self.lab.inputs
        self.actions = [inputs.task.name] if args.curriculum == "main_task" else list(inputs.quiz)
        tasks = len(self.actions) if phase == "mpdistil" else 1
        self.rounds = Rounds(self.pipe, self.lab.device, args.seed, self.steps, tasks)
        passes, self.split, self.batch_size = {
            "teacher": (args.teacher_epochs, self.train, args.train_dataloader_size),
            "kd": (args.epochs, self.train, args.train_dataloader_size),
            "meta_teacher": (args.meta_epochs, self.quiz, args.val_dataloader_size),
            "mpdistil": (args.num_episodes, self.quiz, args.val_dataloader_size),
            **{method: (args.epochs, self.train, args.train_dataloader_size) for method in args.baselines},
        }[phase]
        evaluated = sum(map(len, inputs.evaluated.values()))
        predicted = sum(len(inputs.data[name]) for name in inputs.answered
                        if name not in inputs.evaluated) / evaluated
        self.rounds.counts = {"steps": passes * -(-len(self.split) // self.batch_size),
                              "evaluations": passes + predicted, "once_s": 0.0}
        if self.kind == "naive":
            self.rounds.at_begin = use_default_adamw
        self.method(phase) if phase in args.baselines else getattr(self, phase)()

    # what the phases share

    def around(self, predict_split, in_part=True):
        """What a loop works with besides: evaluator, of a part of large splits, streams, log and saver. The
        evaluator keeps something whatever the scores are."""
        parts = {name: part_of_split(split) if in_part else (split, 1.0)
                 for name, split in self.lab.inputs.evaluated.items()}
        self.rounds.scale = max(scale for _, scale in parts.values())
        splits = {name: split for name, (split, _) in parts.items()}
        evaluator = Evaluator(predict_split, splits, self.args.select_on, "main_metric")
        return evaluator, self.rounds, Quiet(), self.rounds

    @contextmanager
    def once(self):
        """What is done in here is done once a run, by ours."""
        start = time.perf_counter()
        yield
        self.rounds.counts["once_s"] += time.perf_counter() - start

    def frozen_teacher(self, *wanted):
        """The teacher as this side has it: heads, and outputs by example. wanted: (split, layers) that ours
        computes beforehand."""
        model = self.lab.new_teacher()
        self.rounds.watch = Stopwatch(self.lab.device, model.encoder if self.kind == "naive" else None)
        if self.kind == "naive":
            return Teacher(model.heads, RunningEncoder(model.encoder, 8, self.lab.device), None)
        model.encoder.register_forward_hook(
            lambda module, inputs, output: setattr(self, "passes", self.passes + len(output[0]))
        )
        encoders = [model.encoder]
        outputs = self.lab.stored_outputs(SimpleNamespace(folder=self.folder), encoders.pop)
        with self.once():
            outputs.prepare(*wanted)
        encoders.clear()  # no longer in memory, as in a run
        return Teacher(model.heads, outputs, None)

    def bare(self, module, learning_rate, batches=None, loss_of=None):
        """Rounds of forward, backward, fused AdamW and nothing else. batches(): (split, indices) of a round;
        default: as phases 1 to 3 are given them. loss_of(split, indices): a scalar; default: CE of a
        Model."""
        rounds = self.rounds

        def order():
            return [(self.split, n) for n in rounds.batches(len(self.split), self.batch_size, "order")]

        def loss_of_model(split, indices):
            batch = split.batch(indices, self.lab.device)
            return split.task.rules.loss(module(split.task.name, batch)[0], batch.labels)

        batches, loss_of = batches or order, loss_of or loss_of_model
        optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, fused=True)
        module.train()
        rounds.restore({})
        for _ in range(self.count):
            tokens = 0
            for split, indices in batches():
                loss_of(split, indices).backward()
                optimizer.step()
                optimizer.zero_grad()
                tokens += tokens_of(split, indices)
                rounds.consider({})
            rounds.found["tokens"] = tokens / rounds.steps
            rounds.consider({}, at_end=True)

    # the phases

    def teacher(self):
        args, model = self.args, self.lab.new_teacher()
        if self.kind == "bare":
            return self.bare(model, args.teacher_learning_rate)
        self.rounds.watch = Stopwatch(self.lab.device, model.encoder)
        settings = self.lab.training(Training, self.count, self.batch_size, args.teacher_learning_rate)
        train_teacher(model, self.train, settings, *self.around(self.lab.predictor(model)))

    def kd(self):
        args, student = self.args, self.lab.new_student()
        if self.kind == "bare":
            return self.bare(student, args.learning_rate)
        teacher = self.frozen_teacher((self.train, max(self.lab.compared_layers(args.beta), default=0)))
        settings = replace(self.lab.distillation(args.alpha, args.beta, args.temperature), epochs=self.count)
        distill_student("kd", student, teacher.heads, teacher.outputs, self.train, settings,
                        *self.around(self.lab.predictor(student)))

    def meta_teacher(self):
        args, data, quiz = self.args, self.lab.inputs.data, self.quiz
        if self.kind == "bare":
            heads, task = self.lab.new_teacher().heads, quiz.task.name
            labels = quiz.labels.to(self.lab.device)
            pooled = torch.randn(len(quiz) * quiz.task.rows, heads.linear[task].in_features).to(labels.device)
            return self.bare(heads, args.meta_learning_rate, loss_of=lambda split, indices:
                             quiz.task.rules.loss(heads(task, pooled[split.rows(indices)]), labels[indices]))
        read = [(data[name], 0) for name in ("quiz", *self.lab.inputs.answered)]
        teacher, student = self.frozen_teacher(*read), self.lab.new_student()
        kind = RunningEncoder if self.kind == "naive" else FrozenEncoder
        student_outputs = kind(student.encoder, self.lab.eval_batch_size, self.lab.device)
        if self.kind == "ours":
            with self.once():
                student_outputs.outputs(quiz)
        settings = replace(self.lab.meta_training(), epochs=self.count)
        train_meta_teacher(teacher.heads, teacher.outputs, student_outputs, quiz, settings,
                           *self.around(teacher.predict, in_part=self.kind == "naive"))

    def mpdistil(self):
        args, inputs, student = self.args, self.lab.inputs, self.lab.new_student()
        if self.kind == "bare":
            drawn = QuizBatches(inputs.quiz, self.batch_size, inputs.protocol.quiz_batches, self.rounds)

            def batches():
                drawn.new_episode()
                for _ in self.rounds.batches(len(self.quiz), self.batch_size, "order"):
                    name = self.actions[self.rounds.action()]
                    yield inputs.quiz[name], drawn.next(name)

            return self.bare(student, args.learning_rate, batches)
        teacher = self.frozen_teacher((self.quiz, 0))
        self.rounds.counts["once_s"] = 0.0  # it was counted in phase 3

        def ask_teacher(state):
            """p_T'(y|x) of the step's main batch, which ours knows."""
            indices = state["episode"].order[len(state["episode"].rewards) - 1]
            with torch.no_grad():
                outputs = teacher.heads(inputs.task.name, teacher.outputs.outputs(self.quiz, indices)[0])
                inputs.task.rules.agreement(outputs, self.quiz.labels[indices].to(self.lab.device))

        if self.kind == "naive":
            self.rounds.at_step = ask_teacher
        policy = Policy(student.state_predictor.in_features, len(inputs.quiz), args.seed).to(self.lab.device)
        settings = self.lab.training(
            CurriculumTraining, self.count, self.batch_size, args.learning_rate,
            policy_learning_rate=args.policy_learning_rate, reward=args.reward_function,
            curriculum=args.curriculum)
        train_curriculum(student, teacher.heads, policy, teacher.outputs, inputs.quiz, inputs.task.name,
                         settings, *self.around(self.lab.predictor(student)))

    def method(self, name):
        """A method to compare with, on its student."""
        inputs, lab, folder = self.lab.inputs, self.lab, self.folder / "fine_tuned"
        model = self.lab.new_teacher()
        save_model(model, folder, [inputs.task.name], inputs.checkpoints.tokenizer)
        teacher = Teacher(model.heads, lab.stored_outputs(SimpleNamespace(folder=self.folder),
                                                          lambda: model.encoder),
                          SimpleNamespace(folder=folder))
        layers = lab.layers_of(name)[1]
        teacher.outputs.prepare((self.train, max(layers, default=0) * (not METHODS[name].tokens)))
        settings = lab.method_training(name, self.args.nlayers)
        # the first part of its training alone
        constants = {key: 1.0 if key == "share" else value for key, value in settings.constants.items()}
        settings = replace(settings, epochs=self.count, constants=constants)
        student = lab.cut_of_teacher(teacher) if METHODS[name].replaces else lab.new_student()
        evaluator, streams, log, saver = self.around(lab.predictor(student))
        train_by_method(lab, name, student, teacher, settings,
                        {"evaluator": evaluator, "streams": streams, "log": log, "saver": saver})

    def usage(self):
        """Memory, and how often the teacher's encoder ran, after phase 1, for an example of the main task."""
        rows = sum(len(split) * split.task.rows for split in self.lab.inputs.data.values())
        return {"peak": peak_memory_bytes(), "passes": self.passes / rows}


def serve(pipe, *arguments):
    """A side's process: its set-up, then the phases it is told."""
    try:
        side = Side(pipe, *arguments)
        while (phase := pipe.recv()) is not None:
            side.measure(phase)
        pipe.send(side.usage())
    except (InputError, TrainingError) as error:
        pipe.send(error)


class Process:
    """The other end of serve."""

    def __init__(self, *arguments):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, *arguments), daemon=True).start()
        theirs.close()
        self.setup_s = self.answer()

    def answer(self):
        try:
            answer = self.pipe.recv()
        except EOFError:
            sys.exit("error: a measuring process ended before it answered; its own message stands above")
        if isinstance(answer, Exception):
            sys.exit(f"error: {answer}")
        return answer

    def ask(self, question):
        self.pipe.send(question)
        return self.answer()


# --- what comes out -----------------------------------------------------------------------------------------

def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(processes, beside, phase, own):
    """The figures of a phase: JSON's entry of it."""
    counts = {side: process.ask(phase) for side, process in processes.items()}
    for process in beside:
        process.ask(phase)
    seen, together = {side: [] for side in processes}, []
    for number in range(own.rounds + 1):
        for side in list(processes)[::1 if number % 2 else -1]:
            seen[side].append(processes[side].ask(PLAIN))
        for process in beside:
            process.pipe.send(PLAIN)
        together.append([process.answer() for process in beside])
    seen, together = {side: found[1:] for side, found in seen.items()}, together[1:]
    closer = {side: processes[side].ask(CLOSER) for side in processes if side != "bare" and own.profile}
    for process in (*processes.values(), *beside):
        process.pipe.send(PLAIN)  # there is no further round: the phase ends
    step = {side: spread([found["step_s"] for found in seen[side]]) for side in seen}
    evaluation = {side: spread([found["evaluation_s"] for found in seen[side]]) for side in seen
                  if side != "bare"}
    tokens = statistics.median(found["tokens"] for found in seen["bare"])

    def seconds(side, step_s, evaluation_s):
        count = counts[side]
        return count["steps"] * step_s + count["evaluations"] * evaluation_s + count["once_s"]

    total = {side: seconds(side, step[side]["median"], evaluation[side]["median"]) for side in evaluation}
    total["bare"] = seconds("bare", step["bare"]["median"], 0.0)
    over_bare = [ours["step_s"] / bare["step_s"] for ours, bare in zip(seen["ours"], seen["bare"])]
    entry = {
        "naive_s": total["naive"],
        "ours_s": total["ours"],
        "bare_s": total["bare"],
        **{f"{side}_s": total[side] for side in total if side == "bf16"},
        "ratio": total["naive"] / total["ours"],
        "over_bare": statistics.median(over_bare),
        "over_bare_spread": spread(over_bare),
        "steps": counts["ours"]["steps"],
        "evaluations": counts["ours"]["evaluations"],
        "once_s": counts["ours"]["once_s"],
        "step_s": step,
        "evaluation_s": evaluation,
        "tokens_per_second": {side: tokens / step[side]["median"] for side in step},
    }
    if beside:
        each = [max(seconds("ours", found["step_s"], found["evaluation_s"]) for found in both)
                for both in together]
        entry["side_by_side"] = {"jobs": len(beside), "run_s": spread(each),
                                 "speedup": len(beside) * total["ours"] / statistics.median(each)}
    if own.profile:
        entry["profile"] = {}
        for side in evaluation:
            parts = {name: counts[side]["steps"] * part for name, part in closer[side]["parts"].items()}
            parts["evaluation"] = counts[side]["evaluations"] * evaluation[side]["median"]
            parts["frozen outputs, once"] = counts[side]["once_s"]
            whole = sum(parts.values())
            entry["profile"][side] = {name: value / whole for name, value in parts.items()}
    return entry


def measure_methods(args, process_of, own):
    """{method: seconds of its step and of kd's, their ratio, memory}; kd's memory under "kd". {} without
    methods."""
    if not args.baselines:
        return {}
    kd, found = process_of("kd"), {}
    for method in args.baselines:
        pair, seen = {"kd": kd, method: process_of(method)}, {"kd": [], method: []}
        for phase, process in pair.items():
            process.ask(phase)
        for number in range(own.rounds + 1):
            for phase in list(pair)[::1 if number % 2 else -1]:
                seen[phase].append(pair[phase].ask(PLAIN)["step_s"])
        for process in pair.values():
            process.pipe.send(PLAIN)  # there is no further round: the phase ends
        ratios = [theirs / its for theirs, its in zip(seen[method][1:], seen["kd"][1:], strict=True)]
        found[method] = {"step_s": spread(seen[method][1:]), "kd_step_s": spread(seen["kd"][1:]),
                         "over_kd": spread(ratios), "peak_memory_bytes": pair[method].ask(None)["peak"]}
    return {"kd": {"peak_memory_bytes": kd.ask(None)["peak"]}, **found}


def column_of(phases, startup_s, jobs):
    """Seconds of the column's eleven rows."""
    ours = {phase: entry["ours_s"] for phase, entry in phases.items()}
    runs = COLUMN_RUNS * ours["mpdistil"]
    if jobs > 1:  # if that is a gain; the last turn may not be full
        runs = min(runs, -(-COLUMN_RUNS // jobs) * phases["mpdistil"]["side_by_side"]["run_s"]["median"])
    undistilled = ours["kd"] - phases["kd"]["once_s"]
    shared = ours["teacher"] + undistilled + ours["kd"] + 2 * ours["meta_teacher"]
    return COLUMN_STARTS * startup_s + shared + runs


def describe_machine(threads):
    """Where the figures come from."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"platform": platform.platform(), "cpu": cpu_name(), "cores": os.cpu_count(), "threads": threads,
            "gpu": gpu, "torch": torch.__version__}


def import_seconds():
    """Seconds until the program has imported what it needs."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import main_superglue"], cwd=ROOT, check=True)
    return time.perf_counter() - start


def report(result):
    """The figures as markdown."""
    print("| phase | naive, s | ours, s | ours in bf16, s | bare steps, s | naive / ours | naive / bf16 |"
          " step over bare | tokens/s, ours |\n|---|---|---|---|---|---|---|---|---|")
    for phase, entry in result["phases"].items():
        bf16 = [f"{entry['bf16_s']:.1f}", f"{entry['naive_s'] / entry['bf16_s']:.2f}"] if (
            "bf16_s" in entry) else ["", ""]
        over = entry["over_bare_spread"]
        print(f"| {phase} | {entry['naive_s']:.1f} | {entry['ours_s']:.1f} | {bf16[0]} |"
              f" {entry['bare_s']:.1f} | {entry['ratio']:.2f} | {bf16[1]} |"
              f" {entry['over_bare']:.2f} ({over['min']:.2f} to {over['max']:.2f}) |"
              f" {entry['tokens_per_second']['ours']:.0f} |")
    run, column = result["run"], result["column"]
    print(f"\nwhole run: {run['naive_s']:.0f} s naive, {run['ours_s']:.0f} s ours,"
          f" {run['ratio']:.2f} times as fast")
    if "bf16_s" in run:
        print(f"in bf16: {run['bf16_s']:.0f} s, {run['naive_s'] / run['bf16_s']:.2f} times as fast")
    print(f"column of eleven rows: {column['ours_s']:.0f} s ours,"
          f" {column['column_over_naive_run']:.2f} naive runs")
    peaks = result["peak_memory_bytes"].items()
    print("peak memory: " + ", ".join(f"{side} {size / 2 ** 30:.2f} GiB" for side, size in peaks))
    print(f"teacher's encoder after phase 1: {result['teacher_passes_per_example']:.2f} passes per example")
    for phase, entry in result["phases"].items():
        for side, parts in entry.get("profile", {}).items():
            shown = sorted((item for item in parts.items() if item[1] >= 0.0005), key=lambda item: -item[1])
            print(f"{phase}, {side}: " + ", ".join(f"{name} {100 * share:.1f}%" for name, share in shown))


def report_methods(methods):
    """Their figures as markdown."""
    print("\n| method | step, ms | step over kd's | peak memory, GiB |\n|---|---|---|---|")
    for name, entry in methods.items():
        memory = f"{entry['peak_memory_bytes'] / 2 ** 30:.2f}"
        if name == "kd":
            print(f"| kd | | 1 | {memory} |")
            continue
        over = entry["over_kd"]
        print(f"| {name} | {1000 * entry['step_s']['median']:.0f} |"
              f" {over['median']:.2f} ({over['min']:.2f} to {over['max']:.2f}) | {memory} |")


def read_flags():
    """(the benchmark's own flags, those of main_superglue.py parsed, the same as words)."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], allow_abbrev=False,
        epilog="All flags of main_superglue.py are taken too: they say what is measured.")
    flag = parser.add_argument
    flag("--json", type=Path, required=True, metavar="OUT", help="file for the figures")
    flag("--rounds", type=int, default=5,
         help="measured rounds, after one that is dropped (default: %(default)s)")
    flag("--steps", type=int, default=6, help="training steps in a round (default: %(default)s)")
    flag("--jobs", type=int, default=2,
         help="phase-4 runs side by side in the column (default: %(default)s)")
    flag("--profile", action="store_true",
         help="also say which part of each phase takes how much of its time")
    flag("--peer", metavar="PYTHON",
         help="measure beside the lab's package instead: the interpreter of an environment that has mpdistil"
              " 0.1.0")
    flag("--peer_epochs", type=int, default=2,
         help="epochs of phases 1 to 3 that are measured with --peer (default: %(default)s)")
    flag("--peer_episodes", type=int, default=6,
         help="episodes that are measured with --peer (default: %(default)s)")
    own, argv = parser.parse_known_args()
    if min(own.rounds, own.steps, own.jobs, own.peer_epochs, own.peer_episodes) < 1:
        parser.error("--rounds, --steps, --jobs, --peer_epochs and --peer_episodes must be at least 1")
    args = parse_arguments(argv)
    args.precision = resolve_precision(args.device, args.precision)
    if resolve_protocol(args).phase_order == "alternating":
        parser.error(
            "--protocol released: phases are measured one after the other; add --set phase_order=sequential"
        )
    if not own.json.parent.is_dir():
        parser.error(f"--json {own.json}: no folder {own.json.parent}")
    return own, args, argv


def main():
    own, args, argv = read_flags()
    settings, threads = resolve_settings(args), torch.get_num_threads()
    if own.peer:
        result = peer.measure(own.peer, args, argv, own.peer_epochs, own.peer_episodes, threads,
                              read_inputs)
        write_json(own.json, {"machine": describe_machine(threads), "settings": settings, **result})
        return peer.report(result)
    in_bf16 = args.precision == "fp32" and resolve_precision(args.device, "auto") == "bf16"
    with tempfile.TemporaryDirectory() as work:
        count = own.rounds + 1
        processes = {side: Process(side, argv, f"{work}/{side}", own.steps,
                                   count + (side == "bare" or own.profile), threads)
                     for side in (*SIDES, *["bf16"] * in_bf16)}
        beside = [Process("ours", argv, f"{work}/beside{n}", own.steps, count, max(1, threads // own.jobs))
                  for n in range(own.jobs if own.jobs > 1 else 0)]
        phases = {phase: measure(processes, beside if phase == "mpdistil" else [], phase, own)
                  for phase in PHASES}
        usage = {side: process.ask(None) for side, process in processes.items()}
        for process in beside:
            process.ask(None)
        methods = measure_methods(args, lambda name: Process(
            "ours", argv, f"{work}/method-{name}", own.steps, count, threads), own)
    startup_s = import_seconds() + processes["ours"].setup_s
    whole = {f"{side}_s": startup_s + sum(entry[f"{side}_s"] for entry in phases.values())
             for side in ("naive", "ours", *["bf16"] * in_bf16)}
    column_s = column_of(phases, startup_s, own.jobs)
    result = {
        "machine": describe_machine(threads),
        "settings": {**settings, "rounds": own.rounds, "steps": own.steps, "jobs": own.jobs},
        "phases": phases,
        "startup_s": startup_s,
        "run": {**whole, "ratio": whole["naive_s"] / whole["ours_s"]},
        "column": {"naive_run_s": whole["naive_s"], "ours_s": column_s,
                   "column_over_naive_run": column_s / whole["naive_s"]},
        "peak_memory_bytes": {side: found["peak"] for side, found in usage.items()},
        "teacher_passes_per_example": usage["ours"]["passes"],
        "methods": methods,
    }
    write_json(own.json, result)
    report(result)
    if methods:
        report_methods(methods)


if __name__ == "__main__":
    try:
        main()
    except (InputError, TrainingError) as error:
        sys.exit(f"error: {error}")

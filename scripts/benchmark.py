"""Time the method as it is usually run, as it runs here, and the bare training step, on one machine, in turn.

    python scripts/benchmark.py --task CB --data_dir D --teacher_model M [--student_model M] [--nlayers N] --json OUT

All other flags of main_superglue.py are taken too, and decide how long the run is that the figures are
extrapolated to. Three processes, of which one works at a time, hold the same models and are given the same
batches:

- naive: everything padded to --max_seq_length, the teacher run at every step that asks for it, evaluation in
  batches of 8,
  torch's default AdamW, float32. The loops and losses are the project's own.
- ours: what main_superglue.py does.
- bare: forward, backward and fused AdamW step of the model that a phase trains, on the same batches as ours,
  and nothing else.

A round is --steps training steps and one evaluation of each process; the first round is dropped, medians of
the others count. A phase's seconds are extrapolated: median step times number of steps, and likewise
evaluations, predictions of test and, once, the frozen encoders' outputs. What is written to disk besides
(states, artefacts) is not in the figures: result.json of a run says what saving states took. Splits of more
than 256 examples are evaluated in part, and the time scaled. The naive run uses --precision fp32 whatever is
asked of ours. The column is the table's eleven rows: teacher, student, kd, two meta-teachers and six runs of
phase 4, which ours lets run --jobs side by side; the undistilled student is counted as a distilled one.
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
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]

import numpy as np
import torch
from run_folder import StoredOutputs, resolved
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import curriculum
import main_superglue
import meta_policy
from arguments import parse_arguments, resolve_protocol
from bookkeeping.errors import InputError
from bookkeeping.files import write_json
from bookkeeping.machine import peak_memory_bytes
from curriculum import Curriculum, Policy, QuizBatches
from data_utils import RandomStreams, Split
from main_superglue import Pair, Setting
from meta_policy import Training, distillation_epochs, meta_teacher_epochs, teacher_epochs
from models import Encoder, FrozenEncoder, Heads, set_training

PHASES = ("teacher", "kd", "meta_teacher", "mpdistil")
SIDES = ("naive", "ours", "bare")
COLUMN_RUNS = 6  # of phase 4, in the eleven rows: four variants, two without a curriculum
# of the program for the rows of a paper's column by scripts/sweep.py: the shared phases with either loss come
# first
COLUMN_STARTS = 8
EVALUATED = 256
# dense, as the vendor states them
PEAK_FLOPS = {("H100", "bf16"): 989e12, ("H200", "bf16"): 989e12, ("A100", "bf16"): 312e12,
              ("H100", "fp32"): 67e12, ("H200", "fp32"): 67e12, ("A100", "fp32"): 19.5e12}


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


class NaiveCurriculum(Curriculum):
    """Phase 4 that asks the teacher for p_T'(y|x) at every step."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.teacher_outputs = parts[3]

    def reward(self, indices):
        with torch.no_grad():
            logits = self.meta_teacher(
                self.main_task, self.teacher_outputs.outputs(self.main_quiz, indices)[0]
            )
            places = torch.from_numpy(indices).to(self.device)
            self.p_teacher[places] = meta_policy.true_class_probability(logits, self.labels[places])
        return super().reward(indices)


def default_adamw(module, learning_rate, settings, make_fused=meta_policy.make_optimizer):
    """make_optimizer with the implementation that torch picks by itself."""
    groups = [{"params": group["params"], "weight_decay": group["weight_decay"]}
              for group in make_fused(module, learning_rate, settings).param_groups]
    return torch.optim.AdamW(groups, lr=learning_rate)


# --- one side, in a process of its own ----------------------------------------------------------------------

class Quiet:
    """A log that says and keeps nothing."""

    def say(self, text):
        pass

    def event(self, **values):
        pass


class Stopwatch:
    """Seconds of each part of the work, each without the parts inside it."""

    def __init__(self, device):
        self.device, self.parts, self.inner = device, {}, [0.0]

    @contextmanager
    def part(self, name):
        synchronize(self.device)
        start = time.perf_counter()
        self.inner.append(0.0)
        yield
        synchronize(self.device)
        seconds = time.perf_counter() - start
        self.parts[name] = self.parts.get(name, 0.0) + seconds - self.inner.pop()
        self.inner[-1] += seconds

    @contextmanager
    def watching(self, teacher_encoder):
        """Time the functions that the loops call. teacher_encoder: which Encoder is the teacher's."""
        def wrap(owner, name, part_of):
            function = getattr(owner, name)

            def timed(*arguments, **keywords):
                with self.part(part_of(*arguments)):
                    return function(*arguments, **keywords)
            setattr(owner, name, timed)
            return owner, name, function

        wrapped = [
            wrap(
                Encoder,
                "forward",
                lambda encoder, *_: (
                    "teacher's encoder" if encoder is teacher_encoder else "student's encoder"
                ),
            ),
            wrap(Heads, "forward", lambda *_: "heads"),
            wrap(Split, "batch", lambda *_: "data"),
            wrap(FrozenEncoder, "outputs", lambda *_: "kept outputs"),
            wrap(torch.Tensor, "backward", lambda *_: "backward"),
            wrap(torch.nn.utils, "clip_grad_norm_", lambda *_: "clipping"),
            wrap(torch.optim.AdamW, "step", lambda *_: "optimizer"),
        ]
        yield
        for owner, name, function in wrapped:
            setattr(owner, name, function)


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def part_of_split(split):
    """At most EVALUATED examples, spread evenly over the split, and by how much their time must be scaled."""
    if len(split) <= EVALUATED:
        return split, 1.0
    positions = np.linspace(0, len(split) - 1, EVALUATED).astype(int)
    rows = split.rows(positions)

    def cut(flat):
        return (
            None
            if flat is None
            else np.concatenate([flat[split.offsets[row] : split.offsets[row + 1]] for row in rows])
        )

    return (
        replace(
            split,
            idx=[split.idx[n] for n in positions],
            where=[split.where[n] for n in positions],
            labels=split.labels[positions],
            input_ids=cut(split.input_ids),
            token_type_ids=cut(split.token_type_ids),
            offsets=np.concatenate([[0], np.cumsum(np.diff(split.offsets)[rows])]),
        ),
        len(split) / EVALUATED,
    )


def tokens_of(split, indices):
    """Tokens of these examples, padding not counted."""
    return int(np.diff(split.offsets)[split.rows(indices)].sum())


class Side:
    """One side's models and data, and the phase that it stands in. What a phase sets: step(k), evaluate(),
    ready(round)."""

    def __init__(self, kind, argv, folder, steps, threads):
        torch.set_num_threads(threads)
        start = time.perf_counter()
        self.kind, self.steps, self.folder = kind, steps, Path(folder)
        more = (
            ["--eval_batch_size", "8", "--precision", "fp32", "--set", "padding=max_length"]
            if kind == "naive"
            else []
        )
        args = parse_arguments([*argv, *more, "--output_dir", str(self.folder / "run")])
        if kind == "naive":
            main_superglue.keep_freed_memory = lambda: None
        self.setting = Setting(args, resolve_protocol(args))
        args.protocol_choices = asdict(self.setting.protocol)
        self.setting.log = Quiet()
        self.setup_s = time.perf_counter() - start
        self.device, self.data = self.setting.device, self.setting.data
        if kind == "naive":
            meta_policy.make_optimizer = curriculum.make_optimizer = default_adamw
        self.passes = 0

    def open(self, phase):
        """Set the phase up. Returns its counts and, for ours, the seconds of what it computes once."""
        self.step = self.evaluate = self.ready = self.teacher = self.begin = self.end = None
        self.evaluation_scale = 1.0
        args, setting = self.setting.args, self.setting
        train, quiz = self.data["train"], self.data["quiz"]
        once = getattr(self, f"open_{phase}")(train, quiz)
        seen = sum(len(split) for split in setting.looked_at.values())
        predicted = len(self.data["test"]) / seen if "test" in self.data else 0.0
        passes = {
            "teacher": args.teacher_epochs,
            "kd": args.epochs,
            "meta_teacher": args.meta_epochs,
            "mpdistil": args.num_episodes,
        }[phase]
        per_pass = -(-len(quiz) // args.val_dataloader_size) if phase in ("meta_teacher", "mpdistil") else \
            -(-len(train) // args.train_dataloader_size)
        return {
            "steps": passes * per_pass,
            "passes": passes,
            "evaluations": passes + predicted,
            "once_s": once or 0.0,
        }

    def selection(self, predict_split, in_part=True):
        """The Selection of a phase, on a part of large splits."""
        selection = self.setting.selection(predict_split)
        if not in_part:
            return selection
        parts = {name: part_of_split(split) for name, split in selection.splits.items()}
        selection.splits = {name: split for name, (split, _) in parts.items()}
        self.evaluation_scale = max(scale for _, scale in parts.values())
        return selection

    def batches(self, split, batch_size, number):
        """The batches of a round, all of them whole."""
        order = RandomStreams(self.setting.args.seed, f"benchmark {number}", "own_generators").batches(
            len(split), batch_size, "order"
        )
        whole = [indices for indices in order if len(indices) == batch_size] or order
        return [whole[k % len(whole)] for k in range(self.steps)]

    def open_epochs(self, epochs, model, split, batch_size):
        def ready(number):
            set_training(model, epochs.settings.dropout, evaluated=False)
            self.work = self.batches(split, batch_size, number)
            return sum(tokens_of(split, indices) for indices in self.work)

        self.ready, self.step, self.evaluate = (
            ready,
            lambda k: epochs.train_on(self.work[k]),
            epochs.selection.scores,
        )

    def open_bare(self, model, split, batch_size, learning_rate):
        """The bare step of a whole model on the batches of a round."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)

        def ready(number):
            model.train()
            self.work = self.batches(split, batch_size, number)
            return sum(tokens_of(split, indices) for indices in self.work)

        def step(k):
            bare_step(model, optimizer, split.task.name, split.batch(self.work[k], self.device))

        self.ready, self.step, self.evaluate = ready, step, None

    def teacher_outputs(self):
        """The teacher's outputs by example as this side has them, and the seconds that they cost."""
        teacher = self.setting.new_teacher()
        teacher.encoder.register_forward_hook(
            lambda module, inputs, output: setattr(self, "passes", self.passes + len(output[0]))
        )
        self.teacher = teacher.encoder
        if self.kind == "naive":
            return teacher.heads, RunningEncoder(teacher.encoder, 8, self.device), lambda *wanted: 0.0
        stored = StoredOutputs(
            SimpleNamespace(folder=self.folder),
            lambda: teacher.encoder,
            self.setting.eval_batch_size,
            self.device,
            lambda text: None,
        )
        self.folder.mkdir(exist_ok=True)

        def prepare(*wanted):
            start = time.perf_counter()
            stored.prepare(*wanted)
            return time.perf_counter() - start

        return teacher.heads, stored, prepare

    def open_teacher(self, train, quiz):
        args, teacher = self.setting.args, self.setting.new_teacher()
        self.teacher = teacher.encoder
        if self.kind == "bare":
            return self.open_bare(teacher, train, args.train_dataloader_size, args.teacher_learning_rate)
        settings = self.setting.training(
            Training, args.teacher_epochs, args.train_dataloader_size, args.teacher_learning_rate
        )
        epochs = teacher_epochs(
            teacher,
            train,
            settings,
            self.selection(self.setting.predictor(teacher)),
            self.setting.draws("teacher"),
            Quiet(),
        )
        self.open_epochs(epochs, teacher, train, args.train_dataloader_size)

    def open_kd(self, train, quiz):
        args = self.setting.args
        if self.kind == "bare":
            return self.open_bare(
                self.setting.new_student(), train, args.train_dataloader_size, args.learning_rate
            )
        heads, outputs, prepare = self.teacher_outputs()
        pair = Pair(self.setting, heads, outputs)
        once = prepare((train, args.nlayers - 1 if args.beta > 0 else 0))
        epochs = distillation_epochs(
            "kd",
            pair.student,
            heads,
            outputs,
            train,
            pair.kd_settings,
            self.selection(self.setting.predictor(pair.student)),
            self.setting.draws("kd"),
            Quiet(),
        )
        self.open_epochs(epochs, pair.student, train, args.train_dataloader_size)
        return once

    def open_meta_teacher(self, train, quiz):
        args = self.setting.args
        heads, outputs, prepare = self.teacher_outputs()
        pair = Pair(self.setting, heads, outputs)
        if self.kind == "bare":
            return self.open_bare_head(pair, quiz)
        once = prepare(*((self.data[name], 0) for name in ("quiz", "dev", "test") if name in self.data))
        student = (RunningEncoder if self.kind == "naive" else FrozenEncoder)(
            pair.student.encoder, self.setting.eval_batch_size, self.device
        )
        start = time.perf_counter()
        if self.kind == "ours":
            student.outputs(quiz)
            once += time.perf_counter() - start
        epochs = meta_teacher_epochs(pair.meta_teacher, outputs, student, quiz, pair.meta_settings,
                                     self.selection(pair.predict_meta_teacher, in_part=self.kind == "naive"),
                                     self.setting.draws("meta_teacher"), Quiet())
        self.open_epochs(epochs, pair.meta_teacher, quiz, args.val_dataloader_size)
        return once

    def open_bare_head(self, pair, quiz):
        args, heads, task = self.setting.args, pair.meta_teacher, quiz.task.name
        optimizer = torch.optim.AdamW(heads.parameters(), lr=args.meta_learning_rate, fused=True)
        pooled = torch.randn(len(quiz) * quiz.task.rows, heads.linear[task].in_features, device=self.device)

        def ready(number):
            heads.train()
            self.work = self.batches(quiz, args.val_dataloader_size, number)
            return sum(tokens_of(quiz, indices) for indices in self.work)

        def step(k):
            loss = F.cross_entropy(
                heads(task, pooled[quiz.rows(self.work[k])]), quiz.labels[self.work[k]].to(self.device)
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        self.ready, self.step, self.evaluate = ready, step, None

    def open_mpdistil(self, train, quiz):
        args, setting, names = self.setting.args, self.setting, list(self.setting.quiz)
        if self.kind == "bare":
            student = setting.new_student()
            optimizer = torch.optim.AdamW(student.parameters(), lr=args.learning_rate, fused=True)

            def ready(number):
                student.train()
                batches = QuizBatches(setting.quiz, args.val_dataloader_size, "redrawn",
                                      RandomStreams(args.seed, f"benchmark {number}", "own_generators"))
                self.work = [
                    (names[k % len(names)], batches.next(names[k % len(names)])) for k in range(self.length())
                ]
                return sum(tokens_of(setting.quiz[name], indices) for name, indices in self.work)

            def step(k):
                name, indices = self.work[k]
                bare_step(student, optimizer, name, setting.quiz[name].batch(indices, self.device))

            self.ready, self.step = ready, step
            return
        heads, outputs, prepare = self.teacher_outputs()
        prepare((quiz, 0))
        pair = Pair(setting, heads, outputs)
        policy = Policy(pair.student.state_predictor.in_features, len(names), args.seed).to(self.device)
        settings = setting.training(
            curriculum.CurriculumTraining,
            args.num_episodes,
            args.val_dataloader_size,
            args.learning_rate,
            policy_learning_rate=args.meta_learning_rate,
            reward=args.reward_function,
            curriculum=args.curriculum,
        )
        parts = (NaiveCurriculum if self.kind == "naive" else Curriculum)(
            pair.student,
            pair.meta_teacher,
            policy,
            outputs,
            setting.quiz,
            setting.task.name,
            settings,
            setting.draws("mpdistil"),
        )

        def ready(number):
            parts.draws = parts.batches.draws = RandomStreams(args.seed, f"benchmark {number}", "own_generators")
            main = parts.draws.batches(len(parts.main_quiz), args.val_dataloader_size, "order")
            self.work = [(names[k % len(names)], main[k % len(main)]) for k in range(self.length())]
            return None  # bare counts the tokens

        def step(k):
            name, indices = self.work[k]
            # for what it costs: every task gets its turn, so that each round has the same mixture
            parts.choose()
            parts.credited.append(names.index(name))
            parts.train_student(name)
            parts.rewards.append(parts.reward(indices))

        self.ready, self.step, self.begin, self.end = ready, step, parts.begin_episode, parts.end_episode
        self.evaluate = self.selection(setting.predictor(pair.student)).scores

    def length(self):
        """Steps of a round of phase 4: as many as asked for, up to a whole number of turns of the tasks."""
        tasks = len(self.setting.quiz)
        return -(-self.steps // tasks) * tasks

    def round(self, number):
        """One round. Returns seconds per step, per evaluation and for what an episode does once, and tokens
        per step."""
        tokens, around = self.ready(number), 0.0
        synchronize(self.device)
        start = time.perf_counter()
        if self.begin:
            self.begin()
            synchronize(self.device)
            around, start = time.perf_counter() - start, time.perf_counter()
        for k in range(len(self.work)):
            self.step(k)
        synchronize(self.device)
        step_s = (time.perf_counter() - start) / len(self.work)
        middle = time.perf_counter()
        if self.end:
            self.end()
            synchronize(self.device)
            around, middle = around + time.perf_counter() - middle, time.perf_counter()
        if self.evaluate:
            self.evaluate()  # its logits go to the CPU, so that it has ended when it returns
        end = time.perf_counter()
        return {
            "step_s": step_s,
            "once_an_episode_s": around,
            "evaluation_s": (end - middle) * self.evaluation_scale,
            "tokens": None if tokens is None else tokens / len(self.work),
        }

    def flops(self):
        """Floating-point operations of a step, by torch's counter."""
        self.ready(0)
        with FlopCounterMode(display=False) as counter:
            for k in range(len(self.work)):
                self.step(k)
        return counter.get_total_flops() / len(self.work)

    def profile(self):
        """{part: seconds per step} of one round's steps."""
        watch = Stopwatch(self.device)
        with watch.watching(self.teacher):
            self.ready(0)
            if self.begin:
                self.begin()
            with watch.part("other"):
                for k in range(len(self.work)):
                    self.step(k)
        return {name: seconds / len(self.work) for name, seconds in watch.parts.items()}

    def peak(self):
        return peak_memory_bytes()

    def passes_per_example(self):
        """How often the teacher's encoder ran, after phase 1, for an example of the main task."""
        return self.passes / sum(len(split) * split.task.rows for split in self.data.values())


def bare_step(model, optimizer, task, batch):
    """Forward, backward, fused AdamW."""
    logits, _ = model(task, batch)
    F.cross_entropy(logits, batch.labels).backward()
    optimizer.step()
    optimizer.zero_grad()


def serve(connection, *arguments):
    """A side's process: build it, then answer (method, arguments) until told to stop."""
    try:
        side = Side(*arguments)
        connection.send(side.setup_s)
        while (question := connection.recv()) is not None:
            connection.send(getattr(side, question[0])(*question[1:]))
    except InputError as error:
        connection.send(error)


class Process:
    """The other end of serve."""

    def __init__(self, *arguments):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.setup_s = self.answer()

    def ask(self, *question):
        self.connection.send(question)

    def answer(self):
        try:
            answer = self.connection.recv()
        except EOFError:
            sys.exit("error: a measuring process ended before it answered; its own message stands above")
        if isinstance(answer, InputError):
            sys.exit(f"error: {answer}")
        return answer

    def call(self, *question):
        self.ask(*question)
        return self.answer()

    def stop(self):
        self.connection.send(None)
        self.process.join()


# --- what comes out -----------------------------------------------------------------------------------------

def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(processes, beside, phase, rounds, profile):
    """The figures of a phase: JSON's entry of it."""
    counts = {side: process.call("open", phase) for side, process in processes.items()}
    for process in beside if phase == "mpdistil" else ():
        process.call("open", phase)
    seen, together = {side: [] for side in processes}, []
    for number in range(rounds + 1):
        order = list(processes)[::1 if number % 2 else -1]
        for side in order:
            seen[side].append(processes[side].call("round", number))
        if phase == "mpdistil" and beside:
            for process in beside:
                process.ask("round", number)
            together.append([process.answer() for process in beside])
    seen, together = {side: found[1:] for side, found in seen.items()}, together[1:]
    step = {side: spread([found["step_s"] for found in seen[side]]) for side in seen}
    evaluation = {side: spread([found["evaluation_s"] for found in seen[side]]) for side in ("naive", "ours")}
    tokens = statistics.median(found["tokens"] for found in seen["bare"])
    around = {side: statistics.median(found["once_an_episode_s"] for found in seen[side]) for side in seen}

    def seconds(side, step_s, evaluation_s):
        count = counts[side]
        return (
            count["steps"] * step_s
            + count["passes"] * around[side]
            + count["evaluations"] * evaluation_s
            + count["once_s"]
        )

    total = {
        side: seconds(side, step[side]["median"], evaluation[side]["median"] if side in evaluation else 0.0)
        for side in seen
    }
    over_bare = [ours["step_s"] / bare["step_s"] for ours, bare in zip(seen["ours"], seen["bare"])]
    entry = {
        "naive_s": total["naive"],
        "ours_s": total["ours"],
        "bare_s": total["bare"],
        "ratio": total["naive"] / total["ours"],
        "over_bare": statistics.median(over_bare),
        "over_bare_spread": spread(over_bare),
        "steps": counts["ours"]["steps"],
        "evaluations": counts["ours"]["evaluations"],
        "once_s": counts["ours"]["once_s"],
        "step_s": step,
        "evaluation_s": evaluation,
        "tokens_per_second": {side: tokens / step[side]["median"] for side in step},
        "flops_per_step": processes["bare"].call("flops"),
    }
    if together:
        each = [
            max(seconds("ours", found["step_s"], found["evaluation_s"]) for found in both)
            for both in together
        ]
        entry["side_by_side"] = {"jobs": len(beside), "run_s": spread(each),
                                 "speedup": len(beside) * total["ours"] / statistics.median(each)}
    if profile:
        entry["profile"] = {}
        for side in ("naive", "ours"):
            parts = processes[side].call("profile")
            parts = {name: counts[side]["steps"] * value for name, value in parts.items()}
            parts["evaluation"] = counts[side]["evaluations"] * evaluation[side]["median"]
            parts["frozen outputs, once"] = counts[side]["once_s"]
            whole = sum(parts.values())
            entry["profile"][side] = {name: value / whole for name, value in parts.items()}
    return entry


def describe_machine(threads):
    """Where the figures come from."""
    try:
        cpu = next(
            line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")
        )
    except (OSError, StopIteration):
        cpu = platform.processor()
    return {
        "platform": platform.platform(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def import_seconds():
    """Seconds until the program has imported what it needs."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import main_superglue"], cwd=ROOT, check=True)
    return time.perf_counter() - start


def report(result):
    """The figures as markdown."""
    print(
        "| phase | naive, s | ours, s | bare steps, s | naive / ours | step over bare | tokens/s, ours"
        " |\n|---|---|---|---|---|---|---|"
    )
    for phase, entry in result["phases"].items():
        print(
            f"| {phase} | {entry['naive_s']:.1f} | {entry['ours_s']:.1f} | {entry['bare_s']:.1f} |"
            f" {entry['ratio']:.2f} | {entry['over_bare']:.2f} ({entry['over_bare_spread']['min']:.2f} to"
            f" {entry['over_bare_spread']['max']:.2f}) | {entry['tokens_per_second']['ours']:.0f} |"
        )
    run, column = result["run"], result["column"]
    print(
        f"\nwhole run: {run['naive_s']:.0f} s naive, {run['ours_s']:.0f} s ours, {run['ratio']:.2f} times as"
        " fast"
    )
    print(
        f"column of eleven rows: {column['ours_s']:.0f} s ours, {column['column_over_naive_run']:.2f} naive"
        " runs"
    )
    print(
        "peak memory: "
        + ", ".join(f"{side} {size / 2 ** 30:.2f} GiB" for side, size in result["peak_memory_bytes"].items())
    )
    print(f"teacher's encoder after phase 1: {result['teacher_passes_per_example']:.2f} passes per example")
    for phase, entry in result["phases"].items():
        for side, parts in entry.get("profile", {}).items():
            print(
                f"{phase}, {side}: "
                + ", ".join(
                    f"{name} {100 * share:.1f}%"
                    for name, share in sorted(parts.items(), key=lambda item: -item[1])
                    if share >= 0.0005
                )
            )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
        epilog="All flags of main_superglue.py are taken too: they say what is measured.",
    )
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="file for the figures")
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="measured rounds, after one that is dropped (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, default=6, help="training steps in a round (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="phase-4 runs side by side in the column (default: %(default)s)"
    )
    parser.add_argument(
        "--profile", action="store_true", help="also say which part of each phase takes how much of its time"
    )
    own, argv = parser.parse_known_args()
    if min(own.rounds, own.steps, own.jobs) < 1:
        parser.error("--rounds, --steps and --jobs must be at least 1")
    args = parse_arguments(argv)
    if resolve_protocol(args).phase_order == "alternating":
        parser.error(
            "--protocol released: phases are measured one after the other; add --set phase_order=sequential"
        )
    if not own.json.parent.is_dir():
        parser.error(f"--json {own.json}: no folder {own.json.parent}")
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as work:
        processes = {side: Process(side, argv, f"{work}/{side}", own.steps, threads) for side in SIDES}
        beside = [Process("ours", argv, f"{work}/beside{number}", own.steps, max(1, threads // own.jobs))
                  for number in range(own.jobs if own.jobs > 1 else 0)]
        phases = {phase: measure(processes, beside, phase, own.rounds, own.profile) for phase in PHASES}
        peaks = {side: process.call("peak") for side, process in processes.items()}
        passes = processes["ours"].call("passes_per_example")
        for process in (*processes.values(), *beside):
            process.stop()
    startup_s = import_seconds() + processes["ours"].setup_s
    run = {
        side: startup_s + sum(entry[f"{side}_s"] for entry in phases.values()) for side in ("naive", "ours")
    }
    ours = {phase: entry["ours_s"] for phase, entry in phases.items()}
    phase_4 = COLUMN_RUNS * ours["mpdistil"]
    if own.jobs > 1:  # if that is a gain; the last turn may not be full
        phase_4 = min(
            phase_4, -(-COLUMN_RUNS // own.jobs) * phases["mpdistil"]["side_by_side"]["run_s"]["median"]
        )
    undistilled = ours["kd"] - phases["kd"]["once_s"]
    column = (
        COLUMN_STARTS * startup_s
        + ours["teacher"]
        + undistilled
        + ours["kd"]
        + 2 * ours["meta_teacher"]
        + phase_4
    )
    peak = next((flops for (name, precision), flops in PEAK_FLOPS.items() if torch.cuda.is_available()
                 and name in torch.cuda.get_device_name(0) and precision == args.precision), None)
    for entry in phases.values():
        entry["model_flops_utilisation"] = (
            entry["flops_per_step"] / entry["step_s"]["ours"]["median"] / peak if peak else None
        )
    result = {
        "machine": describe_machine(threads),
        "settings": {**resolved(args), "rounds": own.rounds, "steps": own.steps, "jobs": own.jobs},
        "phases": phases,
        "startup_s": startup_s,
        "run": {"naive_s": run["naive"], "ours_s": run["ours"], "ratio": run["naive"] / run["ours"]},
        "column": {
            "naive_run_s": run["naive"],
            "ours_s": column,
            "column_over_naive_run": column / run["naive"],
        },
        "peak_memory_bytes": peaks,
        "teacher_passes_per_example": passes,
    }
    write_json(own.json, result)
    report(result)


if __name__ == "__main__":
    main()

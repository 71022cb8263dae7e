"""The method here beside the lab's package: scripts/benchmark.py --peer PYTHON.

Both train all four phases on a CPU, each in processes of its own of which one works at a time: an epoch or
episode of the one, then the same of the other. Both have the same token ids, batch size, learning rates and
weights of the encoder: a random BERT of 768 hidden units, which is the only width that the package's policy
has, with 4 layers for the teacher and the first 2 for the student. Of --teacher_model only the tokenizer is
used, of --nlayers nothing.

The package pads all inputs to --max_seq_length, as its own loaders do, and splits the training file 4:1,
where we split it 9:1; so it trains teacher and student on fewer examples, phases 3 and 4 on more. In phase 4
it updates the student once an episode, and evaluates at the first episode and at each tenth. "Like for like"
is the time that it would need for the amount of our work: its time on examples times (our examples / its
examples), plus its time of an update times our updates, plus its time of an evaluation and the saving after
it times our evaluations. It answers test once, with predict(); our run does so in each of its rows. The
package's metrics come from a hub: peer_side.py puts a stand-in in their place.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import transformers

from lib import ROOT
from lib.peer_side import CLOCKS, Watch, peak_memory_bytes

from arguments import parse_arguments
from bookkeeping.checkpoints import open_checkpoints
from bookkeeping.errors import InputError, TrainingError
from bookkeeping.machine import resolve_precision
from data_utils import join_splits, resolve_settings

VERSION = "0.1.0"
HIDDEN, TEACHER_LAYERS, STUDENT_LAYERS = 768, 4, 2
EVALUATED_EVERY = 10  # episodes, by the package, and the first
ROUNDS = {"teacher": "teacher_epochs", "kd": "epochs", "meta_teacher": "meta_epochs",
          "mpdistil": "num_episodes"}  # phase: the flag that says how many


# --- arithmetic ---------------------------------------------------------------------------------------------

def evaluations_of(phase, rounds):
    """How often the package evaluates in so many epochs or episodes."""
    return 1 + rounds // EVALUATED_EVERY if phase == "mpdistil" else rounds


def work_of(records, examples=None):
    """What a round is on average, of a side's records of a phase. examples: of a round, where they are known;
    else the rows with gradients, or, where none have any, those of the deepest encoder. Seconds: working_s on
    examples, update_s for one update, evaluation_s for one evaluation and the saving after it."""
    evaluated = [record for record in records if record["evaluations"]]
    layers = max((int(layers) for record in records for layers in record["rows"]), default=0)
    work = {
        "examples": examples or mean(record["trained"] or record["rows"][str(layers)] for record in records),
        "updates": mean(record["steps"] for record in records),
        "evaluations": mean(record["evaluations"] for record in records),
        "encoder_rows": mean(sum(record["rows"].values()) + sum(record["evaluated"].values())
                             for record in records),
        "encoder_tokens": mean(record["tokens"] for record in records),
        "seconds": mean(record["seconds"] for record in records),
        "update_s": sum(record["stepping_s"] for record in records) / sum(
            record["steps"] for record in records),
        "evaluation_s": mean(record["evaluating_s"] + record["after_s"] for record in evaluated),
    }
    work["working_s"] = mean(record["seconds"] - record["stepping_s"] - record["evaluating_s"]
                             - record["after_s"] for record in records)
    return work


def run_seconds(phase, work, rounds):
    """Seconds of so many epochs or episodes of the package."""
    return (rounds * (work["working_s"] + work["updates"] * work["update_s"])
            + evaluations_of(phase, rounds) * work["evaluation_s"])


def seconds_for(work, other):
    """Seconds that a side of this work would need for a round of the other's amount of it."""
    return (work["working_s"] * other["examples"] / work["examples"] + other["updates"] * work["update_s"]
            + other["evaluations"] * work["evaluation_s"])


def compare_sides(found, examples, rounds, clock="wall"):
    """{"phases", "run"} by a clock. found: {side: its records}, "peer" among them; examples: {phase: ours in
    a round}; rounds: {phase: epochs or episodes of the run that is extrapolated to}."""
    phases, runs, theirs = {}, {}, {}
    for side, records in found.items():
        records = [{**record, **record[clock]} for record in records]
        before = {phase: sum(record["seconds"] for record in records
                             if (record["kind"], record["phase"]) == ("around", phase)) for phase in rounds}
        works = {phase: work_of([record for record in records
                                 if (record["kind"], record["phase"]) == ("round", phase)],
                                None if side == "peer" else examples[phase]) for phase in rounds}
        once = sum(record["seconds"] for record in records if record["kind"] in ("start", "end"))
        for phase, work in works.items():
            if side == "peer":
                work["run_s"] = run_seconds(phase, work, rounds[phase])
            else:
                work["around_s"] = before[phase]
                work["run_s"] = before[phase] + rounds[phase] * work["seconds"]
            phases.setdefault(phase, {})[side] = work
        runs[side] = {"start_and_end_s": once, "measured_s": sum(record["seconds"] for record in records),
                      "run_s": once + sum(work["run_s"] for work in works.values())}
    for phase, sides in phases.items():
        for side in [side for side in sides if side != "peer"]:
            ours, peer = sides[side], sides["peer"]
            ours["peer_like_for_like_s"] = seconds_for(peer, ours)
            ours["ratio"] = peer["seconds"] / ours["seconds"]
            ours["like_for_like"] = ours["peer_like_for_like_s"] / ours["seconds"]
            theirs[side] = theirs.get(side, 0.0) + rounds[phase] * ours["peer_like_for_like_s"]
    for side, like in theirs.items():
        like += runs["peer"]["start_and_end_s"]
        runs[side].update(peer_like_for_like_s=like, ratio=runs["peer"]["run_s"] / runs[side]["run_s"],
                          like_for_like=like / runs[side]["run_s"])
    return {"phases": phases, "run": runs}


# --- what both are given ------------------------------------------------------------------------------------

def check_environment(python):
    """InputError unless this interpreter has the package in its version."""
    way_out = (f"make an environment of its own (python -m venv PEER && PEER/bin/pip install"
               f" mpdistil=={VERSION}) and give PEER/bin/python")
    ask = "from importlib.metadata import version; print(version('mpdistil'))"
    try:
        done = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"--peer {python}: {error.strerror}, expected an interpreter; {way_out}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InputError(f"--peer {python}: {reason}; expected mpdistil {VERSION} there; {way_out}")
    if done.stdout.strip() != VERSION:
        raise InputError(f"--peer {python}: mpdistil {done.stdout.strip()} found, expected {VERSION};"
                         f" {way_out}")


def check_flags(args):
    """InputError where the two cannot be compared."""
    if args.device == "cuda":
        raise InputError("--device cuda: found together with --peer, which measures on a CPU; leave it out")
    if args.train_dataloader_size != args.val_dataloader_size:
        raise InputError(f"--val_dataloader_size {args.val_dataloader_size}: found together with --peer and"
                         f" --train_dataloader_size {args.train_dataloader_size}, expected the same: the"
                         " package has one batch size")
    more = [f"--{name}" for name in ("undistilled", "kd_200", "kd_quiz", "baselines", "stop_after")
            if getattr(args, name)]
    if more:
        raise InputError(f"{more[0]}: found together with --peer, which measures the four phases alone; leave"
                         " it out")


def check_splits(splits):
    """InputError where the package cannot read one of them."""
    for split in splits.values():
        if split.task.rows > 1 or not split.task.rules.labels.counts:
            raise InputError(f"--tasks: {split.task.name} found together with --peer, expected tasks of"
                             " classes with one row an example; leave it out")


def make_encoder(folder, tokenizer):
    """A random BERT with this tokenizer, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=TEACHER_LAYERS,
            num_attention_heads=12, intermediate_size=4 * HIDDEN, pad_token_id=tokenizer.pad_token_id)
        transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def padded(split, length):
    """A split as the package reads it: [input_ids, attention_mask, token_type_ids, labels], each (examples,
    length) but the labels, which are left out where there are none."""
    batch = replace(split, pad_to=length).batch(np.arange(len(split)))
    segments = torch.zeros_like(batch.input_ids) if batch.token_type_ids is None else batch.token_type_ids
    return [batch.input_ids, batch.attention_mask, segments, *([batch.labels] if split.labelled else [])]


# --- the sides ----------------------------------------------------------------------------------------------

class Process:
    """A side, which works when it is told to."""

    def __init__(self, command, spec, folder):
        folder.mkdir()
        self.log = folder / "log"
        spec = {**spec, "log": str(self.log), "output_dir": str(folder / "out")}
        (folder / "spec.json").write_text(json.dumps(spec))
        self.records, self.began = [], time.perf_counter()
        path = [str(ROOT / "scripts"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.child = subprocess.Popen(
            [*command, str(folder / "spec.json")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"})
        self.read()
        self.records[-1]["wall"]["seconds"] = time.perf_counter() - self.began

    def read(self):
        line = self.child.stdout.readline()
        if not line:
            said = self.log.read_text(errors="replace").strip() if self.log.is_file() else ""
            raise TrainingError(f"{' '.join(self.child.args[:2])} ended before it was done:"
                                f" {(said.splitlines() or ['it said nothing'])[-1]}")
        self.records.append(json.loads(line))

    def go_on(self):
        """Work up to the end of the next round, or of all."""
        while True:
            self.child.stdin.write("\n")
            self.child.stdin.flush()
            self.read()
            if self.records[-1]["kind"] == "end":
                self.child.stdin.write("\n")
                self.child.stdin.flush()
                self.read()
                self.done = self.records.pop()
                self.child.wait()
            if self.records[-1]["kind"] in ("round", "end"):
                return


def run_ours(path):
    """Our side's process: main_superglue.py, told by its savers where its loops are."""
    import main_superglue
    from bookkeeping.states import Saver
    spec = json.loads(Path(path).read_text())
    watch, begun = Watch(spec["log"]), []
    torch.set_num_threads(spec["threads"])
    restore, consider = Saver.restore, Saver.consider
    phases = iter(ROUNDS)

    def at_begin(saver, state, device="cpu"):
        begun.append(next(phases))
        if len(begun) == 1:
            watch.start()
        else:
            watch.stop("around", begun[-1])
        restore(saver, state, device)

    def at_step(saver, state, at_end=False):
        if at_end:
            watch.scored()
        consider(saver, state, at_end)
        if at_end:
            watch.stop("round", begun[-1])

    Saver.restore, Saver.consider = at_begin, at_step
    words = [*spec["flags"], "--output_dir", spec["output_dir"], "--fresh"]
    code = main_superglue.main(parse_arguments(words))
    if code:
        sys.exit(code)
    watch.stop("end")
    watch.tell(kind="done", peak_memory_bytes=peak_memory_bytes(), torch=torch.__version__)


# --- all together -------------------------------------------------------------------------------------------

def config_of(args):
    """The flags as the package calls them."""
    return {"teacher_epochs": args.teacher_epochs, "student_epochs": args.epochs,
            "meta_epochs": args.meta_epochs, "num_episodes": args.num_episodes,
            "teacher_lr": args.teacher_learning_rate, "student_lr": args.learning_rate,
            "meta_lr": args.meta_learning_rate, "alpha": args.alpha, "beta": args.beta,
            "temperature": args.temperature, "reward_type": args.reward_function,
            "use_competitive_loss": args.use_comp_loss, "batch_size": args.train_dataloader_size,
            "max_grad_norm": args.max_grad_norm, "weight_decay": args.weight_decay, "seed": args.seed}


def write_splits(inputs, length, path):
    """Write what the package reads: the whole training file, which it splits itself, dev, test and the other
    tasks' quiz. Returns the other tasks' names."""
    data, others = inputs.data, [name for name in inputs.quiz if name != inputs.task.name]
    splits = {"train": join_splits([data["train"], data["quiz"]]),
              **{name: data[name] for name in ("dev", "test") if name in data},
              **{name: inputs.quiz[name] for name in others}}
    check_splits(splits)
    torch.save({name: padded(split, length) for name, split in splits.items()}, path)
    return others


def measure(python, args, argv, epochs, episodes, threads, read_inputs):
    """JSON's figures of the comparison. python: the interpreter that has the package; argv: what args was
    parsed from; epochs, episodes: that are measured; read_inputs: main_superglue's. The run that is
    extrapolated to is the one that the flags ask for. InputError where something cannot be used,
    TrainingError where a side ends early."""
    check_environment(python)
    check_flags(args)
    rounds = {phase: getattr(args, flag) for phase, flag in ROUNDS.items()}
    measured = {phase: episodes if phase == "mpdistil" else epochs for phase in ROUNDS}
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        encoder, data = str(work / "encoder"), str(work / "data.pt")
        # whatever layers --teacher_model has
        make_encoder(encoder, open_checkpoints(parse_arguments([*argv, "--nlayers", "1"])).tokenizer)
        flags = [*argv, "--teacher_model", encoder, "--student_model", encoder,
                 "--nlayers", str(STUDENT_LAYERS), "--device", "cpu",
                 *(word for phase, count in measured.items() for word in (f"--{ROUNDS[phase]}", str(count)))]
        args = parse_arguments(flags)
        inputs = read_inputs(args, resolve_settings(args))
        spec = {"data": data, "encoder": encoder, "threads": threads, "task": inputs.task.name,
                "num_labels": inputs.task.outputs, "others": write_splits(inputs, args.max_seq_length, data),
                "student_layers": STUDENT_LAYERS, "batch_size": args.train_dataloader_size,
                "config": config_of(args), "rounds": measured}
        script = str(ROOT / "scripts" / "lib" / "peer_side.py")
        processes = {"peer": Process([python, "-I", script], spec, work / "peer")}
        ours = [sys.executable, "-c", "import sys; from lib.peer import run_ours; run_ours(sys.argv[1])"]
        bf16 = args.precision == "fp32" and resolve_precision("cpu", "auto") == "bf16"
        for name in (resolve_precision("cpu", args.precision), *["bf16"] * bf16):
            processes[name] = Process(ours, {"flags": [*flags, "--precision", name], "threads": threads},
                                      work / name)
        for turn in range(sum(measured.values()) + 1):  # the last one: what comes after all rounds
            for process in list(processes.values())[::1 if turn % 2 else -1]:
                process.go_on()
    examples = {phase: len(inputs.data["train" if phase in ("teacher", "kd") else "quiz"])
                for phase in ROUNDS}
    found = {name: process.records for name, process in processes.items()}
    return {"peer": f"mpdistil {VERSION}", "measured": measured, "extrapolated": rounds,
            **{clock: compare_sides(found, examples, rounds, clock) for clock in CLOCKS}, "records": found,
            **{fact: {name: process.done[fact] for name, process in processes.items()}
               for fact in ("torch", "peak_memory_bytes")}}


def report(result):
    """The figures as markdown."""
    sides = [side for side in result["wall"]["run"] if side != "peer"]
    counted = {"examples": "examples", "updates": "updates", "evaluations": "evaluations",
               "encoder_rows": "rows through an encoder"}
    print("| phase, a round of it | " + " | ".join(f"{name}, {what}" for name in ("peer", "ours")
                                                  for what in counted.values()) + " |\n|" + "---|" * 9)
    for phase, entry in result["wall"]["phases"].items():
        cells = [f"{entry[side][key]:.4g}" for side in ("peer", sides[0]) for key in counted]
        print(f"| {phase} | " + " | ".join(cells) + " |")
    for clock in CLOCKS:
        run, peer = result[clock]["run"], result[clock]["run"]["peer"]
        print(f"\n| phase, {clock} seconds | peer, a round | peer, our work | "
              + " | ".join(f"ours in {side}, a round | whole | like for like" for side in sides) + " |\n|"
              + "---|" * (3 + 3 * len(sides)))
        for phase, entry in result[clock]["phases"].items():
            cells = [f"{entry[side]['seconds']:.2f} | {entry[side]['ratio']:.2f} |"
                     f" {entry[side]['like_for_like']:.2f}" for side in sides]
            print(f"| {phase} | {entry['peer']['seconds']:.2f} |"
                  f" {entry[sides[0]]['peer_like_for_like_s']:.2f} | " + " | ".join(cells) + " |")
        cells = [f"{run[side]['run_s']:.0f} | {run[side]['ratio']:.2f} | {run[side]['like_for_like']:.2f}"
                 for side in sides]
        print(f"| run of {'/'.join(map(str, result['extrapolated'].values()))} | {peer['run_s']:.0f} |"
              f" {run[sides[0]]['peer_like_for_like_s']:.0f} | " + " | ".join(cells) + " |")
    print("\npeak memory: " + ", ".join(f"{side} {size / 2 ** 30:.2f} GiB"
                                        for side, size in result["peak_memory_bytes"].items() if size))

"""What a run leaves on disk: its folder, and the finished phases that runs share.

A phase's artefact is named by its identity, a hash over all that its result depends on and nothing else. Everything is
written to a new name and renamed when whole, so that what stands under its final name is complete.
"""
import ast
import functools
import hashlib
import json
import logging
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm import tqdm

import data_utils
from arguments import NOT_PART_OF_THE_RUN, PHASES, loss_name
from data_utils import InputError
from metrics import score, write_predictions
from models import FrozenEncoder, count_weights, save_model
from resume import (Saver, checksum, checksums, lock, publish, read_json, read_record, stop_if_asked, sync, write_json,
                    write_record)

PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "numpy", "scikit-learn", "safetensors")
HERE = Path(data_utils.__file__).parent
STATE_FOLDER = "state"
TRAINING_MODULES = ("data_utils", "models", "metrics", "meta_policy", "resume")  # what phases 1 to 3 hang on
ALL_MODULES = (*TRAINING_MODULES, "curriculum")
RESIDENT_BYTES = 2 << 30  # a table of frozen outputs up to this size lies on the GPU, a larger one in its file


# --- the run folder ------------------------------------------------------------------------------------------------------

def resolved(args):
    """The arguments as args.json holds them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in sorted(vars(args).items())}


def finished_result(args, data=None):
    """The result of a finished run in --output_dir with these arguments, or None if there is something left to do.
    InputError if the folder holds another run, or something else. data: also compare the summary of data and checkpoints."""
    folder = args.output_dir
    if not folder.exists() or (folder.is_dir() and all(".part" in path.name for path in folder.iterdir())):
        return None  # or a run that was ended while it wrote its first file
    if not (folder / "args.json").is_file():
        raise InputError(f"--output_dir {folder}: it exists and is no run folder (no args.json); give another one")
    way_out = f"--output_dir {folder}: give another folder, or remove this one"
    before, now = read_json(folder / "args.json", way_out), resolved(args)
    differ = [f"--{name} {before.get(name)!r} there, {now.get(name)!r} now" for name in sorted(before | now)
              if name not in NOT_PART_OF_THE_RUN and before.get(name) != now.get(name)]
    if differ:
        raise InputError(f"--output_dir {folder}: holds a run with other arguments ({'; '.join(differ)}); give another folder, or the "
                         "arguments that it was started with")
    if data is not None and (folder / "data.json").is_file():
        there = read_json(folder / "data.json", way_out)
        changed = [name for name in sorted(there | data) if there.get(name) != data.get(name)]
        if changed:
            raise InputError(f"--output_dir {folder}: the run there was made from other data or encoders ({', '.join(changed)} changed); "
                             "give another folder")
    if not (folder / "result.json").is_file():
        return None
    result = read_record(folder / "result.json", way_out)
    order = (*PHASES, None)  # None: the whole run
    return result if order.index(result["stopped_after"]) >= order.index(args.stop_after) else None


def check_folder(folder, flag):
    """Make the folder of a flag; InputError if it cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {folder}: cannot be made ({error.strerror}); give a folder that can be written to") from None


def available_memory(device):
    """Bytes that can still be had on the device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def say_needs(args, checkpoints, train, device, say):
    """Say how much memory and disk the run will need, about, and warn where there is less. Memory: float32 weights, gradients,
    both of AdamW's moments and the best weights of what is trained at a time, activations not counted. Disk: artefacts, states,
    the frozen teacher's outputs."""
    teacher, student = count_weights(checkpoints.teacher), count_weights(checkpoints.student, args.nlayers)
    memory = 4 * 5 * max(teacher, student)
    disk = 4 * (teacher + (2 + args.undistilled + args.kd_200) * student + 2 * 4 * max(teacher, student)
                + len(train) * train.task.rows * args.nlayers * checkpoints.hidden_size)
    there = available_memory(device)
    for what, needed, found, where in (("memory", memory, there, f"on {device.type}"),
                                       ("disk", disk, shutil.disk_usage(args.phase_dir.absolute().parent).free, f"at {args.phase_dir}")):
        short = found is not None and found < needed
        say(f"{'warning: ' if short else ''}about {needed / 2 ** 20:.0f} MiB of {what} needed {where}"
            + ("" if found is None else f", {found / 2 ** 20:.0f} MiB free") + (": it may not be enough" if short else ""))


def environment():
    """Versions, machine and, when there is one, git commit."""
    def git(*words):
        try:
            return subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    commit = git("rev-parse", "HEAD")
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}, "platform": platform.platform(),
            "cpu_threads": torch.get_num_threads(), "gpu": gpu, "git_commit": commit,
            "git_changes": bool(git("status", "--porcelain")) if commit else None, "command": sys.argv,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def peak_memory_bytes():
    """Largest memory of this process so far: on the GPU where there is one, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class ScreenHandler(logging.Handler):
    """Lines on the screen that do not tear a progress bar."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class StrictFileHandler(logging.FileHandler):
    """Raises what keeps it from writing (a full disk), instead of printing it and going on."""

    def handleError(self, record):
        raise


class RunFolder:
    """Opens --output_dir and writes what happens into it: log.txt, metrics.jsonl, trajectories.jsonl; result.json last. Where a state
    of phase 4 is found, both .jsonl files are cut back to what they held when it was saved, and go on from there."""

    def __init__(self, args, device, task, data, quiz, checkpoints, drawn, data_summary):
        self.args, self.task, self.data, self.path, self.data_summary = args, task, data, args.output_dir, data_summary
        self.rows, self.seconds, self.lines, self.told, self.savers = {}, {}, {}, set(), []
        self.current, self.written = None, {}  # the phase whose lines are being written, and how many of each are
        self.tracker = open_tracker(args)
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob("*.part*"):  # by a process that was ended while it wrote
            left.unlink()
        write_json(self.path / "args.json", resolved(args))
        write_json(self.path / "environment.json", environment())
        write_json(self.path / "data.json", self.data_summary)
        self.logger = logging.getLogger("mpdistil")
        self.logger.setLevel(logging.DEBUG)
        self.logger.propagate = False
        screen, file = ScreenHandler(logging.INFO), StrictFileHandler(self.path / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self.logger.handlers = [screen, file]
        settings = {name: value for name, value in resolved(args).items() if name not in NOT_PART_OF_THE_RUN}
        self.saver = self.new_saver(self.path / STATE_FOLDER, identity_of(
            {"settings": settings, "data": data_summary, "device": device.type, "fresh": args.fresh}, *ALL_MODULES)[0])
        values = self.saver.values()
        (self.path / "result.json").unlink(missing_ok=True)
        self.going_on = values is not None
        self.metrics, self.trajectories = (self.open_lines(name, values and values["log"][name]) for name in ("metrics", "trajectories"))
        self.say(f"main task {task.name}; curriculum tasks found in {args.data_dir}: {', '.join(quiz)}")
        for name, figures in self.data_summary.items():
            if name in ("teacher_model", "student_model"):
                continue
            spans = figures.get("spans")
            self.say(f"{name}: {figures['examples']} examples, {figures['truncated']} truncated, sha256 {figures['sha256'][:16]}"
                     + (f", spans located: {', '.join(f'{count} {how}' for how, count in spans.items())}" if spans else "")
                     + (f", {figures['invisible']} with invisible characters" if "invisible" in figures else "")
                     + (f", {figures['unknown']} with characters that the tokenizer does not know" if "unknown" in figures else ""))
        for split in (data["train"], *quiz.values()):
            if split.absent_labels():
                self.say(f"warning: {split.task.name}/{split.name}: no example with label {', '.join(map(str, split.absent_labels()))}")
        for flag, folder, sha256 in (("teacher", checkpoints.teacher, checkpoints.teacher_sha256),
                                     ("student", checkpoints.student, checkpoints.student_sha256)):
            self.say(f"--{flag}_model {folder}, sha256 {sha256[:16]}"
                     + (f", without {', '.join(drawn[flag])}, drawn at random" if drawn[flag] else ""))

    def open_lines(self, name, size):
        """A .jsonl file to write to: empty, or cut back to `size` bytes."""
        path = self.path / f"{name}.jsonl"
        if size is None:
            return open(path, "w", encoding="utf-8")
        there = path.stat().st_size if path.is_file() else 0
        if there < size:
            raise InputError(f"{path}: {there} bytes found, expected at least the {size} of the saved state; remove {self.saver.folder} to "
                             "begin phase 4 again")
        os.truncate(path, size)
        return open(path, "a", encoding="utf-8")

    def position(self):
        """How far both .jsonl files have come, for a state: bytes that the disk holds."""
        for file in (self.metrics, self.trajectories):
            os.fsync(file.fileno())
        return {"metrics": self.metrics.tell(), "trajectories": self.trajectories.tell()}

    def new_saver(self, folder, identity):
        """A Saver as --save_seconds wants it, whose cost result.json will tell."""
        self.savers.append(Saver(folder, identity, self.args.save_seconds, self.say))
        return self.savers[-1]

    def say(self, text):
        """A line on the screen and in log.txt."""
        self.logger.info(text)

    def event(self, **values):
        """One line of metrics.jsonl, one of log.txt, and the tracker if there is one; nothing for a phase that stands there
        already, as when two phases that take turns are computed for the sake of one of them."""
        if values["phase"] in self.told:
            return
        kind = "epoch" if "epoch" in values else "episode"
        line = json.dumps(values) + "\n"
        if kind == "epoch":
            self.lines.setdefault(values["phase"], []).append(line)
            self.write_lines(self.current)
        else:
            self.metrics.write(line)
            self.metrics.flush()
        number = values[kind]
        scores = "  ".join(f"{split} {figures['correct']}/{figures['total']}" for split, figures in values["scores"].items())
        parts = "  ".join(f"{name} {values[name]:.4f}" for name in ("loss", "reward", "entropy", "gradient_norm") if name in values)
        loud = kind == "epoch" or values["best"] or number % 20 == 0
        self.logger.log(logging.INFO if loud else logging.DEBUG,
                        f"{values['phase']} {kind} {number}: {parts}  {scores}{'  best' if values['best'] else ''}")
        if self.tracker:
            flat = {f"{values['phase']}/{name}": value for name, value in values.items() if isinstance(value, float)}
            flat |= {f"{values['phase']}/{split}/{name}": value for split, figures in values["scores"].items()
                     for name, value in figures.items()}
            self.tracker(flat, number)

    def trajectory(self, **values):
        """One line of trajectories.jsonl."""
        self.trajectories.write(json.dumps(values) + "\n")
        self.trajectories.flush()

    @contextmanager
    def progress(self, phase, total):
        """A bar over the steps of a phase; on a terminal only, log lines say the same elsewhere."""
        with tqdm(total=total, desc=phase, disable=None, leave=False, dynamic_ncols=True) as bar:
            yield bar

    def replay(self, phase, lines):
        """Take over the events of a phase that was computed by another run, or before this one was ended."""
        if phase in self.told:
            return
        self.lines[phase] = list(lines)
        self.write_lines(self.current)

    def write_lines(self, phase):
        """Write to metrics.jsonl what it lacks of a phase. Of two phases that take turns the second one's lines follow when the
        first is finished, so that the file is the same however often the run was ended; a run that goes on in phase 4 has them."""
        lines = self.lines.get(phase, [])
        if not self.going_on:
            self.metrics.writelines(lines[self.written.get(phase, 0):])
            self.metrics.flush()
        self.written[phase] = len(lines)

    def add_row(self, name, store, phase, predict):
        """A row from a finished phase: predictions of dev and test, scored where labelled."""
        predictions = {split: store.predictions(phase, self.data[split], predict) for split in ("dev", "test") if split in self.data}
        self.seconds[name] = phase.seconds
        self.write_row(name, predictions, {"epoch": phase.best["epoch"]})

    def add_final_row(self, best, predict):
        """The row of phase 4."""
        name = "no_curriculum" if self.args.curriculum == "main_task" else "mpdistil"
        predictions = {split: best.answers.get(split) or predict(self.data[split]).argmax(-1).tolist()
                       for split in ("dev", "test") if split in self.data}
        lines = [json.loads(line) for line in (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        self.seconds["mpdistil"] = round(sum(line["seconds"] for line in lines if line["phase"] == "mpdistil"), 2)
        self.write_row(name, predictions, {"episode": best.index})

    def write_row(self, name, predictions, when):
        for split, answers in predictions.items():
            path = self.path / "predictions" / name / split / f"{self.task.name}.jsonl"
            write_predictions(path, self.task, self.data[split].idx, answers)
        dev = self.data["dev"]
        right = "".join("01"[answer == label] for answer, label in zip(predictions["dev"], dev.labels.tolist(), strict=True))
        self.rows[name] = {"dev": {**score(self.task, predictions["dev"], dev.labels), **when, "right": right} if dev.labelled else None}

    def save_student(self, student, policy, names, tokenizer):
        """models/student, which AutoModel loads, and models/policy.safetensors, whose actions are `names` in order."""
        save_model(student, self.path / "models" / "student", names, tokenizer)
        save_file({name: value.detach().cpu() for name, value in policy.state_dict().items()}, self.path / "models" / "policy.safetensors",
                  metadata={"actions": " ".join(names)})

    def finish(self, store):
        """Write where the phases lie and, last, result.json; say the rows. Returns exit code 0."""
        self.metrics.close()
        self.trajectories.close()
        args = self.args
        phases = {name: {"identity": phase.identity, "folder": os.path.relpath(phase.folder, self.path), "best": phase.best,
                         "reused": phase.reused} for name, phase in store.done.items()}
        dev = self.data["dev"]
        result = {"task": self.task.name, "protocol": args.protocol, "set": args.set, "protocol_choices": args.protocol_choices,
                  "loss": loss_name(args), "reward": args.reward_function, "curriculum": args.curriculum, "seed": args.seed,
                  "teacher_model": args.teacher_model,
                  "student_model": args.student_model, "nlayers": args.nlayers, "select_on": args.select_on,
                  "dev_labels": np.bincount(dev.labels, minlength=len(self.task.labels)).tolist() if dev.labelled else None,
                  "rows": self.rows,
                  "seconds": self.seconds,
                  "saving": {"seconds": round(sum(saver.cost for saver in self.savers), 2),
                             "states": sum(saver.saves for saver in self.savers)},
                  "peak_memory_bytes": peak_memory_bytes(),
                  "reused": [name for name, phase in store.done.items() if phase.reused], "phases": phases, "data": self.data_summary,
                  "stopped_after": args.stop_after}
        (self.path / "models").mkdir(exist_ok=True)
        write_json(self.path / "models" / "phases.json", phases)
        for path in self.path.rglob("*"):
            sync(path)
        write_record(self.path / "result.json", result)
        if args.stop_after is None:
            self.saver.clear()
        say_result(result, self.path, self.say)
        return 0


def say_result(result, folder, say):
    """The table of rows with counts, and where everything lies."""
    changes = "".join(f" {change}" for change in result["set"])
    say(f"{result['task']}, protocol {result['protocol']}{changes}, loss {result['loss']}, reward {result['reward']}, curriculum "
        f"{result['curriculum']}, seed {result['seed']}; dev:")
    for name, row in result["rows"].items():
        dev = row["dev"]
        if dev is None:
            say(f"  {name:<14} not scored: dev has no labels")
            continue
        f1 = f"  macro-F1 {100 * dev['f1']:.1f}" if "f1" in dev else ""
        when = f"epoch {dev['epoch']}" if "epoch" in dev else f"episode {dev['episode']}"
        reused = "  reused" if name in result["reused"] else ""
        say(f"  {name:<14} {dev['correct']:>5}/{dev['total']:<5} {100 * dev['accuracy']:5.1f}{f1}  {when}"
            f"  {result['seconds'].get(name, result['seconds'].get('mpdistil', 0)):.0f} s{reused}")
    say(f"result.json, metrics.jsonl, predictions/ and models/ are in {folder}")


def open_tracker(args):
    """A function (figures, step) that sends figures to --report_to, which it opens at the first; None by default. A run that goes
    on from a state sends again what came after it."""
    if args.report_to == "none":
        return None
    try:
        if args.report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter
        else:
            import wandb
    except ImportError as error:
        raise InputError(f"--report_to {args.report_to}: not installed ({error}); pip install {args.report_to}, or leave the flag "
                         "out") from None
    opened, axes = {}, set()

    def send_to_tensorboard(figures, step):
        if "writer" not in opened:
            opened["writer"] = SummaryWriter(args.output_dir / "tensorboard")
        for name, value in figures.items():
            opened["writer"].add_scalar(name, value, step)
        opened["writer"].flush()

    def send_to_wandb(figures, step):  # wandb has one step counter for the run: each phase brings its own axis
        if "run" not in opened:
            opened["run"] = wandb.init(project="mpdistil", name=str(args.output_dir), config=resolved(args),
                                       dir=str(args.output_dir.parent))
        phase = next(iter(figures)).split("/")[0]
        if phase not in axes:
            axes.add(phase)
            opened["run"].define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        opened["run"].log({**figures, f"{phase}/step": step})

    return send_to_tensorboard if args.report_to == "tensorboard" else send_to_wandb


# --- phases that runs share ----------------------------------------------------------------------------------------------

@functools.cache
def code_checksum(*modules):
    """sha256 over the syntax trees of the project's modules without docstrings, so that a comment changes nothing and an
    edited loss is never served from an older artefact."""
    digest = hashlib.sha256()
    for name in modules:
        tree = ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                del body[0]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def split_file(split, ending):
    """The name of a file about a split: the same name, the same tokens."""
    return f"{split.task.name}-{split.name}-{split.encoded_checksum()[:16]}{ending}"


@dataclass
class Phase:
    """A finished phase: identity (sha256), folder of its artefact, best {"epoch", "scores"}, seconds it took, whether reused."""
    name: str
    identity: str
    folder: Path
    best: dict
    seconds: float
    reused: bool


def identity_of(depends, *modules):
    """(sha256, what it is of): of `depends`, the versions of the libraries that compute, and these modules of the project."""
    depends = {**depends, "versions": {package: version(package) for package in ("torch", "transformers")},
               "code": code_checksum(*modules)}
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest(), depends


class PhaseStore:
    """Finished phases under --phase_dir: <phase>-<identity>/, with the weights, phase.json, metrics.jsonl and predictions/; beside
    them, in .<phase>-<identity>.state/, the states of unfinished ones."""

    def __init__(self, folder, log):
        self.folder, self.log, self.done = folder, log, {}
        folder.mkdir(exist_ok=True)

    def saver(self, folder):
        """The Saver of the phase that will stand in `folder`."""
        return self.log.new_saver(self.folder / f".{folder.name}.state", folder.name)

    def run(self, name, settings, inputs, save, load, compute, keep_state=False):
        """The phase `name`: read back if an artefact of the same identity is there, else computed and kept. Of two runs that
        need it at one time, one computes it and the other waits.

        settings: a dataclass; inputs: checksums and identities of what it reads. save(folder) and load(folder) move the
        weights, compute(saver) trains them, from the saver's state on if there is one, and returns a Best. keep_state: another
        phase ends with this state too, and will clear it.
        """
        identity, depends = identity_of({"phase": name, "settings": asdict(settings), "inputs": inputs}, *TRAINING_MODULES)
        folder = self.folder / f"{name}-{identity[:16]}"
        with lock(self.folder / f".{folder.name}.lock", self.log.say):
            return self.run_alone(name, identity, depends, folder, save, load, compute, keep_state)

    def run_alone(self, name, identity, depends, folder, save, load, compute, keep_state):
        """run, while no other process works on this phase."""
        reused, saver, self.log.current = (folder / "phase.json").is_file(), self.saver(folder), name
        if reused:
            record = read_record(folder / "phase.json", f"remove {folder}")
            if record["depends_on"] != depends:
                raise InputError(f"--phase_dir: {folder}/phase.json does not describe the phase that its name says; remove that folder")
            for file, expected in record["files"].items():
                if not (folder / file).is_file() or checksum(folder / file) != expected:
                    raise InputError(f"{folder / file}: not the bytes that were written (sha256); remove {folder}")
            self.log.say(f"{name}: already computed, taken from {folder}")
            load(folder)
            self.log.replay(name, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True))
        else:
            self.log.say(f"{name}: computing")
            best = compute(saver)
            seconds = sum(json.loads(line)["seconds"] for line in self.log.lines[name])  # of its own epochs, where phases take turns
            record = {"phase": name, "identity": identity, "depends_on": depends, "best": {"epoch": best.index, "scores": best.scores},
                      "seconds": round(seconds, 2)}
            self.publish(folder, save, record, best.answers)
        if not keep_state:
            saver.clear()
        self.log.write_lines(name)
        self.log.told.add(name)
        phase = Phase(name, identity, folder, record["best"], record["seconds"], reused)
        self.done[name] = phase
        return phase

    def publish(self, folder, save, record, answers):
        """Write an artefact beside its final name and rename it when the disk holds it."""
        for left in self.folder.glob(f"{folder.name}.part*"):  # by a process that was ended while it wrote
            shutil.rmtree(left)
        part = folder.with_name(f"{folder.name}.part")
        save(part)
        (part / "metrics.jsonl").write_text("".join(self.log.lines[record["phase"]]), encoding="utf-8")
        (part / "predictions").mkdir()
        for name, numbers in answers.items():
            write_record(part / "predictions" / split_file(self.log.data[name], ".json"), {"answers": numbers})
        write_record(part / "phase.json", {**record, "files": checksums(part)})
        publish(part, folder)

    def predictions(self, phase, split, predict):
        """Class numbers that the phase's model gives a split: from the artefact, or predicted now and kept there."""
        path = phase.folder / "predictions" / split_file(split, ".json")
        if not path.is_file():
            write_record(path, {"answers": predict(split).argmax(-1).tolist()})
        return read_record(path, f"remove {path}")["answers"]


class StoredOutputs(FrozenEncoder):
    """A FrozenEncoder whose tables are files in the folder of its phase (outputs/*.npy), memory-mapped: an example goes through
    the encoder once for all runs that share the phase. The encoder is read only when a table is missing, and let go again."""

    def __init__(self, phase, encoder_of, batch_size, device, say):
        super().__init__(None, batch_size, device)
        self.folder, self.encoder_of, self.say = phase.folder / "outputs", encoder_of, say

    def prepare(self, *wanted):
        """Have the tables of (split, layers) pairs made in one go."""
        missing = [(split, layers) for split, layers in wanted if self.find(split, layers) is None]
        if missing:
            self.folder.mkdir(exist_ok=True)
            with lock(self.folder / ".lock", self.say):
                for left in self.folder.glob("*.part"):  # by a process that was ended while it wrote
                    left.unlink()
                missing = [(split, layers) for split, layers in missing if self.find(split, layers) is None]
                self.encoder = self.encoder_of() if missing else None
                for split, layers in missing:
                    self.write(split, layers)
                self.encoder = None
        for split, layers in wanted:
            made = "run" if (split, layers) in missing else "not needed, outputs read"
            self.say(f"{self.folder.parent.name}: encoder {made} for {len(split)} examples of {split.name}")

    def table(self, split, layers):
        path = self.find(split, layers)
        if path is None:
            self.prepare((split, layers))
            path = self.find(split, layers)
        table = torch.from_numpy(np.load(path, mmap_mode="c"))
        on_gpu = self.device.type == "cuda" and table.nbytes <= RESIDENT_BYTES
        return table.to(self.device) if on_gpu else table

    def find(self, split, layers):
        """The file that has at least these layers of the split; None if there is none. InputError if it was altered."""
        for path in sorted(self.folder.glob(split_file(split, "-*.npy"))):
            said = read_record(path.with_suffix(".json"), f"remove {self.folder}")
            if said["layers"] < layers:
                continue
            if checksum(path) != said["sha256"]:
                raise InputError(f"{path}: not the bytes that were written (sha256); remove {self.folder}")
            return path

    def write(self, split, layers):
        """Fill a new file, and give it its name when it is whole."""
        path = self.folder / split_file(split, f"-{layers}.npy")
        part = path.with_suffix(".part")
        dtype = torch.empty(0, dtype=self.encoder.pooler_weight.dtype).numpy().dtype
        mapped = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=self.shape(split, layers))
        if hasattr(os, "posix_fallocate"):  # a disk that is full says so here, not by a bus error in the middle
            with open(part, "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
        self.fill(torch.from_numpy(mapped), split, stop_if_asked)
        mapped.flush()
        sync(part)
        write_record(path.with_suffix(".json"), {"layers": layers, "sha256": checksum(part)})
        os.replace(part, path)

"""What a run leaves in --output_dir: log.txt, args.json, environment.json, data.json, metrics.jsonl,
trajectories.jsonl, predictions/, models/ and, last, result.json. docs/RUN_FOLDER.md says what each of them
holds."""
import json
import logging
import os
import sys
from contextlib import contextmanager

from tqdm import tqdm

from bookkeeping.errors import InputError
from bookkeeping.files import sync, write_json, write_record
from bookkeeping.machine import environment, peak_memory_bytes
from bookkeeping.states import Saver
from metrics import named_scores, spoken

STATE_FOLDER = "state"  # of phase 4, which belongs to the run alone
LIMITS = ("quiz_size", "max_train")  # flags by which a run uses less than all data
NOT_SYNCED = ("tensorboard", "wandb")  # what trackers write, also while the run ends


class ScreenHandler(logging.Handler):
    """Lines on the screen that do not tear a progress bar."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class StrictFileHandler(logging.FileHandler):
    """Raises what keeps it from writing (a full disk), instead of printing it and going on."""

    def handleError(self, record):
        raise


class PhaseLog:
    """The lines of metrics.jsonl of a phase that runs share. From show() on they stand in the run's file too,
    as they come; of two phases that take turns the second one's lines follow when the first is finished, so
    that the file is the same however often the run was ended."""

    def __init__(self, folder):
        self.folder, self.lines, self.shown, self.closed = folder, [], False, False
        self.written = self.sent = 0

    def event(self, **values):
        """An epoch. Nothing after close(), as when two phases that take turns are computed for the sake of
        one."""
        if not self.closed:
            self.folder.announce(values)
            self.take([*self.lines, json.dumps(values) + "\n"])

    def take(self, lines):
        """The phase's lines so far."""
        if not self.closed:
            self.lines = list(lines)
            self.write()
            for line in self.lines[self.sent:]:
                self.folder.tracker.send(json.loads(line))
            self.sent = len(self.lines)

    def show(self):
        self.shown = True
        self.write()

    def close(self):
        self.closed = True

    def write(self):
        if self.shown:
            if not self.folder.going_on:  # else the file has them
                self.folder.metrics.writelines(self.lines[self.written:])
                self.folder.metrics.flush()
            self.written = len(self.lines)

    def progress(self, name, total):
        return self.folder.progress(name, total)

    def state_dict(self):
        return {"lines": self.lines}

    def load_state_dict(self, state):
        self.take(state["lines"])


class RunFolder:
    """Opens a run's folder and writes what happens into it. settings: the resolved flags; identity: of the
    state of phase 4; tracker: a Tracker, which is told the same."""

    def __init__(self, path, settings, data, identity, save_seconds, tracker):
        self.path, self.tracker, self.save_seconds = path, tracker, save_seconds
        self.rows, self.seconds, self.savers, self.phase_logs = {}, {}, [], {}
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob("*.part*"):  # by a process that was ended while it wrote
            left.unlink()
        write_json(self.path / "args.json", settings)
        self.environment = environment(settings["device"] != "cpu")
        write_json(self.path / "environment.json", self.environment)
        write_json(self.path / "data.json", data)
        self.logger = open_logger(self.path / "log.txt")
        self.saver = self.new_saver(self.path / STATE_FOLDER, identity)
        self.going_on = self.saver.newest() is not None  # a state of phase 4 vouches for what the files hold
        (self.path / "result.json").unlink(missing_ok=True)
        mode = "a" if self.going_on else "w"
        self.metrics, self.trajectories = (open(self.path / f"{name}.jsonl", mode, encoding="utf-8")
                                           for name in ("metrics", "trajectories"))
        tracker.start(self.say)

    def new_saver(self, folder, identity):
        """A Saver as --save_seconds wants it, whose cost result.json will tell."""
        self.savers.append(Saver(folder, identity, self.save_seconds, self.say, self.path.name))
        return self.savers[-1]

    def say(self, text):
        """A line on the screen and in log.txt."""
        self.logger.info(text)

    def lines_of(self, phase):
        """The PhaseLog of a phase that runs share."""
        return self.phase_logs.setdefault(phase, PhaseLog(self))

    def announce(self, values):
        """An epoch or episode: one line of log.txt."""
        kind = "epoch" if "epoch" in values else "episode"
        number, phase = values[kind], values["phase"]
        scores = "  ".join(f"{split} {spoken(figures)}" for split, figures in values["scores"].items())
        parts = "  ".join(f"{name} {values[name]:.4f}"
                          for name in ("loss", "reward", "entropy", "gradient_norm") if name in values)
        loud = kind == "epoch" or values["best"] or number % 20 == 0
        self.logger.log(logging.INFO if loud else logging.DEBUG,
                        f"{phase} {kind} {number}: {parts}  {scores}{'  best' if values['best'] else ''}")

    # phase 4 writes its lines straight into the run's files: it is the log of its own loop

    def event(self, **values):
        """An episode: one line of metrics.jsonl."""
        self.announce(values)
        self.metrics.write(json.dumps(values) + "\n")
        self.metrics.flush()
        self.tracker.send(values)

    def trajectory(self, **values):
        """One line of trajectories.jsonl."""
        self.trajectories.write(json.dumps(values) + "\n")
        self.trajectories.flush()

    @contextmanager
    def progress(self, phase, total):
        """A bar over the steps of a phase; on a terminal only, log lines say the same elsewhere."""
        with tqdm(total=total, desc=phase, disable=None, leave=False, dynamic_ncols=True) as bar:
            yield bar

    def state_dict(self):
        """How far both .jsonl files have come: bytes that the disk holds."""
        for file in (self.metrics, self.trajectories):
            os.fsync(file.fileno())
        return {"metrics": self.metrics.tell(), "trajectories": self.trajectories.tell()}

    def load_state_dict(self, positions):
        """Cut both files back to what they held, and go on from there."""
        for name, file in (("metrics", self.metrics), ("trajectories", self.trajectories)):
            size = positions[name]
            there = os.fstat(file.fileno()).st_size
            if there < size:
                raise InputError(
                    f"{file.name}: {there} bytes found, expected at least the {size} of the saved state; "
                    f"remove {self.saver.folder} to begin phase 4 again")
            file.truncate(size)
            file.seek(size)
        self.tracker.send_file(self.path / "metrics.jsonl")

    def seconds_of_episodes(self):
        """Seconds that the episodes in metrics.jsonl took."""
        lines = map(json.loads, (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return round(sum(line["seconds"] for line in lines if "episode" in line), 2)

    def add_row(self, name, phase, seconds, figures):
        """A row of the result: figures by split (dev: None where it is not scored); seconds that `phase`
        took."""
        self.rows[name] = figures
        self.seconds[phase] = seconds

    def finish(self, facts, phases):
        """Write where the phases lie and, last, result.json; say the rows. facts: what the result says of the
        run besides; phases: {name: Phase}."""
        self.metrics.close()
        self.trajectories.close()
        here = self.path.resolve()  # else the way from a link to a folder leads nowhere
        phases = {name: {"identity": phase.identity, "folder": os.path.relpath(phase.folder.resolve(), here),
                         "best": phase.best, "reused": phase.reused, "environment": phase.environment}
                  for name, phase in phases.items()}
        result = {**facts, "rows": self.rows, "seconds": self.seconds,
                  "saving": {"seconds": round(sum(saver.cost for saver in self.savers), 2),
                             "states": sum(saver.saves for saver in self.savers)},
                  "peak_memory_bytes": peak_memory_bytes(),
                  "reused": [name for name, phase in phases.items() if phase["reused"]], "phases": phases}
        (self.path / "models").mkdir(exist_ok=True)
        write_json(self.path / "models" / "phases.json", phases)
        for own in self.path.iterdir():
            if own.name not in NOT_SYNCED:
                for path in (own, *own.rglob("*")):
                    if not path.is_symlink():
                        sync(path)
        write_record(self.path / "result.json", result)
        if result["stopped_after"] is None:
            self.saver.clear()
        self.tracker.send_file(self.path / "metrics.jsonl")  # and the episodes that a saved state has reached
        self.tracker.finish(result)
        say_result(result, self.path, self.say)


def open_logger(path):
    """The logger of the run: everything to `path`, what is loud to the screen too."""
    logger = logging.getLogger("mpdistil")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    screen, file = ScreenHandler(logging.INFO), StrictFileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.handlers = [screen, file]
    return logger


def describe_inputs(inputs, drawn):
    """Lines that say what a run reads. drawn: {"teacher", "student": names of weights that are drawn at
    random}."""
    yield (f"main task {inputs.task.name}; curriculum tasks found in {inputs.args.data_dir}:"
           f" {', '.join(inputs.quiz)}")
    for name, figures in inputs.summary.items():
        if not isinstance(figures, dict):
            continue
        spans = figures.get("spans")
        yield (f"{name}: {figures['examples']} examples, {figures['truncated']} truncated, sha256 "
               f"{figures['sha256'][:16]}" +
               (f", spans located: {', '.join(f'{count} {how}' for how, count in spans.items())}"
                if spans else "") +
               (f", {figures['invisible']} with invisible characters" if "invisible" in figures else "") +
               (f", {figures['unknown']} with characters that the tokenizer does not know"
                if "unknown" in figures else ""))
    for split in (inputs.data["train"], *inputs.quiz.values()):
        if split.absent_labels():
            yield (f"warning: {split.task.name}/{split.name}: no example with label "
                   f"{', '.join(map(str, split.absent_labels()))}")
    args = inputs.args
    if args.select_on == "quiz":
        yield ("warning: --select_on quiz: phases 3 and 4 train on quiz, so that their scores there favour "
               "what they learnt by heart")
    if args.curriculum == "policy" and inputs.protocol.advantage == "episode_mean" and (
            len(inputs.data["quiz"]) <= args.val_dataloader_size):
        yield (f"warning: --val_dataloader_size {args.val_dataloader_size}: quiz has "
               f"{len(inputs.data['quiz'])} examples, one batch, so that an episode has one step, whose "
               "advantage is always 0, and the policy learns nothing; lower it")
    splits = (*inputs.data.values(), *inputs.quiz.values())
    for split in {(split.task.name, split.name): split for split in splits}.values():
        yield from split.remarks()
    for side, names in drawn.items():
        folder, sha256 = getattr(inputs.checkpoints, side), inputs.summary[f"{side}_model"]
        yield (f"--{side}_model {folder}, sha256 {sha256[:16]}"
               + (f", without {', '.join(names)}, drawn at random" if names else ""))


def limits_of(data):
    """Texts that say which splits were not read whole. data: of result.json."""
    return [f"{name} {split['examples']} of {split['examples'] + split[f'over_{flag}']} (--{flag})"
            for name, split in data.items() for flag in LIMITS
            if isinstance(split, dict) and split.get(f"over_{flag}")]


def say_result(result, folder, say):
    """The table of rows with counts, and where everything lies."""
    changes = "".join(f" {change}" for change in result["set"])
    say(f"{result['task']}, protocol {result['protocol']}{changes}, loss {result['loss']}, reward"
        f" {result['reward']}, curriculum {result['curriculum']}, seed {result['seed']}"
        f"{''.join(f'; {text}' for text in limits_of(result['data']))}; dev:")
    for name, row in result["rows"].items():
        if row["dev"] is None:
            say(f"  {name:<14} not scored: dev has no labels")
            continue
        dev = row["dev"]
        more = "".join(f"  {split} {spoken(row[split])}" for split in row if split != "dev")
        others = "".join(f"  {text}" for text in named_scores(dev))
        if "correct" in dev:
            counts = f"{dev['correct']:>5}/{dev['total']:<5} {100 * dev['accuracy']:5.1f}"
        else:
            counts = f"{dev['total']:>5} examples  MSE {dev['mse']:.4f}"
        if "constant" in dev:
            more += f"  constant {dev['constant']}, no correlation: 0 stands for it"
        when = f"epoch {dev['epoch']}" if "epoch" in dev else f"episode {dev['episode']}"
        reused = "  reused" if name in result["reused"] else ""
        seconds = result["seconds"].get(name, result["seconds"].get("mpdistil", 0))
        say(f"  {name:<14} {counts}{others}{more}  {when}  {seconds:.0f} s{reused}")
    say(f"result.json, metrics.jsonl, predictions/ and models/ are in {folder}")

"""Finished phases that runs share: <phase_dir>/<phase>-<identity>/, with the weights, phase.json,
metrics.jsonl, predictions/ and outputs/; beside them, in .<phase>-<identity>.state/, the states of unfinished
ones.

An artefact is named by its identity, a hash over all that its result depends on and nothing else. It is
written to a new name and renamed when whole, so that what stands under its final name is complete.
"""
import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from bookkeeping.errors import InputError
from bookkeeping.files import checksum, checksums, lock, publish, read_record, sync, write_record
from bookkeeping.identity import identity_of, provenance_of
from bookkeeping.signals import stop_if_asked
from bookkeeping.states import Saver
from models import FrozenEncoder

# a table of frozen outputs up to this size lies on the GPU, a larger one in its file
RESIDENT_BYTES = 2 << 30


def split_file(split, ending):
    """The name of a file about a split: the same name, the same tokens."""
    return f"{split.task.name}-{split.name}-{split.encoded_checksum()[:16]}{ending}"


@dataclass
class Phase:
    """A phase that is being opened: found finished, or to be computed and published.

    identity (sha256) is of depends_on, folder that of the artefact; splits: those that answers may be about;
    best: {"epoch", "scores"}; seconds: what computing took; environment: where, and by what commit, it was
    computed.
    """
    name: str
    identity: str
    depends_on: dict
    folder: Path
    splits: dict
    log: object
    saver: Saver
    finished: bool = False
    reused: bool = False
    best: dict = field(default_factory=dict)
    seconds: float = 0.0
    environment: dict = field(default_factory=dict)

    def read(self):
        """Take over what an artefact says of itself; InputError if it was altered."""
        record = read_record(self.folder / "phase.json", f"remove {self.folder}")
        if record["depends_on"] != self.depends_on:
            raise InputError(
                f"--phase_dir: {self.folder}/phase.json does not describe the phase that its name says; "
                "remove that folder")
        for file, expected in record["files"].items():
            if not (self.folder / file).is_file() or checksum(self.folder / file) != expected:
                raise InputError(f"{self.folder / file}: not the bytes that were written (sha256); remove "
                                 f"{self.folder}")
        self.best, self.seconds, self.environment = record["best"], record["seconds"], record["environment"]
        self.finished = self.reused = True
        self.log.take((self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True))

    @contextmanager
    def publish(self, best):
        """A folder to write the weights to. It is renamed to its final name when the disk holds all of it,
        with what the phase says of itself. best: a metrics.Best."""
        # by a process that was ended while it wrote
        for left in self.folder.parent.glob(f"{self.folder.name}.part*"):
            shutil.rmtree(left)
        part = self.folder.with_name(f"{self.folder.name}.part")
        part.mkdir()
        yield part
        (part / "metrics.jsonl").write_text("".join(self.log.lines), encoding="utf-8")
        (part / "predictions").mkdir()
        for name, answers in best.answers.items():
            write_record(part / "predictions" / split_file(self.splits[name], ".json"), {"answers": answers})
        self.best = {"epoch": best.index, "scores": best.scores}
        # of its own epochs, where phases take turns
        self.seconds = round(sum(json.loads(line)["seconds"] for line in self.log.lines), 2)
        write_record(part / "phase.json", {
            "phase": self.name, "identity": self.identity, "depends_on": self.depends_on, "best": self.best,
            "seconds": self.seconds, "environment": self.environment, "files": checksums(part)})
        publish(part, self.folder)
        self.finished = True

    def answers(self, split, predict):
        """What the phase's model answers to a split: from the artefact, or predicted now and kept there."""
        path = self.folder / "predictions" / split_file(split, ".json")
        if not path.is_file():
            write_record(path, {"answers": predict(split)})
        return read_record(path, f"remove {path}")["answers"]


class PhaseStore:
    """The phases under --phase_dir. splits: {name: Split} of the main task; saver_of(folder, identity): a
    Saver; say: for lines in the log; environment: where, and by what commit, this process computes. phases:
    {name: Phase}, those that were opened."""

    def __init__(self, folder, splits, saver_of, say, environment):
        self.folder, self.splits, self.saver_of, self.say, self.phases = folder, splits, saver_of, say, {}
        self.environment = provenance_of(environment)
        folder.mkdir(exist_ok=True)

    @contextmanager
    def open(self, name, function, settings, reads, log, without=(), keep_state=False):
        """The Phase `name`, whose result depends on the code of `function` (but for what it calls by the
        names `without`), on settings (a dataclass) and on reads (checksums and identities). Of two runs
        that need it at one time, one computes it and the other waits.

        log: the phase's lines. keep_state: another phase ends with this state too, and will clear it.
        """
        identity, depends = identity_of({"phase": name, "settings": asdict(settings), "reads": reads},
                                        function, without)
        folder = self.folder / f"{name}-{identity[:16]}"
        with lock(self.folder / f".{folder.name}.lock", self.say):
            saver = self.saver_of(self.folder / f".{folder.name}.state", folder.name)
            phase = Phase(name, identity, depends, folder, self.splits, log, saver,
                          environment=self.environment)
            self.phases[name] = phase
            log.show()
            if (folder / "phase.json").is_file():
                phase.read()
                self.say(f"{name}: already computed, taken from {folder}")
            else:
                self.say(f"{name}: computing")
            yield phase
            if not phase.finished:
                raise RuntimeError(f"phase {name} was opened and neither found finished nor published")
            log.close()
            if not keep_state:
                saver.clear()


class StoredOutputs(FrozenEncoder):
    """A FrozenEncoder whose tables are files in the folder of its phase (outputs/*.npy), memory-mapped: an
    example goes through the encoder once for all runs that share the phase. The encoder is read only when a
    table is missing, and let go again. encoder_of(): the encoder."""

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
        """The file that has at least these layers of the split; None if there is none. InputError if it was
        altered."""
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
        # a disk that is full says so here, not by a bus error in the middle
        if hasattr(os, "posix_fallocate"):
            with open(part, "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
        self.fill(torch.from_numpy(mapped), split, stop_if_asked)
        mapped.flush()
        sync(part)
        write_record(path.with_suffix(".json"), {"layers": layers, "sha256": checksum(part)})
        os.replace(part, path)

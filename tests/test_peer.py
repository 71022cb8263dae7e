"""Beside the lab's package: what can be tested without it. With MPDISTIL_PEER=PYTHON, `-m slow` also runs the
comparison."""
import json
import os
import sys
from types import SimpleNamespace

import pytest
import transformers

from lib.peer import check_environment, check_flags, check_splits, compare_sides, evaluations_of, padded
from lib.peer_side import Rounds, stand_in

import benchmark
from arguments import parse_arguments
from bookkeeping.errors import InputError
from conftest import as_words
from data_utils import load_task
from tasks import TASKS
from test_scripts import script

PHASES = ("teacher", "kd", "meta_teacher", "mpdistil")


def words_of(tmp_path, peer, **flags):
    """The benchmark's command line, small."""
    settings = {"peer": peer, "task": "CB", "tasks": ["CB", "RTE"], "max_seq_length": 16,
                "train_dataloader_size": 6, "val_dataloader_size": 6, "json": tmp_path / "out.json", **flags}
    return ["scripts/benchmark.py", *as_words(settings)]


def split_of(task, encoders, data_dir, name):
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoders["bert"])
    return load_task(TASKS[task], data_dir, tokenizer, 64, 42, 4)[name]


# --- refused ------------------------------------------------------------------------------------------------

def test_an_environment_that_is_not_there_is_refused_in_one_line(encoders, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", words_of(tmp_path, sys.executable, data_dir=data_dir,
                                              teacher_model=encoders["bert"]))
    with pytest.raises(InputError) as refused:
        benchmark.main()
    said = str(refused.value)
    assert said.startswith(f"--peer {sys.executable}: ") and "\n" not in said
    assert "No package metadata was found for mpdistil; expected mpdistil 0.1.0 there" in said
    assert "python -m venv PEER && PEER/bin/pip install mpdistil==0.1.0" in said
    assert not (tmp_path / "out.json").exists()
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho 0.2.0\n")
    other.chmod(0o755)
    for python, found in ((tmp_path / "none", "No such file or directory, expected an interpreter"),
                          (other, "mpdistil 0.2.0 found, expected 0.1.0")):
        with pytest.raises(InputError, match=f"^--peer {python}: {found}; make an environment"):
            check_environment(str(python))
    other.write_text("#!/bin/sh\necho 0.1.0\n")
    check_environment(str(other))


def test_what_cannot_be_compared_is_refused(encoders, data_dir):
    check_flags(parse_arguments(["--task", "CB", "--data_dir", "data"]))
    for flags in (["--device", "cuda"], ["--val_dataloader_size", "4"], ["--kd_200"],
                  ["--stop_after", "kd"]):
        with pytest.raises(InputError, match=f"^{flags[0]}.*: found together with --peer"):
            check_flags(parse_arguments(["--task", "CB", "--data_dir", "data", *flags]))
    check_splits({"dev": split_of("CB", encoders, data_dir, "dev")})
    with pytest.raises(InputError, match="--tasks: COPA found together with --peer"):
        check_splits({"COPA": split_of("COPA", encoders, data_dir, "quiz")})


# --- arithmetic ---------------------------------------------------------------------------------------------

def record(phase, seconds, steps=0, stepping=0.0, evaluating=0.0, after=0.0, rows=None, trained=0,
           kind="round"):
    wall = {"seconds": seconds, "stepping_s": stepping, "evaluating_s": evaluating, "after_s": after}
    return {"kind": kind, "phase": phase, "wall": wall, "steps": steps, "evaluations": int(evaluating > 0),
            "rows": rows or {}, "trained": trained, "tokens": 0, "evaluated": {}}


def test_ratios_by_hand():
    """The package in phases 1 and 2: 6 s on 20 examples, 4 updates of 0.5 s, an evaluation of 2 s. For our 30
    examples and 6 updates that is 9 + 3 + 2 = 14 s. In phase 3 2.6 s on 8, 2 updates of 0.2 s, 1 s; for our 4
    and 1 update 1.3 + 0.2 + 1 = 2.5 s. In phase 4 7 s on 10, 1 update of 1 s, and 4 s at every other episode
    here; for our 5, 3 updates and an evaluation 3.5 + 3 + 4 = 10.5 s."""
    first = {"steps": 4, "stepping": 2.0, "evaluating": 1.0, "after": 1.0}
    theirs = [
        record(None, 3.0, kind="start"),
        *[record("teacher", 10.0, **first, rows={"4": 20}, trained=20)] * 2,
        record("kd", 10.0, **first, rows={"4": 20, "2": 20}, trained=20),
        record("meta_teacher", 4.0, 2, 0.4, 1.0, rows={"4": 8, "2": 8}),
        record("mpdistil", 12.0, 1, 1.0, 3.0, 1.0, rows={"2": 20, "4": 10}, trained=10),
        record("mpdistil", 8.0, 1, 1.0, rows={"2": 20, "4": 10}, trained=10),
        record(None, 2.0, kind="end")]
    ours = [
        record(None, 1.0, kind="start"),
        record("teacher", 5.0, 6, 1.0, 1.0, trained=30),
        record("kd", 3.0, kind="around"), record("kd", 5.0, 6, 1.0, 1.0, trained=30),
        record("meta_teacher", 0.5, 1, 0.1, 0.1),
        record("mpdistil", 4.0, 3, 1.0, 1.0, trained=5),
        record(None, 1.0, kind="end")]
    examples = dict(zip(PHASES, (30, 30, 4, 5)))
    found = compare_sides({"peer": theirs, "bf16": ours}, examples, dict(zip(PHASES, (10, 10, 10, 20))))
    like = [found["phases"][phase]["bf16"]["like_for_like"] for phase in PHASES]
    whole = [found["phases"][phase]["bf16"]["ratio"] for phase in PHASES]
    assert like == pytest.approx([14 / 5, 14 / 5, 2.5 / 0.5, 10.5 / 4])
    assert whole == pytest.approx([10 / 5, 10 / 5, 4 / 0.5, 10 / 4])
    assert [found["phases"][phase]["peer"]["examples"] for phase in PHASES] == [20, 20, 8, 10]
    # the run: 5 + 10 * 10 + 10 * 10 + 10 * 4 + (20 * 8 + 3 * 4) s; ours 2 + 50 + (3 + 50) + 5 + 80 s
    run = found["run"]
    assert (run["peer"]["run_s"], run["bf16"]["run_s"]) == pytest.approx((417, 190))
    assert run["bf16"]["ratio"] == pytest.approx(417 / 190)
    assert run["bf16"]["like_for_like"] == pytest.approx((5 + 140 + 140 + 25 + 210) / 190)


def test_the_package_evaluates_at_the_first_episode_and_at_each_tenth():
    found = [evaluations_of("mpdistil", episodes) for episodes in (1, 9, 10, 200)]
    assert found == [1, 1, 2, 21] and evaluations_of("kd", 10) == 10


# --- what is watched ----------------------------------------------------------------------------------------

def test_where_the_packages_rounds_end():
    """After an evaluation; in phase 4 at the first pass with gradients after the policy's step."""
    told = []
    watch = SimpleNamespace(metric_at=None, optimizers={})

    def stop(kind, phase):
        told.append(phase)
        watch.metric_at, watch.optimizers = None, {}

    watch.stop = stop
    rounds = Rounds(watch, {"meta_teacher": 2, "mpdistil": 1})
    for _ in range(2):
        rounds.before_forward(False)
        watch.metric_at = 1.0
    rounds.before_forward(True)  # phase 4 begins
    assert told == ["meta_teacher", "meta_teacher"]
    watch.optimizers = {10: ["student's"]}
    rounds.before_forward(True)
    watch.optimizers[2] = ["policy's"]
    rounds.before_forward(False)  # it evaluates
    assert len(told) == 2
    rounds.before_forward(True)
    assert told[2:] == ["mpdistil"]


def test_the_stand_in_for_the_metrics():
    ended = []
    load = stand_in(SimpleNamespace(scored=lambda: ended.append(1))).load
    assert load("accuracy").compute(predictions=[0, 1, 2, 1], references=[0, 1, 1, 1]) == {"accuracy": 0.75}
    assert ended == [1]
    with pytest.raises(SystemExit, match="metric f1"):
        load("f1")


def test_both_sides_read_the_same_token_ids(encoders, data_dir):
    split = split_of("CB", encoders, data_dir, "dev")
    ids, mask, segments, labels = padded(split, 64)
    ours = split.batch(range(len(split)))
    assert ids.shape == mask.shape == segments.shape == (len(split), 64)
    for row, (start, end) in enumerate(zip(split.offsets[:-1], split.offsets[1:])):
        assert ids[row, mask[row] == 1].tolist() == split.input_ids[start:end].tolist()
        assert mask[row].sum() == end - start and (ids[row, end - start:] == split.pad_ids[0]).all()
    assert (labels == ours.labels).all() and segments.max() == 1


@pytest.mark.slow
@pytest.mark.skipif("MPDISTIL_PEER" not in os.environ,
                    reason="set MPDISTIL_PEER to the interpreter of an environment with mpdistil==0.1.0")
def test_the_comparison_runs(encoders, data_dir, tmp_path):
    words = words_of(tmp_path, os.environ["MPDISTIL_PEER"], data_dir=data_dir, teacher_model=encoders["bert"],
                     peer_epochs=1, peer_episodes=2, precision="bf16")
    done = script(sys.executable, *words)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    for clock in ("wall", "cpu"):
        phases = found[clock]["phases"]
        # of 60 examples: 48 and 12 there, 54 and 6 here; batches of 6
        assert [phases[phase]["peer"]["examples"] for phase in PHASES] == [48, 48, 12, 12]
        assert [phases[phase]["bf16"]["examples"] for phase in PHASES] == [54, 54, 6, 6]
        assert [phases[phase]["peer"]["updates"] for phase in PHASES] == [8, 8, 2, 1]
        assert [phases[phase]["bf16"]["updates"] for phase in PHASES] == [9, 9, 1, 1]
        assert [phases[phase]["peer"]["evaluations"] for phase in PHASES] == [1, 1, 1, 0.5]
    for side in ("peer", "bf16"):
        trained = {phase: sum(entry["trained"] for entry in found["records"][side]
                              if (entry["kind"], entry["phase"]) == ("round", phase)) for phase in PHASES}
        assert trained["teacher"] == found["wall"]["phases"]["teacher"][side]["examples"]
        assert found["peak_memory_bytes"][side] > 1e8
    assert "| mpdistil |" in done.stdout and "like for like" in done.stdout

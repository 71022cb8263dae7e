"""--report_to with the real packages: TensorBoard's events read back, wandb offline."""
import json
import sys

import pytest

from bookkeeping import tracker
from bookkeeping.states import Saver
from conftest import read_lines

FLAGS = dict(tasks=["CB"], teacher_epochs=2, num_episodes=3, save_seconds=0)


class Killed(BaseException):
    """Stands for a process that is no more."""


def read_tensorboard(folder):
    """{name: [(step, value)]} of all events in a folder."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)]
            for name in events.Tags()["scalars"]}


def expected(folder):
    """{name: steps} that a whole run must have: every epoch and episode once."""
    steps = {}
    for line in read_lines(folder / "metrics.jsonl"):
        steps.setdefault(f"{line['phase']}/loss", []).append(line.get("epoch", line.get("episode")))
    return steps


def test_tensorboard_has_every_point_once(command, monkeypatch):
    """A run that is stopped after kd, killed in phase 4 and given again; then one that reuses its phases."""
    assert command(folder="r/run", report_to="tensorboard", stop_after="kd", **FLAGS)[0] == 0
    consider = Saver.consider

    def dying(self, state, at_end=False):
        consider(self, state, at_end)
        if "policy" in state and state["episode"].number == 3:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Saver, "consider", dying)
        with pytest.raises(Killed):
            command(folder="r/run", report_to="tensorboard", **FLAGS)
    for name, more in (("run", {}), ("other", {"reward_function": "real"})):
        code, folder = command(folder=f"r/{name}", report_to="tensorboard", **FLAGS, **more)
        assert code == 0
        seen = read_tensorboard(folder)
        for figure, steps in expected(folder).items():
            assert [step for step, _ in seen[figure]] == steps, figure
        rows = json.loads((folder / "result.json").read_text())["rows"]
        for row, figures in rows.items():
            assert seen[f"final/{row}/accuracy"][0][1] == pytest.approx(figures["dev"]["accuracy"])
        assert seen["final/floor/total"][0][1] == 18


def test_a_tracker_changes_no_result_and_cannot_end_a_run(command, monkeypatch, capsys):
    code, plain = command(folder="plain/run", **FLAGS)
    sent = []

    class Dying:
        """Takes three events."""
        def __init__(self, *given):
            pass

        def start(self):
            return "here"

        def send(self, phase, number, figures):
            sent.append(phase)
            if len(sent) == 3:
                raise ConnectionError("gone\nfor good")

        def close(self, failed):
            pass

    monkeypatch.setitem(tracker.BACKENDS, "wandb", Dying)
    capsys.readouterr()
    code, folder = command(folder="tracked/run", report_to="wandb", **FLAGS)
    said = capsys.readouterr().out
    assert code == 0 and said.count("the run goes on without it") == 1 and len(sent) == 3
    assert "ConnectionError: gone for good" in said
    for name in ("model.safetensors", "heads.safetensors"):
        path = f"models/student/{name}"
        assert (folder / path).read_bytes() == (plain / path).read_bytes()


def test_a_tracker_that_is_not_installed(command, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, folder = command(report_to="wandb")
    said = capsys.readouterr().err
    assert code == 2 and "--report_to wandb" in said and said.count("\n") == 1 and not folder.exists()


def wandb_runs(place):
    return sorted(place.glob("wandb/offline-run-*"))


def test_wandb_without_a_key_is_refused_before_anything_is_computed(command, monkeypatch, tmp_path, capsys):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    code, folder = command(report_to="wandb", **FLAGS)
    said = capsys.readouterr().err
    assert code == 2 and "wandb login" in said and "WANDB_MODE=offline" in said and not folder.exists()


def test_one_run_is_one_run_of_wandb(command, monkeypatch, tmp_path):
    """Stopped after kd, then whole: one id, one offline copy with all; the environment's project wins."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "of-the-environment")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command(folder="r/run", report_to="wandb", stop_after="kd", **FLAGS)[0] == 0
    first = json.loads((tmp_path / "r" / "run" / "tracker.json").read_text())["wandb"]["id"]
    code, folder = command(folder="r/run", report_to="wandb", **FLAGS)
    assert code == 0 and json.loads((folder / "tracker.json").read_text())["wandb"]["id"] == first
    (copy,) = wandb_runs(tmp_path / "r")
    assert copy.name.endswith(first)
    found = b"".join(path.read_bytes() for path in copy.glob("*.wandb"))
    for text in (b"of-the-environment", b"teacher/loss", b"mpdistil/reward", b"final/kd/accuracy"):
        assert text in found, text

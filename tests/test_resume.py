"""A run that is ended at any moment goes on from there and leaves the same; locks, signals, full disks,
damaged files."""
import errno
import fcntl
import json
import os
import signal
import sys
import threading
from dataclasses import dataclass, replace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import curriculum
import kill_test
import meta_policy
import tasks
from bookkeeping import files, identity
from bookkeeping.signals import STOP_SIGNALS
from bookkeeping.states import GlobalGenerators, Saver, Trained
from conftest import ROOT, Forked, as_words, read_lines, run_command
from kill_test import compare, content

SMALL = {
    "tasks": ["CB", "COPA"], "epochs": 2, "meta_epochs": 2, "teacher_epochs": 2, "num_episodes": 3,
    "save_seconds": 0, "train_dataloader_size": 6, "val_dataloader_size": 3
}


class Killed(BaseException):
    """Stands for a process that is no more: nothing in the project catches it."""


def run_killed(command, monkeypatch, every, folder, flags):
    """Give the command until it is done, ending it at every `every`-th place where it may save, before, while
    or after it does. Returns the number of kills."""
    calls, kills, consider, replace = [0], 0, Saver.consider, os.replace

    def dying(self, state, at_end=False):
        calls[0] += 1
        if calls[0] % every == 0 and calls[0] % 3 == 0:
            raise Killed
        if calls[0] % every == 0 and calls[0] % 3 == 1:  # between the two files of a state
            monkeypatch.setattr(
                os, "replace", lambda old, new: replace(old, new)
                if str(new).endswith(".safetensors") else kill())
        consider(self, state, at_end)
        if calls[0] % every == 0:
            raise Killed

    def kill():
        raise Killed

    monkeypatch.setattr(Saver, "consider", dying)
    while True:
        try:
            code, path = command(folder=f"{folder}/run", **flags)
            assert code == 0
            return kills, path.parent
        except Killed:
            kills += 1
        finally:
            monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize(
    "flags",
    [
        {"kd_200": True, "curriculum": "uniform", "set": ["quiz_batches=fixed"]},
        {"use_comp_loss": True, "reward_function": "real", "undistilled": True, "select_on": "quiz"},
        {"protocol": "released", "kd_200": True},
        # the other phases of `paper`, and phase 4 of `released`
        {"set": ["state_gradient=attached", "credit=next_step", "zero_grad=zeros",
                 "data_order=global_generator", "student_update=each_episode",
                 "reward_weights=before_episode"]},
        {"use_comp_loss": True, "reward_function": "real", "policy_learning_rate": 1e-2,
         "set": ["advantage=step_mean", "reward_of=improvement", "meta_term=attached", "pkd_layers=skip",
                 "soft_loss=logits"]},
        {"task": "STS-B", "tasks": ["STS-B", "SST-2"], "reward_function": "real", "kd_200": True},
    ],
    ids=str,
)
def test_a_killed_run_leaves_the_same(flags, command, glue, monkeypatch):
    flags = {**SMALL, **flags, **({"data_dir": glue} if "task" in flags else {})}
    code, whole = command(folder="whole/run", **flags)
    assert code == 0
    kills, killed = run_killed(command, monkeypatch, 10, "killed", flags)
    assert kills > 4 and compare(content(killed), content(whole.parent)) == []
    assert not list(killed.rglob("state-*")) and not list(killed.rglob("*part*"))


def test_a_process_that_is_killed_for_good(encoders, data_dir, tmp_path, monkeypatch, capsys):
    """The short form of scripts/kill_test.py, SIGKILL and all."""
    flags = {"kills": 2, "longest": 0.7, "work": tmp_path / "work", **SMALL, "task": "CB",
             "data_dir": data_dir, "teacher_model": encoders["bert"], "nlayers": 2, "max_seq_length": 64,
             "device": "cpu"}
    monkeypatch.setattr(kill_test, "start", lambda folder, words, log: Forked(
        kill_test.command_of(folder, words), log))
    monkeypatch.setattr(sys, "argv", ["kill_test.py", *as_words(flags)])
    assert kill_test.main() == 0
    said = capsys.readouterr().out
    assert said.startswith("kill 1: in phase ") and said.splitlines()[-1].startswith("2 kills (")
    assert said.endswith(", 0 differences\n"), said


@pytest.fixture(scope="module")
def whole(encoders, data_dir, tmp_path_factory):
    """What a run with SMALL leaves that nothing ended."""
    folder = tmp_path_factory.mktemp("whole")
    given = {"data_dir": data_dir, "teacher_model": encoders["bert"], "output_dir": folder / "run"}
    assert run_command(**given, **SMALL) == 0
    return content(folder)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_signals_save_and_end_the_run(signum, command, whole, monkeypatch, capsys):
    flags = {**SMALL, "save_seconds": 1000}
    calls, consider = [0], Saver.consider

    def asked(self, state, at_end=False):
        calls[0] += 1
        if calls[0] == 50:
            os.kill(os.getpid(), signum)
        consider(self, state, at_end)

    monkeypatch.setattr(Saver, "consider", asked)
    capsys.readouterr()
    code, folder = command(folder="ended/run", **flags)
    assert code == 128 + signum and signal.Signals(signum).name in capsys.readouterr().err
    assert list(folder.parent.rglob("state-*.safetensors")) and not (folder / "result.json").exists()
    code, folder = command(folder="ended/run", **flags)
    assert code == 0 and "going on from" in capsys.readouterr().out
    assert compare(content(folder.parent), whole) == []


def stop_in_phase_4(command, monkeypatch, **flags):
    """A run that was killed in its second episode, with a state. Returns its folder."""
    consider = Saver.consider

    def dying(self, state, at_end=False):
        consider(self, state, at_end)
        if self.folder.name == "state" and at_end:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Saver, "consider", dying)
        with pytest.raises(Killed):
            command(**{**SMALL, **flags})
    # refused: only for its folder
    return command(**{**SMALL, **flags, "stop_after": "teacher", "epochs": 3})[1]


def test_a_state_that_was_altered_is_refused_and_kept(command, monkeypatch, capsys):
    folder = stop_in_phase_4(command, monkeypatch)
    capsys.readouterr()
    tensors = next((folder / "state").glob("*.safetensors"))
    good = tensors.read_bytes()
    tensors.write_bytes(good[:-8])
    assert command(**SMALL)[0] == 2
    message = capsys.readouterr().err
    assert str(tensors) in message and f"remove {folder / 'state'}" in message and message.count("\n") == 1
    tensors.write_bytes(good)
    (folder / "metrics.jsonl").write_text("")
    assert command(**SMALL)[0] == 2 and "metrics.jsonl: 0 bytes found" in capsys.readouterr().err
    assert tensors.read_bytes() == good


def test_other_arguments_for_a_run_that_was_ended(command, monkeypatch, capsys):
    stop_in_phase_4(command, monkeypatch)
    capsys.readouterr()
    code, folder = command(**{**SMALL, "num_episodes": 4})
    assert code == 2 and "--num_episodes 3 there, 4 now" in capsys.readouterr().err


def test_stopping_earlier_does_not_lose_the_state_of_phase_4(command, monkeypatch, capsys):
    folder = stop_in_phase_4(command, monkeypatch)
    assert command(**SMALL, stop_after="kd")[0] == 0 and list((folder / "state").glob("state-*"))
    capsys.readouterr()
    assert command(**SMALL)[0] == 0 and f"going on from {folder / 'state'}" in capsys.readouterr().out


def test_a_fresh_run_does_not_go_on_from_a_shared_ones_state(command, monkeypatch, capsys):
    folder = stop_in_phase_4(command, monkeypatch)
    capsys.readouterr()
    assert command(**SMALL, fresh=True)[0] == 0 and "this phase begins again" in capsys.readouterr().out
    assert json.loads((folder / "result.json").read_text())["reused"] == []


def test_a_run_that_was_ended_while_it_wrote_its_first_file(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.json.part123").write_text("{")
    assert command(stop_after="teacher")[0] == 0 and not list((tmp_path / "run").glob("*.part*"))


@pytest.mark.parametrize(
    "name",
    (
        "phases/*/phase.json",
        "phases/*/predictions/*.json",
        "phases/*/outputs/*.json",
        "run/result.json",
        "run/args.json",
    ),
)
@pytest.mark.parametrize("text", ("{}", "[]", "{", None))
def test_records_that_were_altered_are_refused(name, text, command, capsys):
    code, folder = command(stop_after="teacher", folder="r/run")
    for path in sorted(folder.parent.glob(name)):
        content = path.read_text()
        path.write_text(content.replace("1", "2", 1) if text is None else text)
    capsys.readouterr()
    code, _ = command(stop_after="kd" if "phases" in name else "teacher", folder="r/run")
    message = capsys.readouterr().err
    assert code == 2 and message.startswith("error: ") and message.count("\n") == 1, message
    if text is not None or "args" not in name:
        assert str(path.parent) in message


def test_a_disk_that_is_full_while_an_artefact_is_saved(command, monkeypatch, capsys):
    """safetensors has an exception of its own for it."""
    monkeypatch.setattr(
        "models.save_file",
        MagicMock(side_effect=SafetensorError("Error while serializing: No space left on device")))
    assert command()[0] == 1
    message = capsys.readouterr().err
    assert ("No space left on device" in message and "give the same command again" in message
            and message.count("\n") == 1)


def test_events_after_the_saved_point_are_cut(command, monkeypatch):
    folder = stop_in_phase_4(command, monkeypatch)
    for name in ("metrics", "trajectories"):
        with open(folder / f"{name}.jsonl", "a") as file:
            file.write('{"phase": "mpdistil", "episode": 2, "seconds": 1, "half')
    assert command(**SMALL)[0] == 0
    assert [line["episode"]
            for line in read_lines(folder / "metrics.jsonl")
            if "episode" in line] == [1, 2, 3]
    assert [line["episode"] for line in read_lines(folder / "trajectories.jsonl")] == [1, 2, 3]


def test_a_state_of_other_code_is_not_used(command, monkeypatch, capsys):
    folder = stop_in_phase_4(command, monkeypatch)
    monkeypatch.setattr(identity, "version", lambda package: "0")
    assert command(**SMALL)[0] == 0 and "this phase begins again" in capsys.readouterr().out
    assert [line["episode"]
            for line in read_lines(folder / "metrics.jsonl")
            if "episode" in line] == [1, 2, 3]


def test_an_artefact_that_was_altered_is_refused(command, capsys):
    code, folder = command(folder="r/a", stop_after="kd")
    weights = next((folder.parent / "phases").glob("kd-*/heads.safetensors"))
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    capsys.readouterr()
    assert command(folder="r/b", reward_function="real")[0] == 2
    assert f"{weights}: not the bytes that were written" in capsys.readouterr().err


def test_one_run_per_folder(command, capsys, tmp_path):
    with FileLock(tmp_path / ".run.lock"):
        code, folder = command()
        assert code == 2 and "another process is at work" in capsys.readouterr().err and not folder.exists()
    assert command()[0] == 0


def test_two_runs_that_share_phases_compute_each_once(encoders, data_dir, tmp_path):
    """Two processes begun together: one computes, the other says that it waits, then reuses."""
    logs, both = [tmp_path / f"{name}.log" for name in "ab"], []
    for path, reward in zip(logs, ("binary", "real")):
        flags = {"task": "CB", "data_dir": data_dir, "teacher_model": encoders["bert"], "nlayers": 2,
                 "teacher_epochs": 40, "epochs": 1, "meta_epochs": 1, "num_episodes": 1,
                 "val_dataloader_size": 4, "max_seq_length": 64, "output_dir": tmp_path / "r" / path.stem,
                 "reward_function": reward}
        with open(path, "w") as log:
            both.append(Forked([sys.executable, ROOT / "main_superglue.py", *as_words(flags)], log))
    assert [process.wait() for process in both] == [0, 0], logs[0].read_text() + logs[1].read_text()
    reused = [json.loads((tmp_path / "r" / name / "result.json").read_text())["reused"] for name in "ab"]
    assert sorted(reused[0] + reused[1]) == ["kd", "meta_teacher", "teacher"] and any(
        "waiting for another run" in path.read_text() for path in logs)
    assert len(list((tmp_path / "r" / "phases").glob("teacher-*"))) == 1


@pytest.mark.parametrize("where", ("state", "artefact"))
def test_a_full_disk_leaves_the_last_state(where, command, whole, monkeypatch, capsys):
    """The disk fills up in the kd phase: code 1, one line; with room again the run ends as if nothing had
    happened."""
    calls, sync = [0], files.sync

    def full(path):
        hit = "kd-" in str(path) and (where == "state") == ("state" in str(path))
        calls[0] += hit
        if hit and (where == "artefact" or calls[0] > 9):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        sync(path)

    monkeypatch.setattr(files, "sync", full)
    capsys.readouterr()
    code, folder = command(folder="full/run", **SMALL)
    message = capsys.readouterr().err
    assert (code == 1 and "No space left on device" in message and "give the same command again" in message
            and message.count("\n") == 1)
    monkeypatch.setattr(files, "sync", sync)
    assert command(folder="full/run", **SMALL)[0] == 0 and "going on from" in capsys.readouterr().out
    assert compare(content(folder.parent), whole) == []


@pytest.mark.parametrize("phase", ("teacher", "kd", "mpdistil"))
def test_a_step_that_is_not_finite_stops_with_what_and_where(phase, command, whole, capsys, monkeypatch):
    """The third step of a phase has a loss that is no number: phase, step, figure, examples and rate are
    said, and the state from before the step stays and goes on."""
    rules = tasks.KINDS["classification"]
    function = {"teacher": rules.loss, "kd": meta_policy.pkd_loss, "mpdistil": curriculum.student_loss}[phase]
    calls = [0]

    def third_is_none(*arguments):
        calls[0] += 1
        return function(*arguments) * (float("nan") if calls[0] == 3 else 1.0)

    with monkeypatch.context() as patched:
        if phase == "teacher":
            patched.setitem(tasks.KINDS, "classification", replace(rules, loss=third_is_none))
        else:
            module = meta_policy if phase == "kd" else curriculum
            patched.setattr(module, function.__name__, third_is_none)
        code, folder = command(folder="stopped/run", **SMALL)
    message = capsys.readouterr().err
    place = "episode 2, step 1" if phase == "mpdistil" else "epoch 1, step 3"
    assert (code == 1 and f"phase {phase}, {place}: loss is nan at learning rate" in message
            and "idx " in message)
    assert message.count("\n") == 1 and list(folder.parent.rglob("state-*.safetensors"))
    assert command(folder="stopped/run", **SMALL)[0] == 0 and "going on from" in capsys.readouterr().out
    assert compare(content(folder.parent), whole) == []


@pytest.mark.parametrize("flags", [{"teacher_learning_rate": 1e38}, {"learning_rate": 1e38}], ids=str)
def test_a_rate_at_which_the_weights_explode(flags, command, capsys):
    """The state that stays is from before they did."""
    code, folder = command(**{**SMALL, **flags})
    message = capsys.readouterr().err
    assert (code == 1 and "not finite" in message and "learning rate 1e+38" in message and "idx " in message
            and message.count("\n") == 1)
    for path in folder.parent.rglob("state-*.safetensors"):
        assert all(tensor.isfinite().all()
                   for name, tensor in load_file(path).items()
                   if tensor.is_floating_point())


def test_weights_that_are_not_finite_are_refused_before_the_run(command, capsys, encoders, tmp_path):
    import shutil
    folder = shutil.copytree(encoders["bert"], tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    code, path = command(teacher_model=folder)
    assert code == 2 and "not finite" in capsys.readouterr().err and not path.exists()


@dataclass
class Plain:
    """Of what a loop may keep in its state."""
    number: int = 0
    order: list | None = None
    tensors: dict | None = None


def test_a_state_is_data_and_comes_back(tmp_path):
    """Dataclasses, modules with optimizer and gradients, arrays, numbers, tensors that share memory; saved
    twice: the newest pair alone stays, and comes back."""
    def new():
        module = torch.nn.Linear(2, 1)
        trained = Trained(module, torch.optim.AdamW(module.parameters(), lr=0.1))
        return {"plain": Plain(), "model": trained, "random": GlobalGenerators()}

    saver, state = Saver(tmp_path / "s", "me", 0, lambda text: None), new()
    saver.save(state)
    tensor, module = torch.arange(6.0), state["model"].module
    tensors = {"a": tensor, "b": tensor.view(2, 3), "odd": torch.zeros(3)}
    state["plain"] = Plain(3, [np.arange(2), np.arange(1)], tensors)
    module(torch.ones(2)).backward()
    state["model"].optimizer.step()
    module.weight.grad = None  # the other one waits
    saver.save(state)
    drawn = torch.rand(2)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["state-2.json", "state-2.safetensors"]

    back = new()
    Saver(tmp_path / "s", "me", 0, lambda text: None).restore(back)
    plain = back["plain"]
    assert plain.number == 3 and [batch.tolist() for batch in plain.order] == [[0, 1], [0]]
    assert torch.equal(plain.tensors["a"], tensor) and torch.equal(plain.tensors["b"], tensor.view(2, 3))
    # else a product may round another way than before
    assert all(tensor.data_ptr() % 64 == 0 for tensor in plain.tensors.values())
    again = back["model"]
    assert torch.equal(again.module.weight, module.weight) and again.module.weight.grad is None
    assert torch.equal(again.module.bias.grad, module.bias.grad) and torch.equal(torch.rand(2), drawn)
    ours, theirs = again.optimizer.state_dict()["state"], state["model"].optimizer.state_dict()["state"]
    for number, entry in theirs.items():
        assert all(torch.equal(ours[number][name], value) for name, value in entry.items())
    other = new()
    Saver(tmp_path / "s", "other", 0, lambda text: None).restore(other)
    assert other["plain"] == Plain() and not (tmp_path / "s").exists()


def test_saving_at_ends_is_kept_cheap(tmp_path):
    """At ends of epochs a state is saved at first, and then only while that takes less than its share; after
    --save_seconds always."""
    saver = Saver(tmp_path / "s", "me", 1000, lambda text: None)
    saver.consider({})
    assert saver.saves == 0
    saver.consider({"a": Plain(1)}, at_end=True)
    saver.consider({"a": Plain(1)}, at_end=True)
    assert saver.saves == 1
    saver.seconds = 0
    saver.consider({"a": Plain(1)})
    assert saver.saves == 2


def test_a_lock_waits_for_another_thread(tmp_path):
    said, order = [], []
    held = FileLock(tmp_path / "lock", thread_local=False)
    held.acquire()

    def wait():
        with files.lock(tmp_path / "lock", said.append):
            order.append("second")

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.3)
    order.append("first")
    held.release()
    thread.join()
    assert order == ["first", "second"] and len(said) == 1 and "waiting" in said[0]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(number, command, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    code, _ = command(**SMALL)
    error = capsys.readouterr().err
    assert code == 2 and f"the file system has no locks (flock: {os.strerror(number)})" in error
    assert error.count("\n") == 1 and "docs/CLUSTER.md" in error

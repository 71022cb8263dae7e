"""Runs that could be refused, ended or misread for no good reason: paths, links, terminals, platforms,
controls."""
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from bookkeeping.finished import finished_result
from conftest import ROOT, read_lines
from data_utils import join_splits, load_task
from models import FrozenEncoder, JoinedOutputs, load_model
from tasks import TASKS

TINY = dict(tasks=["CB"], folder="runs/run")


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_the_same_bytes_in_another_place_are_the_same_run(command, data_dir, encoders, tmp_path, monkeypatch,
                                                          capsys):
    """Data and encoder spelled otherwise, then moved: what is finished is found, what is not goes on."""
    assert command(**TINY, stop_after="kd")[0] == 0
    data, encoder = tmp_path / "data", tmp_path / "encoder"
    shutil.copytree(data_dir, data)
    shutil.copytree(encoders["bert"], encoder)
    monkeypatch.chdir(tmp_path)
    for place in ("data", f"./{data.name}/", str(data)):
        capsys.readouterr()
        code, folder = command(**TINY, stop_after="kd", data_dir=place, teacher_model="encoder")
        assert code == 0 and "nothing to do" in capsys.readouterr().out
    code, folder = command(**TINY, data_dir="data", teacher_model=encoder)
    assert code == 0 and result_of(folder)["reused"] == ["teacher", "kd"]
    lines = (data / "CB" / "train.jsonl").read_text().splitlines()
    (data / "CB" / "train.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert command(**TINY, data_dir="data", teacher_model=encoder)[0] == 2
    assert "other data or encoders (CB/" in capsys.readouterr().err


def test_without_the_data_paths_are_compared_resolved(command, data_dir, monkeypatch):
    """As a sweep does."""
    code, folder = command(**TINY, stop_after="teacher")
    settings = json.loads((folder / "args.json").read_text())
    monkeypatch.chdir(data_dir.parent)
    assert code == 0 and finished_result(folder, {**settings, "data_dir": f"./{data_dir.name}/"})
    with pytest.raises(Exception, match="data_dir"):
        finished_result(folder, {**settings, "data_dir": "elsewhere"})


def test_an_output_dir_that_is_a_link(command, tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run").symlink_to(tmp_path / "far" / "away")
    code, folder = command(**TINY, stop_after="teacher")
    phases = json.loads((folder / "models" / "phases.json").read_text())
    assert code == 0 and (folder.resolve() / phases["teacher"]["folder"] / "phase.json").is_file()


def shell(encoders, data_dir, output, *more, **environment):
    argv = [
        sys.executable,
        str(ROOT / "main_superglue.py"), "--task", "CB", "--tasks", "CB", "--data_dir",
        str(data_dir), "--teacher_model",
        str(encoders["bert"]), "--nlayers", "2", "--teacher_epochs", "1", "--max_seq_length", "48",
        "--val_dataloader_size", "4", "--stop_after", "teacher", "--output_dir",
        str(output), *more
    ]
    return subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **environment})


def test_text_that_the_terminal_cannot_print(encoders, data_dir, tmp_path):
    output = tmp_path / "caf\u00e9 \u4e2d"
    done = shell(encoders, data_dir, output, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "caf\\xe9 \\u4e2d" in done.stdout, done.stderr
    done = shell(encoders, data_dir, output, "--split_seed", "7", PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and "caf\\xe9" in done.stderr and done.stderr.count("\n") == 1


def test_a_platform_without_resource():
    """Windows: the figure is left out."""
    script = ("import sys; sys.modules['resource'] = None\n"
              "from bookkeeping import machine\nprint(machine.peak_memory_bytes())")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr


def test_an_environment_without_datasets(monkeypatch):
    from bookkeeping import machine

    def missing(name):
        raise machine.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", missing)
    assert machine.environment()["datasets"] is None


@pytest.mark.parametrize("flags, warned", [
    ({"val_dataloader_size": 6}, True), ({"val_dataloader_size": 5}, False),
    ({"val_dataloader_size": 6, "curriculum": "uniform"}, False)], ids=str)
def test_a_policy_that_cannot_learn_is_warned_of(flags, warned, command, capsys):
    """An episode of one step, whose advantage is always 0."""
    code, _ = command(**TINY, **flags, stop_after="teacher")
    assert code == 0 and ("the policy learns nothing" in capsys.readouterr().out) == warned


def test_selecting_on_quiz_is_warned_of(command, capsys):
    assert command(**TINY, select_on="quiz", stop_after="teacher")[0] == 0
    assert "warning: --select_on quiz: phases 3 and 4 train on quiz" in capsys.readouterr().out


def test_the_policys_rate_is_its_own(command):
    """Another one moves the policy and leaves the meta-teacher as it was; none is that of the
    meta-teacher."""
    def run(name, **flags):
        code, folder = command(folder=f"runs/{name}", tasks=["CB", "COPA"], meta_learning_rate=0.01, **flags)
        assert code == 0
        return folder, (folder / "models" / "policy.safetensors").read_bytes()

    base, as_by_default = run("base")
    assert json.loads((base / "args.json").read_text())["policy_learning_rate"] == 0.01
    other, policy = run("other", policy_learning_rate=0.5)
    assert policy != as_by_default and result_of(other)["reused"] == ["teacher", "kd", "meta_teacher"]
    assert run("same", policy_learning_rate=0.01)[1] == as_by_default


def test_phases_say_where_they_were_computed(command):
    _, folder = command(**TINY, stop_after="kd")
    for phase in result_of(folder)["phases"].values():
        said = phase["environment"]
        assert said["cpu_threads"] >= 1 and {"git_commit", "git_changes", "cpu", "torch"} <= said.keys()
    assert {"cpu", "cores"} <= json.loads((folder / "environment.json").read_text()).keys()


def test_changes_are_those_of_code(tmp_path, monkeypatch):
    """A table or figure that lies beside the code makes no run one of changed files."""
    from bookkeeping import machine

    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b", *words], cwd=tmp_path, check=True,
                       capture_output=True)

    for name in ("code.py", "notes.md"):
        (tmp_path / name).write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(machine, "HERE", tmp_path)
    changes = []
    for name in (None, "notes.md", "cost.json", "more/new.py", "code.py"):
        if name:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("2\n")
        changes.append(machine.environment()["git_changes"])
        if name == "more/new.py":
            (tmp_path / name).unlink()
    assert changes == [False, False, False, True, True]


# --- the control on train and quiz --------------------------------------------------------------------------

@pytest.mark.parametrize("task", ("CB", "COPA"))
def test_joined_splits_are_both(task, encoders, data_dir):
    """Batches and kept outputs of the joined split are those of its parts, in any order."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(encoders["bert"])
    data = load_task(TASKS[task], data_dir, tokenizer, 64, 42, 4, ("train", "quiz"))
    parts = [data["train"], data["quiz"]]
    joined, first = join_splits(parts), len(data["train"])
    assert len(joined) == 60 and joined.name == "train_and_quiz" and join_splits(parts[:1]) is parts[0]
    assert torch.equal(joined.batch([first, first + 2]).input_ids, data["quiz"].batch([0, 2]).input_ids)
    assert torch.equal(joined.batch([3, 1]).labels, data["train"].batch([3, 1]).labels)
    encoder = load_model(encoders["bert"], [TASKS[task]], 1, "teacher").encoder
    kept, rows = FrozenEncoder(encoder, 4, torch.device("cpu")), TASKS[task].rows
    pooled, states = JoinedOutputs(kept, parts).outputs(joined, [first + 1, 5, first], layers=2)
    for place, (split, number) in enumerate(((data["quiz"], 1), (data["train"], 5), (data["quiz"], 0))):
        alone, alone_states = kept.outputs(split, [number], layers=2)
        here = slice(place * rows, (place + 1) * rows)
        assert torch.equal(pooled[here], alone) and torch.equal(states[:, here], alone_states)


def test_kd_quiz_is_kd_200_on_train_and_quiz(command):
    """A phase that runs share, with the steps and evaluations of phase 4, whose presence changes no other
    row."""
    flags = dict(tasks=["CB"], kd_200=True, num_episodes=3, val_dataloader_size=2)
    code, plain = command(folder="plain/run", **flags)
    code, folder = command(folder="control/run", kd_quiz=True, **flags)
    result = result_of(folder)
    assert code == 0 and list(
        result["rows"]) == ["teacher", "kd", "meta_teacher", "kd_200", "kd_quiz", "mpdistil"]
    lines = {name: [line for line in read_lines(folder / "metrics.jsonl") if line["phase"] == name]
             for name in ("kd_200", "kd_quiz")}
    assert len(lines["kd_quiz"]) == 3 and lines["kd_quiz"][0]["loss"] != lines["kd_200"][0]["loss"]
    others = {name: row for name, row in result["rows"].items() if name != "kd_quiz"}
    assert others == result_of(plain)["rows"]
    code, again = command(folder="control/again", kd_quiz=True, reward_function="real", **flags)
    assert code == 0 and "kd_quiz" in result_of(again)["reused"]

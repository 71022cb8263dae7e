"""The worked changes of docs/CONTRIBUTING.md: each is applied to a copy of the project, and the command runs
there."""
import json
import re
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT, Forked, read_lines

PAGE = (ROOT / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8")


def changed_copy(name, folder):
    """A copy of the project with the diff below the mark `change: name` applied."""
    diff = re.search(rf"<!-- change: {name} -->\n```diff\n(.*?)```", PAGE, re.DOTALL)[1]
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "bookkeeping", folder / "bookkeeping",
                    ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "apply", "--unidiff-zero", "-"], cwd=folder, input=diff, text=True, check=True)
    return folder


@pytest.fixture
def run(encoders, data_dir, tmp_path):
    """The command in a changed copy; returns its result.json and metrics.jsonl."""
    def in_copy(name, task, *more, data=data_dir):
        folder = tmp_path / "project"
        folder.mkdir()
        flags = {
            "task": task, "data_dir": data, "teacher_model": encoders["bert"], "nlayers": 3,
            "teacher_epochs": 1, "epochs": 1, "meta_epochs": 1, "num_episodes": 2, "val_dataloader_size": 4,
            "max_seq_length": 64, "output_dir": tmp_path / "runs" / "run"
        }
        argv = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        changed, path = changed_copy(name, folder), tmp_path / "log"
        with open(path, "w") as log:
            process = Forked([sys.executable, changed / "main_superglue.py", *argv, *more], log, cwd=changed)
        assert process.wait() == 0, path.read_text()
        return (json.loads((tmp_path / "runs" / "run" / "result.json").read_text()),
                read_lines(tmp_path / "runs" / "run" / "metrics.jsonl"))
    return in_copy


def test_a_loss(run, command):
    """kd has another loss and is computed anew; the teacher of the unchanged code is reused."""
    code, plain = command("CB", folder="runs/plain")
    assert code == 0
    result, metrics = run("loss", "CB")
    assert result["reused"] == ["teacher"]
    pkd = [next(line["pkd"] for line in lines if line["phase"] == "kd")
           for lines in (metrics, read_lines(plain / "metrics.jsonl"))]
    assert pkd[0] > 0 and pkd[0] != pytest.approx(pkd[1], rel=0.1)


def test_a_task(run, data_dir, tmp_path):
    """As the main task, and among the curriculum's tasks."""
    data = tmp_path / "data"
    shutil.copytree(data_dir / "CB", data / "CB")
    (data / "Paraphrase").mkdir()
    for part, size in (("train", 50), ("val", 12)):
        rows = [{"idx": n, "first": f"word {n}", "second": f"text {n % 7}", "label": ("no", "yes")[n % 2]}
                for n in range(size)]
        (data / "Paraphrase" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, _ = run("task", "Paraphrase", data=data)
    assert result["task"] == "Paraphrase" and result["rows"]["mpdistil"]["dev"]["total"] == 12
    assert "CB/quiz" in result["data"] and result["dev_labels"] == [6, 6]


def test_a_phase(run):
    result, metrics = run("phase", "CB", "--without_states")
    assert list(result["rows"]) == ["teacher", "kd_without_states", "kd", "meta_teacher", "mpdistil"]
    assert [line["pkd"] for line in metrics if line["phase"] == "kd_without_states"] == [0]

"""Checks that take minutes or a GPU: python -m pytest -m slow"""
import json
import os
import subprocess
import sys

import pytest
import torch

import mutations
from conftest import ROOT, read_lines


@pytest.mark.slow
def test_every_mutation_is_noticed(capsys):
    assert (mutations.main(sorted(path.parent
                                  for path in (ROOT / "tests" / "golden").glob("*/case.json"))) == 0)
    assert "no difference" not in capsys.readouterr().out.split("\n", 1)[1]


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ("fp32", "bf16"))
@pytest.mark.parametrize("protocol", ("paper", "released"))
def test_the_command_on_a_gpu(precision, protocol, command):
    code, folder = command("COPA", device="cuda", precision=precision, protocol=protocol)
    assert code == 0 and json.loads((folder / "result.json").read_text())["peak_memory_bytes"] > 0
    code, cpu = command("COPA", folder="cpu", protocol=protocol)
    losses = [[line["loss"] for line in read_lines(path / "metrics.jsonl")][0] for path in (folder, cpu)]
    assert code == 0 and losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.slow
@pytest.mark.skipif(
    "MPDISTIL_ENCODER" not in os.environ,
    reason="set MPDISTIL_ENCODER to a folder from scripts/get_encoder.sh",
)
def test_the_sample_is_learnt_by_a_real_encoder(command):
    """A teacher with a real encoder learns each sample task far better than chance."""
    for task, least in (("CB", 0.9), ("RTE", 0.9), ("WiC", 0.8), ("BoolQ", 0.7)):
        code, folder = command(task, folder=task, data_dir=ROOT / "sample_data",
                               teacher_model=os.environ["MPDISTIL_ENCODER"], teacher_epochs=5,
                               teacher_learning_rate=1e-4, stop_after="teacher")
        assert (
            code == 0
            and json.loads((folder / "result.json").read_text())["rows"]["teacher"]["dev"]["accuracy"]
            >= least
        ), task


@pytest.mark.slow
def test_a_small_full_file_system(encoders, data_dir, tmp_path):
    """A tmpfs that fills up: one line, code 1; with room again the same command goes on. Needs the right to
    mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs",
                       str(disk)], capture_output=True).returncode:
        pytest.skip("may not mount")
    argv = [
        sys.executable,
        str(ROOT / "main_superglue.py"), "--task", "CB", "--data_dir",
        str(data_dir), "--teacher_model",
        str(encoders["bert"]), "--nlayers", "2", "--max_seq_length", "64", "--teacher_epochs", "2",
        "--epochs", "1", "--meta_epochs", "1", "--num_episodes", "2", "--val_dataloader_size", "4",
        "--save_seconds", "0", "--output_dir",
        str(disk / "run")
    ]
    try:
        full = subprocess.run(argv, capture_output=True, text=True)
        assert (
            full.returncode == 1 and "No space left on device" in full.stderr and full.stderr.count("\n") == 1
        ), full.stderr
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)

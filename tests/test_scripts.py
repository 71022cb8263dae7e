"""The scripts: sample data, printed results, usage errors."""
import json
import subprocess
import sys
from collections import Counter

import pytest

import show_results
import show_timing
from conftest import ROOT, TASK_NAMES, read_lines
from data_utils import read_task
from tasks import TASKS


def script(*words):
    return subprocess.run([*words], cwd=ROOT, capture_output=True, text=True)


def test_sample_data_is_what_the_script_writes(tmp_path):
    done = script(sys.executable, "scripts/make_sample_data.py", "--output_dir", str(tmp_path))
    assert done.returncode == 0
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert len(files) == 27
    for path in files:
        assert (tmp_path / path).read_bytes() == (ROOT / "sample_data" / path).read_bytes(), path


@pytest.mark.parametrize("name", [*TASK_NAMES, "MRPC", "SST-2", "STS-B"])
def test_sample_data_is_balanced_and_well_formed(name):
    for part, examples in read_task(TASKS[name], ROOT / "sample_data", ("train", "dev", "test")).items():
        counts = Counter(example.label for example in examples)
        labels = set(range(len(TASKS[name].labels))) or {0.2, 1.0, 1.8, 3.2, 4.0, 4.6}
        assert set(counts) == ({None} if part == "test" else labels)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert sum((example.notes for example in examples), Counter()).keys() <= {"exact"}


def test_results_are_printed_as_markdown(command, capsys):
    code, folder = command("CB", num_episodes=3)
    capsys.readouterr()
    show_results.main([str(folder)])
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines()
            if line.startswith("| CB paper col binary policy seed 42")]
    names = [row.split(" | ")[1] for row in rows]
    assert code == 0 and names == ["teacher", "kd", "meta_teacher", "mpdistil"]
    reward = sum(line["reward"] for line in read_lines(folder / "metrics.jsonl") if line.get("episode") == 1)
    assert f"| 3 | {reward:.4f} |" in said  # a fifth of three episodes is the first one
    again = command("CB", num_episodes=3, seed=43, folder="again")[1]
    capsys.readouterr()
    show_results.main([str(folder), str(again)])
    results = [json.loads((path / "result.json").read_text()) for path in (folder, again)]
    first, second = (result["rows"]["kd"]["dev"]["correct"] for result in results)
    spread = abs(first - second) / 2 ** 0.5
    counts = f"| kd | 2 | {first}, {second} | {(first + second) / 2:.1f} | {spread:.1f} |"
    assert counts in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        show_results.main([str(folder.parent)])
    assert stop.value.code == 2 and "no result.json found" in capsys.readouterr().err


@pytest.mark.slow  # a process a side, each of which imports all
def test_benchmark_at_toy_size(encoders, data_dir, tmp_path):
    """Its shape only: what it measures at this size says nothing."""
    flags = {
        "task": "CB",
        "data_dir": data_dir,
        "teacher_model": encoders["bert"],
        "nlayers": 2,
        "max_seq_length": 64,
        "device": "cpu",
        "val_dataloader_size": 4,
        "json": tmp_path / "out.json",
        "rounds": 1,
        "steps": 1,
        "jobs": 1,
        "baselines": "tinybert",
    }
    done = script(
        sys.executable,
        "scripts/benchmark.py",
        "--profile",
        *(str(word) for name, value in flags.items() for word in (f"--{name}", value)),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert {"machine", "settings", "phases", "run", "column", "peak_memory_bytes"} <= set(found)
    assert (
        list(found["phases"]) == ["teacher", "kd", "meta_teacher", "mpdistil"]
        and found["teacher_passes_per_example"] == 1
    )
    for entry in found["phases"].values():
        assert all(entry[name] > 0 for name in ("naive_s", "ours_s", "bare_s", "over_bare"))
        assert entry["ratio"] == pytest.approx(entry["naive_s"] / entry["ours_s"])
        assert all(sum(shares.values()) == pytest.approx(1) for shares in entry["profile"].values())
    assert found["run"]["naive_s"] == pytest.approx(
        sum(entry["naive_s"] for entry in found["phases"].values()) + found["startup_s"]
    )
    assert found["column"]["column_over_naive_run"] == pytest.approx(
        found["column"]["ours_s"] / found["column"]["naive_run_s"]
    )
    assert min(found["peak_memory_bytes"].values()) > 1e8 and "| mpdistil |" in done.stdout
    assert list(found["methods"]) == ["kd", "tinybert"] and "| tinybert |" in done.stdout
    method = found["methods"]["tinybert"]
    assert method["over_kd"]["median"] == pytest.approx(method["step_s"]["median"]
                                                        / method["kd_step_s"]["median"])
    assert all(entry["peak_memory_bytes"] > 1e8 for entry in found["methods"].values())


@pytest.mark.slow  # two benchmarks, and a sweep's estimate for each table and precision
def test_all_timings_by_one_command(encoders, tmp_path):
    """Its shape only, without the lab's package."""
    small = ["--max_seq_length", "64", "--val_dataloader_size", "4", "--rounds", "1", "--steps", "1",
             "--jobs", "1", "--baselines", "pkd_last"]
    data = ROOT / "sample_data"  # large enough for the sweeps' own batches
    done = script("bash", "scripts/timing.sh", data, data, encoders["bert"], tmp_path, *small)
    assert done.returncode == 0, done.stderr
    for task in ("CB", "COPA"):
        assert json.loads((tmp_path / f"{task}.json").read_text())["run"]["ratio"] > 0
    hours = (tmp_path / "hours.md").read_text()
    assert hours.count("# CB: about") == 2 and hours.count("# STS-B: about") == 2
    assert hours.count("# MNLI: no estimate") == 2  # no files of it
    assert hours.count("\n") == 4 + 2 * (6 + 8)


def test_a_timing_page_of_what_is_no_timing_is_refused(tmp_path, capsys):
    assert show_timing.main([str(ROOT / "docs")]) == 2
    assert "give the folder that timing.sh wrote" in capsys.readouterr().err
    for task in ("CB", "COPA"):
        (tmp_path / f"{task}.json").write_text("{}")
    assert show_timing.main([str(tmp_path)]) == 2 and "no figures in bf16" in capsys.readouterr().err


def test_benchmark_says_what_it_cannot_read(tmp_path):
    done = script(sys.executable, "scripts/benchmark.py", "--task", "CB", "--data_dir", "nowhere", "--json",
                  str(tmp_path / "o.json"))
    assert done.returncode != 0 and "--data_dir nowhere" in done.stderr


@pytest.mark.parametrize(
    "words",
    [("scripts/get_encoder.sh", "BERT", "x"), *((f"scripts/table_{name}.sh",) for name in ("1a", "1b", "4")),
     ("scripts/timing.sh", "data", "data", "encoder")],
)
def test_usage_errors(words):
    done = script("bash", *words)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")

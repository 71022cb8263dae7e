"""scripts/sweep.py: which runs it plans, and how it runs them: shared phases first, interrupted, failed,
tried again."""
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest

from lib.rows import ROWS, read_paper

import make_tables
import sweep
from conftest import ROOT


def printed(capsys, *words):
    """The commands that a sweep prints, as flags."""
    assert sweep.main(["--data_dir", "data", *words]) == 0
    return [
        shlex.split(line)[2:] for line in capsys.readouterr().out.splitlines() if not line.startswith("#")
    ]


def value(command, flag):
    return command[command.index(flag) + 1] if flag in command else None


def test_rows_are_the_papers_and_the_controls():
    assert list(read_paper()["rows"]) == [name for name in ROWS if name not in ("kd_200", "uniform")]
    tables = {name: table for name, table in read_paper().items() if name.startswith("table_")}
    assert list(tables) == ["table_1a", "table_1b", "table_4"]
    for table in tables.values():
        assert set(table["values"]) == set(read_paper()["rows"])
        assert {len(values) for values in table["values"].values()} == {len(table["columns"])}
    assert (
        tables["table_1a"]["values"]["teacher"][1] == 83.9
        and tables["table_4"]["values"]["mpdistil_col_binary"][-1] == 63.3
    )


def test_a_whole_column(capsys):
    commands = printed(
        capsys, "--tasks", "cb", "COPA", "--seeds", "1", "2", "--nlayers", "3", "--learning_rate", "1e-4"
    )
    assert len(commands) == 2 * 2 * 9 and all(
        value(command, "--learning_rate") == "1e-4" for command in commands
    )
    assert [(value(c, "--seed"), value(c, "--task")) for c in commands[::9]] == [
        ("1", "CB"),
        ("1", "COPA"),
        ("2", "CB"),
        ("2", "COPA"),
    ]
    column = commands[:9]
    assert (
        "--undistilled" in column[0]
        and "--kd_200" in column[0]
        and value(column[0], "--stop_after") == "meta_teacher"
    )
    assert "--use_comp_loss" in column[1] and value(column[1], "--stop_after") == "meta_teacher"
    variants = [
        ("com" if "--use_comp_loss" in c else "col", value(c, "--reward_function"), value(c, "--curriculum"))
        for c in column[2:]
    ]
    assert sorted(variants) == sorted(
        [(loss, reward, "policy") for loss in ("col", "com") for reward in ("binary", "real")]
        + [(loss, "binary", "main_task") for loss in ("col", "com")]
        + [("col", "binary", "uniform")]
    )
    assert (
        len({value(c, "--output_dir") for c in commands}) == 36
        and len({value(c, "--phase_dir") for c in commands}) == 2
    )


@pytest.mark.parametrize("rows, stops", [
    (["teacher"], ["teacher"]), (["kd"], ["kd"]), (["student"], ["kd"]), (["kd_200"], ["meta_teacher"]),
    (["meta_teacher_com"], ["meta_teacher"] * 2), (["uniform"], ["meta_teacher", None]),
    (["main_task"], ["meta_teacher"] * 2 + [None] * 2)])
def test_only_what_rows_need(rows, stops, capsys):
    commands = printed(capsys, "--tasks", "CB", "--rows", *rows)
    assert [value(command, "--stop_after") for command in commands] == stops
    assert [flag for flag in ("--undistilled", "--kd_200") if flag in commands[0]] == [
        f"--{ROWS[row].flag}" for row in rows if row in ROWS and ROWS[row].flag
    ]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--rows", "best"], "argument --rows: 'best' found"),
        (["--tasks", "MNLI"], "argument --tasks: 'MNLI' found"),
        (["--seed", "3"], "--seed: the sweep sets it itself"),
        (["--jobs", "0"], "argument --jobs: 0 found"),
        (["--learning_rat", "1"], "unrecognized arguments: --learning_rat"),
        (["--estimate_from", "nowhere"], "nowhere: no result.json found"),
    ],
)
def test_bad_flags_are_refused(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        sweep.main(["--data_dir", "data", *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1


# --- running, with a stand-in for main_superglue.py ---------------------------------------------------------

STAND_IN = """
import json, os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from arguments import parse_arguments
args = parse_arguments(sys.argv[1:])
name = args.task + "/" + args.output_dir.name
with open({log!r}, "a") as log: log.write(f"start {{name}} {{os.environ.get('OMP_NUM_THREADS')}}\\n")
args.output_dir.mkdir(parents=True, exist_ok=True)
there = {{n: str(v) if isinstance(v, Path) else v for n, v in vars(args).items()}}
(args.output_dir / "args.json").write_text(json.dumps(there))
print("at work", flush=True)
time.sleep({sleep})
if args.task == "CB" and Path({broken!r}).exists() and not args.stop_after is None: sys.exit(1)
result = {{"stopped_after": args.stop_after, "seconds": {{"teacher": 1.0}}, "reused": []}}
(args.output_dir / "result.json").write_text(json.dumps(result))
with open({log!r}, "a") as log: log.write(f"end {{name}}\\n")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """(run(*flags) -> exit code, lines of what was started and ended, the file whose existence makes CB's
    first run fail)."""
    log, broken = tmp_path / "log", tmp_path / "broken"

    def run(*words, sleep=0.0):
        (tmp_path / "main_superglue.py").write_text(
            STAND_IN.format(root=str(ROOT), log=str(log), broken=str(broken), sleep=sleep)
        )
        monkeypatch.setattr(sweep, "ROOT", tmp_path)
        return sweep.main(["--data_dir", "data", "--output_dir", str(tmp_path / "runs"), "--go", *words])

    return run, lambda: log.read_text().splitlines() if log.exists() else [], broken


def test_shared_phases_come_first_and_finished_runs_are_skipped(stand_in, capsys):
    run, lines, _ = stand_in
    words = ["--tasks", "CB", "COPA", "--rows", "kd", "uniform", "mpdistil_col_binary", "--jobs", "2"]
    assert run(*words) == 0
    found = lines()
    assert len(found) == 12 and {line.split()[-1] for line in found if line.startswith("start")} == {
        str(max(1, os.cpu_count() // 2))
    }
    for task in ("CB", "COPA"):
        shared = found.index(f"end {task}/paper-col-shared-seed42")
        others = [n for n, line in enumerate(found) if f" {task}/" in line and "shared" not in line]
        assert len(others) == 4 and min(others) > shared
    assert "6 of 6 runs are finished" in capsys.readouterr().out
    assert run(*words) == 0 and len(lines()) == 12                        # nothing left to do
    assert run(*words, "--seeds", "42", "43") == 0 and len(lines()) == 24  # the new seed alone
    with_other_flags = run(*words, "--learning_rate", "1e-4")
    assert (
        with_other_flags == 2
        and "holds a run with --learning_rate" in capsys.readouterr().err
        and len(lines()) == 24
    )


def test_failed_runs_are_listed_and_tried_again(stand_in, capsys):
    run, lines, broken = stand_in
    broken.touch()
    words = ["--tasks", "CB", "COPA", "--rows", "uniform"]
    assert run(*words) == 1
    said = capsys.readouterr().out
    failed = [line for line in said.splitlines() if line.startswith("failed: ")]
    assert (
        len(failed) == 2
        and "logs/paper-col-shared-seed42.log: at work" in failed[0]
        and "not begun" in failed[1]
    )
    assert "2 of 4 runs are finished; the same command tries the others again" in said      # COPA went on
    assert "at work" in (broken.parent / "runs" / "cb" / "logs" / "paper-col-shared-seed42.log").read_text()
    broken.unlink()
    assert run(*words) == 0 and "4 of 4 runs are finished" in capsys.readouterr().out
    # only CB's two, one of them for the second time
    assert sum(line.startswith("start") for line in lines()) == 5


def test_dependents_go_on_where_the_shared_phases_are_there(stand_in, tmp_path, capsys):
    """A control that fails at the end of the first run does not hold up the column."""
    run, lines, broken = stand_in
    broken.touch()
    folder = tmp_path / "runs" / "cb" / "paper-col-shared-seed42"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"phase": "meta_teacher"}\n')
    assert run("--tasks", "CB", "--rows", "uniform") == 1
    assert (
        "1 of 2 runs are finished" in capsys.readouterr().out
        and "end CB/paper-col-binary-uniform-seed42" in lines()
    )


@pytest.mark.parametrize("signum, times", [(signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGHUP, 1)])
def test_a_signal_reaches_all_runs(signum, times, stand_in, capsys):
    run, lines, _ = stand_in
    begun = time.monotonic()

    def send():
        while sum(line.startswith("start") for line in lines()) < 2:
            time.sleep(0.05)
        for _ in range(times):
            os.kill(os.getpid(), signum)
            time.sleep(0.05)

    sender = threading.Thread(target=send)
    sender.start()
    code = run("--tasks", "CB", "COPA", "--rows", "uniform", "--jobs", "2", sleep=60.0)
    sender.join()
    said = capsys.readouterr().out
    assert (
        code == 128 + signum
        and time.monotonic() - begun < 30
        and f"ended by {signal.Signals(signum).name}" in said
    )
    assert said.count("ended with code") == 2 and not any(line.startswith("end") for line in lines())


def test_an_error_leaves_no_run_behind(stand_in, monkeypatch):
    run, lines, _ = stand_in

    def step(self, bar):
        if self.running and lines():
            raise OSError("no space left on device")
        if not self.running:
            self.start(self.waiting[0])

    monkeypatch.setattr(sweep.Sweep, "step", step)
    began = time.monotonic()
    assert run("--tasks", "CB", "--rows", "kd", sleep=60.0) == 2 and time.monotonic() - began < 30


@pytest.mark.parametrize("there, wanted", [({"eval_batch_size": 16}, []), ({"learning_rate": 1.0}, []),
                                           ({"tasks": ["CB"]}, ["CB", "COPA"])])
def test_a_folder_with_other_arguments_is_not_taken_for_finished(there, wanted, tmp_path):
    more = ["--tasks", *wanted] if wanted else []
    job = sweep.plan(["CB"], [1], ["kd"], tmp_path, "data", more)[0]
    job.folder.mkdir(parents=True)
    values = {name: str(value) if name.endswith("_dir") else value for name, value in vars(job.args).items()}
    (job.folder / "result.json").write_text('{"stopped_after": "meta_teacher"}')
    (job.folder / "args.json").write_text(json.dumps(values))
    assert job.finished()  # and further than kd
    (job.folder / "args.json").write_text(json.dumps({**values, **there}))
    with pytest.raises(ValueError, match=f"--{next(iter(there))}"):
        job.finished()
    (job.folder / "args.json").write_text("[]")
    with pytest.raises(ValueError, match="args.json: not the JSON that a run wrote"):
        job.finished()


def test_time_left_is_learnt_from_finished_runs(tmp_path):
    jobs = sweep.plan(["CB"], [1, 2], list(ROWS), tmp_path, "data", [])
    assert sweep.expected_seconds(jobs)(jobs[0]) is None
    for job, seconds in ((jobs[2], 10.0), (jobs[3], 30.0)):
        job.folder.mkdir(parents=True)
        (job.folder / "args.json").write_text(
            json.dumps({**vars(job.args), "output_dir": "", "phase_dir": ""})
        )
        (job.folder / "result.json").write_text(
            json.dumps(
                {"stopped_after": None, "seconds": {"kd": 99.0, "mpdistil": seconds}, "reused": ["kd"]}
            )
        )
    expect = sweep.expected_seconds(jobs)
    assert expect(jobs[4]) == 20.0 and expect(jobs[13]) == 20.0 and expect(jobs[9]) is None
    assert (sweep.spoken(59), sweep.spoken(3600), sweep.spoken(5000)) == ("1 min", "1 h 00 min", "1 h 23 min")


# --- the real command ---------------------------------------------------------------------------------------

def real(encoders, data_dir, folder, *words):
    """Flags of a small sweep of two runs."""
    flags = [
        "--data_dir",
        data_dir,
        "--tasks",
        "CB",
        "--rows",
        "kd",
        "kd_200",
        "uniform",
        "--teacher_model",
        encoders["bert"],
        "--nlayers",
        "3",
        "--max_seq_length",
        "64",
        "--teacher_epochs",
        "1",
        "--epochs",
        "1",
        "--meta_epochs",
        "1",
        "--num_episodes",
        "8",
        "--val_dataloader_size",
        "4",
        "--output_dir",
        folder,
        *words,
    ]
    return [str(flag) for flag in flags]


def test_an_interrupted_sweep_ends_with_the_same_table(encoders, data_dir, tmp_path, capsys, monkeypatch):
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py")]
    done = subprocess.run(
        command + real(encoders, data_dir, tmp_path / "whole", "--go"), capture_output=True, text=True
    )
    assert done.returncode == 0 and "2 of 2 runs are finished" in done.stdout, done.stdout + done.stderr
    again = real(encoders, data_dir, tmp_path / "ended", "--go")
    process = subprocess.Popen(command + again, stdout=subprocess.PIPE, text=True, start_new_session=True)
    metrics = tmp_path / "ended" / "cb" / "paper-col-binary-uniform-seed42" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and '"episode": 2' in metrics.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[0]
    assert process.returncode == 128 + signal.SIGINT and "ended by SIGINT; the same command goes on" in said
    assert not (metrics.parent / "result.json").exists() and (metrics.parent / "state").is_dir()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert sweep.main(again) == 0 and "2 of 2 runs are finished" in capsys.readouterr().out
    assert "going on from" in (tmp_path / "ended" / "cb" / "logs" / f"{metrics.parent.name}.log").read_text()
    texts = []
    for name in ("whole", "ended"):
        assert make_tables.main([str(tmp_path / name), "--table", "1a"]) == 0
        # seconds, memory
        texts.append(
            [line for line in capsys.readouterr().out.splitlines() if not line.startswith("- Machine")]
        )
    assert texts[0] == texts[1] and any(line.startswith("| Control: uniform") for line in texts[0])
    folders = [
        str(tmp_path / "whole" / "cb" / name)
        for name in ("paper-col-shared-kd_200-seed42", metrics.parent.name)
    ]
    assert sweep.main(real(encoders, data_dir, tmp_path / "new", "--estimate_from", *folders)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 4
        and lines[0] == "# CB: about 0.0 h"
        and lines[1].startswith("# 2 runs: about 0.0 h in all")
    )

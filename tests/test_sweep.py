"""scripts/sweep.py: which runs it plans, and how it runs them: shared phases first, interrupted, failed,
tried again."""
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

import lib.cost
import lib.local
from lib.rows import BASELINE_ROWS, CONTROLS, ROWS, read_paper

import make_tables
import sweep
from arguments import PROTOCOLS, parse_arguments
from bookkeeping.errors import InputError
from bookkeeping.files import write_record
from conftest import ROOT, TASK_NAMES
from data_utils import resolve_settings

SAMPLE = str(ROOT / "sample_data")


def printed(capsys, *words):
    """The commands that a sweep prints, as flags."""
    assert sweep.main(["--data_dir", "data", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [shlex.split(line)[2:] for line in lines if not line.startswith("#")]


def value(command, flag):
    return command[command.index(flag) + 1] if flag in command else None


def variant(command):
    loss = "com" if "--use_comp_loss" in command else "col"
    return loss, value(command, "--reward_function"), value(command, "--curriculum")


# --- the plan -----------------------------------------------------------------------------------------------

def test_rows_are_the_papers_and_the_controls():
    assert list(read_paper()["rows"]) == [name for name in ROWS if name not in CONTROLS + BASELINE_ROWS]
    assert CONTROLS == ["kd_200", "kd_quiz", "uniform", "mpdistil_learning"]
    tables = {name: table for name, table in read_paper().items() if name.startswith("table_")}
    assert list(tables) == ["table_1a", "table_1b", "table_4"]
    for table in tables.values():
        assert set(table["values"]) == set(read_paper()["rows"])
        assert {len(values) for values in table["values"].values()} == {len(table["columns"])}
    assert tables["table_1a"]["values"]["teacher"][1] == 83.9
    assert tables["table_4"]["values"]["mpdistil_col_binary"][-1] == 63.3


def test_a_whole_column(capsys):
    commands = printed(capsys, "--tasks", "cb", "COPA", "--seeds", "1", "2", "--nlayers", "3",
                       "--learning_rate", "1e-4")
    assert len(commands) == 2 * 2 * 9
    whole = len(printed(capsys, "--seeds", "1", "2", "3", "4", "5"))  # as the documentation counts them
    assert f"# prints the {whole} commands: 6 tasks x 5 seeds x 9 runs" in (
        ROOT / "docs" / "RESULTS.md").read_text()
    assert {value(command, "--learning_rate") for command in commands} == {"1e-4"}
    assert [(value(command, "--seed"), value(command, "--task")) for command in commands[::9]] == [
        ("1", "CB"), ("1", "COPA"), ("2", "CB"), ("2", "COPA")]
    first, second, *rest = commands[:9]
    assert [flag for flag in ("--undistilled", "--kd_200", "--kd_quiz") if flag not in first] == []
    assert value(first, "--stop_after") == value(second, "--stop_after") == "meta_teacher"
    assert "--use_comp_loss" in second
    policies = [(loss, reward, "policy") for loss in ("col", "com") for reward in ("binary", "real")]
    chance = [("col", "binary", "main_task"), ("col", "binary", "uniform")]
    learning = rest.pop()
    assert sorted(map(variant, rest)) == sorted(policies + chance) and variant(learning) == policies[1]
    place = learning.index("--set")
    assert learning[place + 1:place + 3] == ["advantage=step_mean", "reward_of=improvement"]
    assert value(learning, "--policy_learning_rate") == "0.01" and "--set" not in sum(rest, [])
    assert len({value(command, "--output_dir") for command in commands}) == 36
    assert len({value(command, "--phase_dir") for command in commands}) == 2


@pytest.mark.parametrize("rows, stops", [
    (["teacher"], ["teacher"]), (["kd"], ["kd"]), (["student"], ["kd"]), (["kd_200"], ["meta_teacher"]),
    (["kd_quiz"], ["meta_teacher"]), (["meta_teacher_com"], ["meta_teacher"] * 2),
    (["uniform"], ["meta_teacher", None]), (["main_task"], ["meta_teacher", None])])
def test_only_what_rows_need(rows, stops, capsys):
    commands = printed(capsys, "--tasks", "CB", "--rows", *rows)
    assert [value(command, "--stop_after") for command in commands] == stops
    assert [flag for flag in ("--undistilled", "--kd_200", "--kd_quiz") if flag in commands[0]] == [
        f"--{ROWS[row].flag}" for row in rows if row in ROWS and ROWS[row].flag]


@pytest.mark.parametrize("flags, losses", [
    ([], ["col"]), (["--set", "state_gradient=attached"], ["col"]),
    (["--protocol", "released"], ["col", "com"]), (["--set", "phase_order=alternating"], ["col", "com"]),
    (["--protocol", "released", "--set", "phase_order=sequential"], ["col"]),
    (["--set", "meta_term=attached"], ["col", "com"])])
def test_what_is_one_computation_is_run_once(flags, losses, capsys):
    """Without a policy the loss reaches the student through phase 2 alone, where phases 2 and 3 take
    turns."""
    for rows in (["main_task"], ["no_curriculum_com"]):
        commands = printed(capsys, "--tasks", "CB", "--rows", *rows, *flags)
        runs = [variant(command)[0] for command in commands if not value(command, "--stop_after")]
        assert runs == (losses if rows == ["main_task"] else losses[-1:])


@pytest.mark.parametrize("words, said", [
    (["--rows", "best"], "argument --rows: 'best' found"),
    (["--tasks", "XNLI"], "argument --tasks: 'XNLI' found"),
    (["--seed", "3"], "--seed: the sweep sets it itself"),
    (["--kd_quiz"], "--kd_quiz: the sweep sets it itself"),
    (["--jobs", "0"], "argument --jobs: '0' found"),
    (["--learning_rat", "1"], "unrecognized arguments: --learning_rat"),
    (["--set", "dropout=never"], "--set dropout=never: 'never' found"),
    (["--estimate_from", "nowhere"], "nowhere: no result.json found")])
def test_bad_flags_are_refused(words, said, capsys):
    try:
        code = sweep.main(["--data_dir", "data", *words])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and said in error and error.count("\n") == 1


def test_methods_to_compare_with_are_rows_of_the_first_run(capsys):
    command, = printed(capsys, "--tasks", "CB", "--rows", "kd", "takd", "hinton_kd")
    place = command.index("--baselines")
    assert command[place + 1:place + 3] == ["hinton_kd", "takd"] and value(command, "--stop_after") == "kd"
    first, *rest = printed(capsys, "--tasks", "CB", "--rows", "uniform", "baselines")
    assert len(first[first.index("--baselines") + 1:]) > 7
    first, *_ = printed(capsys, "--tasks", "CB", "--rows", "uniform", "takd", "--baseline_set",
                        "takd.alpha=1", "takd.temperature=2", "--learning_rate", "1e-4")
    place = first.index("--baseline_set")
    assert first[place + 1:place + 3] == ["takd.alpha=1", "takd.temperature=2"]
    assert value(first, "--learning_rate") == "1e-4"
    others = [*rest, *printed(capsys, "--tasks", "CB")]  # not in `all`
    assert all("--baselines" not in words for words in others)


def test_a_policy_that_can_learn_needs_an_update_a_step(capsys):
    words = ["--data_dir", "data", "--tasks", "CB", "--protocol", "released"]
    assert sweep.main([*words, "--rows", "mpdistil_learning"]) == 2
    assert "reward_of=improvement: found with" in capsys.readouterr().err
    assert sweep.main(words) == 0  # of `all` it is left out, which is said
    found = capsys.readouterr()
    assert len(found.out.splitlines()) == 9 and "learning" not in found.out
    assert found.err.startswith("left out: mpdistil_learning: --set reward_of=improvement: found with")
    assert sweep.main(["--data_dir", "data", "--tasks", "CB", "--set", "reward_of=level"]) == 2
    assert "another value than reward_of=improvement" in capsys.readouterr().err
    assert sweep.main([*words, "--epochs", "3"]) == 2  # what is wrong anyway is no reason to leave it out
    assert "left out" not in capsys.readouterr().err


def test_runs_that_no_table_takes_are_warned_of(capsys):
    assert sweep.main(["--data_dir", "data", "--rows", "kd", "--select_on", "quiz"]) == 0
    assert "make_tables.py takes no such runs" in capsys.readouterr().err


# --- what is printed is what runs ---------------------------------------------------------------------------

def test_printed_commands_work_in_any_folder(encoders, data_dir, tmp_path, capsys, monkeypatch):
    """Data, encoder and runs are given relative to the folder that the sweep is called in; the run is then
    started in another one, by what was printed."""
    shutil.copytree(data_dir / "CB", tmp_path / "here" / "data" / "CB")
    shutil.copytree(encoders["bert"], tmp_path / "here" / "encoders" / "tiny")
    monkeypatch.chdir(tmp_path / "here")
    words = ["--data_dir", "data", "--tasks", "CB", "--rows", "teacher", "--teacher_model", "encoders/tiny",
             "--nlayers", "2", "--teacher_epochs", "1", "--val_dataloader_size", "4", "--max_seq_length",
             "64", "--output_dir", "runs"]
    assert sweep.main(words) == 0
    line, = capsys.readouterr().out.splitlines()
    command = shlex.split(line)
    assert command[:2] == [sys.executable, str(ROOT / "main_superglue.py")]
    for flag in ("--data_dir", "--teacher_model", "--output_dir", "--phase_dir"):
        assert value(command, flag).startswith(str(tmp_path / "here"))
    (tmp_path / "there").mkdir()
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path / "there", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "there").iterdir()) == [] and (tmp_path / "here" / "runs" / "cb").is_dir()
    assert sweep.main(words) == 0 and capsys.readouterr().out == f"# finished: {line}\n"


@pytest.mark.parametrize("encoder", ["--teacher_model=encoders/tiny", "--student_model=encoders/tiny"])
def test_a_hub_id_stays_what_it_is(encoder, tmp_path, capsys, monkeypatch):
    (tmp_path / "encoders" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    command, = printed(capsys, "--tasks", "CB", "--rows", "kd", "--data_dir", "hub", encoder,
                       "--teacher_model", "org/name")
    assert encoder.replace("encoders", f"{tmp_path}/encoders") in command
    assert value(command, "--teacher_model") == "org/name" and value(command, "--data_dir") == "hub"


@pytest.mark.parametrize("name", ["1a", "1b", "4"])
def test_a_table_is_planned_where_python_is_called_python3(name, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "dirname"):
        (folder / tool).symlink_to(shutil.which(tool))
    (folder / "python3").write_text(f'#!{shutil.which("sh")}\nexec {sys.executable} "$@"\n')
    (folder / "python3").chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHON"}
    words = [ROOT / "scripts" / f"table_{name}.sh", "data", "--tasks", "RTE"]
    done = subprocess.run([shutil.which("bash"), *words], env={**environment, "PATH": str(folder)},
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5 * 9


# --- running, with a stand-in for main_superglue.py ---------------------------------------------------------

STAND_IN = """
import os, sys, time
sys.path.insert(0, {root!r})
from dataclasses import asdict
from pathlib import Path
from arguments import parse_arguments, resolve_protocol, written
from bookkeeping.files import write_json, write_record
args = parse_arguments(sys.argv[1:])
name = args.task + "/" + args.output_dir.name
with open({log!r}, "a") as log: log.write(f"start {{name}} {{os.environ.get('OMP_NUM_THREADS')}}\\n")
args.output_dir.mkdir(parents=True, exist_ok=True)
write_json(args.output_dir / "args.json",
           {{**written(args), "tasks": {tasks!r}, "protocol_choices": asdict(resolve_protocol(args))}})
print("at work", flush=True)
time.sleep({sleep})
if args.task == "CB" and Path({broken!r}).exists() and not args.stop_after is None: sys.exit(1)
write_record(args.output_dir / "result.json", {{"stopped_after": args.stop_after, "reused": [], "code": {{}},
                                               "seconds": {{"teacher": 1.0}}}})
with open({log!r}, "a") as log: log.write(f"end {{name}}\\n")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """(run(*flags) -> exit code, lines of what was started and ended, the file whose existence makes CB's
    first run fail)."""
    log, broken = tmp_path / "log", tmp_path / "broken"

    def run(*words, sleep=0.0):
        (tmp_path / "main_superglue.py").write_text(STAND_IN.format(
            root=str(ROOT), log=str(log), broken=str(broken), sleep=sleep, tasks=list(TASK_NAMES)))
        monkeypatch.setattr(lib, "ROOT", tmp_path)
        return sweep.main(["--data_dir", SAMPLE, "--output_dir", str(tmp_path / "runs"), "--go", *words])

    return run, lambda: log.read_text().splitlines() if log.exists() else [], broken


def test_shared_phases_come_first_and_finished_runs_are_skipped(stand_in, capsys):
    run, lines, _ = stand_in
    words = ["--tasks", "CB", "COPA", "--rows", "kd", "uniform", "mpdistil_col_binary", "--jobs", "2"]
    assert run(*words) == 0
    found = lines()
    assert len(found) == 12
    threads = {line.split()[-1] for line in found if line.startswith("start")}
    assert threads == {os.environ.get("OMP_NUM_THREADS") or str(max(1, os.cpu_count() // 2))}
    for task in ("CB", "COPA"):
        shared = found.index(f"end {task}/paper-col-shared-seed42")
        others = [n for n, line in enumerate(found) if f" {task}/" in line and "shared" not in line]
        assert len(others) == 4 and min(others) > shared
    assert "6 of 6 runs are finished" in capsys.readouterr().out
    assert run(*words) == 0 and len(lines()) == 12                         # nothing left to do
    assert run(*words, "--seeds", "42", "43") == 0 and len(lines()) == 24  # the new seed alone
    assert run(*words, "--learning_rate", "1e-4") == 2 and len(lines()) == 24
    error = capsys.readouterr().err
    assert "holds a run with other arguments (--learning_rate 3e-05 there, 0.0001 now)" in error
    assert error.count("\n") == 1


def test_failed_runs_are_listed_and_tried_again(stand_in, capsys):
    run, lines, broken = stand_in
    broken.touch()
    words = ["--tasks", "CB", "COPA", "--rows", "uniform"]
    assert run(*words) == 1
    said = capsys.readouterr().out
    failed = [line for line in said.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2 and "logs/paper-col-shared-seed42.log: at work" in failed[0]
    assert "not begun" in failed[1]
    assert "2 of 4 runs are finished; the same command tries the others again" in said  # COPA went on
    assert "at work" in (broken.parent / "runs" / "cb" / "logs" / "paper-col-shared-seed42.log").read_text()
    broken.unlink()
    assert run(*words) == 0 and "4 of 4 runs are finished" in capsys.readouterr().out
    # only CB's two, one of them for the second time
    assert sum(line.startswith("start") for line in lines()) == 5


def test_dependents_go_on_where_the_shared_phases_are_there(stand_in, tmp_path, capsys):
    """A control that fails at the end of the first run does not hold up the column."""
    run, lines, broken = stand_in
    broken.touch()
    assert run("--tasks", "CB", "--rows", "uniform") == 1 and "0 of 2 runs" in capsys.readouterr().out
    metrics = tmp_path / "runs" / "cb" / "paper-col-shared-seed42" / "metrics.jsonl"
    metrics.write_text('{"phase": "meta_teacher"}\n')
    assert run("--tasks", "CB", "--rows", "uniform") == 1
    assert "1 of 2 runs are finished" in capsys.readouterr().out
    assert "end CB/paper-col-binary-uniform-seed42" in lines()


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

    # where the machine is slow, the second one comes when the sweep has ended, and must not end the tests
    before = signal.signal(signum, lambda *_: None)
    sender = threading.Thread(target=send)
    sender.start()
    code = run("--tasks", "CB", "COPA", "--rows", "uniform", "--jobs", "2", sleep=60.0)
    sender.join()
    signal.signal(signum, before)
    said = capsys.readouterr().out
    assert code == 128 + signum and time.monotonic() - begun < 30
    assert f"ended by {signal.Signals(signum).name}" in said and said.count("ended with code") == 2
    assert not any(line.startswith("end") for line in lines())


def test_an_error_leaves_no_run_behind(stand_in, monkeypatch):
    run, lines, _ = stand_in

    def step(self, bar):
        if self.running and lines():
            raise OSError("no space left on device")
        if not self.running:
            self.start(self.waiting[0])

    monkeypatch.setattr(lib.local.Sweep, "step", step)
    began = time.monotonic()
    assert run("--tasks", "CB", "--rows", "kd", sleep=60.0) == 2 and time.monotonic() - began < 30


# --- whether a run is finished ------------------------------------------------------------------------------

def finish(job, stopped_after="meta_teacher", seconds=None, reused=(), code=None, **flags):
    """Leave in a job's folder what a finished run leaves of what is read."""
    job.folder.mkdir(parents=True, exist_ok=True)
    settings = {**resolve_settings(job.args), "output_dir": "moved", **flags}
    (job.folder / "args.json").write_text(json.dumps(settings))
    write_record(job.folder / "result.json", {"stopped_after": stopped_after, "seconds": seconds or {},
                                              "reused": list(reused), "code": code or {}})


def one_job(tmp_path, *more):
    return sweep.plan(["CB"], [1], ["kd"], tmp_path, SAMPLE, list(more))[0]


@pytest.mark.parametrize("there", [{"eval_batch_size": 16}, {"learning_rate": 1.0}, {"tasks": ["CB"]},
                                   {"protocol_choices": {**vars(PROTOCOLS["released"])}}])
def test_a_folder_with_other_arguments_is_not_taken_for_finished(there, tmp_path):
    assert not one_job(tmp_path).finished()
    finish(one_job(tmp_path))
    assert one_job(tmp_path).finished()  # and further than kd
    finish(one_job(tmp_path), stopped_after="teacher")
    assert not one_job(tmp_path).finished()
    finish(one_job(tmp_path), **there)
    with pytest.raises(InputError, match=f"--{next(iter(there))} .*another --output_dir"):
        one_job(tmp_path).finished()


def test_where_data_lie_is_no_argument(tmp_path, monkeypatch):
    """The same place, spelled in another way; in another place only the run, which reads them, can say."""
    monkeypatch.chdir(ROOT)
    finish(one_job(tmp_path), data_dir="./sample_data/", teacher_model="./bert-base-uncased",
           student_model=str(ROOT / "bert-base-uncased"))
    assert one_job(tmp_path).finished()
    finish(one_job(tmp_path), data_dir="a_copy")
    assert not one_job(tmp_path).finished()
    with pytest.raises(InputError, match="--seed"):
        finish(one_job(tmp_path), data_dir="a_copy", seed=2)
        one_job(tmp_path).finished()


def test_the_curriculums_tasks_are_those_of_the_data(tmp_path):
    finish(one_job(tmp_path))
    assert one_job(tmp_path, "--tasks", "boolq", *TASK_NAMES[2:]).finished()
    with pytest.raises(InputError, match="--tasks"):
        one_job(tmp_path, "--tasks", "COPA").finished()


@pytest.mark.parametrize("change, said", [
    (lambda folder: (folder / "args.json").write_text("[]"), "args.json: list found"),
    (lambda folder: (folder / "args.json").write_text("{"), "args.json: cannot be read"),
    (lambda folder: (folder / "args.json").unlink(), "is no run folder"),
    (lambda folder: (folder / "result.json").write_text("{}"), "not what a run wrote"),
    (None, "made by other code (changed since: kd)")])
def test_what_is_no_finished_run_of_this_code_is_one_line(change, said, tmp_path, capsys):
    job = one_job(tmp_path)
    other = {"kd": {"function": "distill", "without": [], "sha256": "0" * 64}}
    finish(job, code=None if change else other)
    if change:
        change(job.folder)
    for go in ([], ["--go"]):
        words = ["--data_dir", SAMPLE, "--tasks", "CB", "--seeds", "1", "--rows", "kd"]
        assert sweep.main([*words, "--output_dir", str(tmp_path), *go]) == 2
        out, error = capsys.readouterr()
        assert said in error and error.count("\n") == 1 and not out
        assert "remove the folder, or give the sweep another --output_dir" in error


def test_time_left_is_learnt_from_finished_runs(tmp_path):
    jobs = sweep.plan(["CB"], [1, 2], list(ROWS), tmp_path, SAMPLE, [])
    assert lib.cost.expected_seconds(jobs)(jobs[0]) is None
    for job, seconds in ((jobs[2], 10.0), (jobs[3], 30.0)):
        finish(job, None, {"kd": 99.0, "mpdistil": seconds}, ["kd"])
        assert job.finished()
    expect = lib.cost.expected_seconds(jobs)
    assert expect(jobs[4]) == 20.0 and expect(jobs[13]) == 20.0 and expect(jobs[9]) is None
    assert [lib.cost.spoken(seconds) for seconds in (59, 3600, 5000)] == ["1 min", "1 h 00 min", "1 h 23 min"]


# --- the real command ---------------------------------------------------------------------------------------

def real(encoders, data_dir, folder, *words):
    """Flags of a small sweep of two runs."""
    flags = {"--data_dir": data_dir, "--tasks": "CB", "--teacher_model": encoders["bert"], "--nlayers": 3,
             "--max_seq_length": 64, "--teacher_epochs": 1, "--epochs": 1, "--meta_epochs": 1,
             "--num_episodes": 8, "--val_dataloader_size": 4, "--output_dir": folder}
    flags = [str(word) for pair in flags.items() for word in pair]
    return ["--rows", "kd", "kd_200", "kd_quiz", "uniform", *flags, *words]


@pytest.mark.usefixtures("in_process")  # but for the sweep that is interrupted
def test_an_interrupted_sweep_ends_with_the_same_table(encoders, data_dir, tmp_path, capsys, monkeypatch):
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py")]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert sweep.main(real(encoders, data_dir, tmp_path / "whole", "--go")) == 0
    assert "2 of 2 runs are finished" in capsys.readouterr().out
    again = real(encoders, data_dir, tmp_path / "ended", "--go")
    process = subprocess.Popen(command + again, stdout=subprocess.PIPE, text=True, start_new_session=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    metrics = tmp_path / "ended" / "cb" / "paper-col-binary-uniform-seed42" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and '"episode": 2' in metrics.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[0]
    assert process.returncode == 128 + signal.SIGINT
    assert "ended by SIGINT; the same command goes on" in said
    assert not (metrics.parent / "result.json").exists() and (metrics.parent / "state").is_dir()
    assert sweep.main(again) == 0 and "2 of 2 runs are finished" in capsys.readouterr().out
    log = tmp_path / "ended" / "cb" / "logs" / f"{metrics.parent.name}.log"
    assert "going on from" in log.read_text()
    texts = []
    for name in ("whole", "ended"):
        # the tree may hold changes while these tests are written
        assert make_tables.main([str(tmp_path / name), "--table", "1a", "--mixed"]) == 0
        lines = capsys.readouterr().out.splitlines()
        # without seconds, memory and what is mixed
        texts.append([line for line in lines if not line.startswith("- M")])
    assert texts[0] == texts[1]
    for control in ("Control: uniform", "Control: distilled on train and quiz together"):
        line = next(line for line in texts[0] if line.startswith(f"| {control}"))
        assert re.search(r"\| \d+\.\d +\|", line)
    folders = [str(tmp_path / "whole" / "cb" / name)
               for name in ("paper-col-shared-kd_200-kd_quiz-seed42", metrics.parent.name)]
    assert sweep.main(real(encoders, data_dir, tmp_path / "new", "--estimate_from", *folders)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0] == "# CB: about 0.0 h"
    assert lines[1].startswith("# 2 runs: about 0.0 h")


def test_a_sweep_is_estimated_from_a_benchmark(encoders, data_dir, tmp_path, capsys):
    words = ["--data_dir", str(data_dir), "--tasks", "CB", "--teacher_model", str(encoders["bert"]),
             "--nlayers", "3", "--num_episodes", "8", "--val_dataloader_size", "4"]
    settings = resolve_settings(parse_arguments(["--task", "CB", *words[:2], *words[4:]]))
    seconds = {"teacher": 7200, "kd": 3600, "meta_teacher": 1, "mpdistil": 1800}
    figures = {"settings": settings, "phases": {
        phase: {"ours_s": taken, "bf16_s": taken / 2, "over_bare": 1.0} for phase, taken in seconds.items()}}
    (tmp_path / "cb.json").write_text(json.dumps(figures))
    del figures["phases"]["kd"]["over_bare"]
    (tmp_path / "peer.json").write_text(json.dumps(figures))

    def said(*more, rows=("teacher", "student", "kd"), name="cb.json"):
        code = sweep.main([*words, "--rows", *rows, *more, "--estimate_from", str(tmp_path / name)])
        found = capsys.readouterr()
        return found.out if code == 0 else found.err

    # two teachers, two distilled students, two undistilled ones, whose steps are like those of the distilled
    assert said("--seeds", "1", "2").startswith("# CB: about 8.0 h\n# 2 runs: about 8.0 h in all")
    assert said("--precision", "bf16", rows=("mpdistil_col_real",)).startswith("# CB: about 1.8 h\n")
    # a task without files is named and counts for nothing; where no other is left it is an error
    lines = said("--tasks", "MNLI", "CB", rows=("teacher",)).splitlines()
    assert lines[0].startswith("# MNLI: no estimate: --data_dir ") and "no folder MNLI found" in lines[0]
    assert lines[1] == "# CB: about 2.0 h" and lines[2].startswith("# 1 runs: about 2.0 h in all")
    assert said("--tasks", "MNLI").startswith("error: --data_dir ")
    refused = f"error: --estimate_from: {tmp_path / 'cb.json'}: measured in fp32, expected --precision tf32"
    assert said("--precision", "tf32").startswith(refused)
    assert "peer.json: no figures of phases found" in said(name="peer.json")

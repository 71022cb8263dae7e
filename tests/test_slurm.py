"""sweep.py --cluster slurm: the script and the refusals with stand-ins for SLURM's commands; the whole on a
real SLURM of one node where it is installed (Debian: slurmctld slurmd slurm-client munge; as root)."""
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import lib.local
import lib.slurm

import slurm_node
import sweep
from conftest import ROOT, as_words
from data_utils import resolve_settings
from test_sweep import SAMPLE, finish

REQUIRED = os.environ.get("MPDISTIL_TEST_SLURM") == "required"


# --- with stand-ins -----------------------------------------------------------------------------------------

def stand_in(folder, name, text):
    """An executable of that name."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """(line(*flags) -> exit code, folder): sweep.py --cluster slurm with commands that answer from files:
    squeue prints `queue`; sbatch counts up, notes its script, and fails while `broken` exists."""
    commands = tmp_path / "bin"
    stand_in(commands, "squeue", f"""
[[ -n $SQUEUE_STATES || -n $SLURM_CLUSTERS || $* != *--all* ]] && exit
cat {tmp_path}/queue 2>/dev/null || true""")
    monkeypatch.setenv("SQUEUE_STATES", "SUSPENDED")  # of a user's profile
    stand_in(commands, "scontrol", "echo 'MaxArraySize            = 4'")
    stand_in(commands, "sbatch", f"""
[[ $1 == --version ]] && exit
[[ $* == *--job-name=*--signal=B:USR1@*--time=* ]] || {{ echo 'flags missing' >&2; exit 1; }}
[[ -e {tmp_path}/late ]] && {{ cp {tmp_path}/late {tmp_path}/queue; name=${{2#--job-name=}}
  sed -i "s/NAME/$name/" {tmp_path}/queue; echo 'Socket timed out' >&2; exit 1; }}
[[ -e {tmp_path}/broken ]] && {{ echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1; }}
[[ $1 == --parsable ]] && echo "${{@: -1}}" >> {tmp_path}/submitted && echo '7;here'""")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")

    def line(*words, sbatch="--time=08:00:00"):
        words = ["--data_dir", SAMPLE, "--output_dir", str(tmp_path / "a run"), "--tasks", "CB",
                 "--seeds", "1", "2", "--rows", "kd", "--cluster", "slurm", *words]
        try:
            return sweep.main([*words, *([f"--sbatch={sbatch}"] if sbatch is not None else [])])
        except SystemExit as stop:
            return stop.code
    return line, tmp_path


def submissions(folder):
    path = folder / "submitted"
    return path.read_text().splitlines() if path.exists() else []


def name_of(script):
    return re.search(r"--job-name=(\S+)", Path(script).read_text())[1]


def test_without_go_the_script_is_printed(cluster, capsys):
    line, folder = cluster
    assert line("--at_once", "2", "--jobs", "3", "--setup", "module load cuda", "--learning_rate", "1e-4",
                sbatch="--partition=gpu --gres=gpu:1 --time=08:00:00") == 0
    text = capsys.readouterr().out
    head = text.split("\n\n")[0].splitlines()
    assert head[0] == "#!/bin/bash" and all(part.startswith("#SBATCH --") for part in head[1:])
    for part in ("--array=0-1%2", "--requeue", "--signal=B:USR1@120", "--open-mode=append",
                 "--partition=gpu --gres=gpu:1 --time=08:00:00"):
        assert part in "\n".join(head)
    trap, setup, run = (text.index(part) for part in ("trap '' USR1", "module load cuda", "exec "))
    assert trap < setup < run
    assert "0) cell=(--tasks CB --seeds 1) ;;" in text and "1) cell=(--tasks CB --seeds 2) ;;" in text
    assert f"{ROOT}/scripts/sweep.py" in text and "--jobs 3" in text and "--learning_rate 1e-4 --go" in text
    assert "sacct" not in text and not (folder / "a run").exists() and not submissions(folder)
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_the_shell_scripts_hand_the_cluster_on(tmp_path):
    done = subprocess.run(["bash", str(ROOT / "scripts" / "table_1a.sh"), "data", "--cluster", "slurm",
                           "--sbatch", "--partition=gpu --gres=gpu:1 --time=08:00:00"], cwd=tmp_path,
                          env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0-29\n" in done.stdout  # six tasks, five seeds
    assert f"--output_dir {tmp_path}/runs/table_1a" in done.stdout and not (tmp_path / "runs").exists()


def test_the_script_runs_its_cell(cluster, capsys):
    """What bash makes of it: one process, the words of a cell, quoted folders, the record."""
    line, folder = cluster
    assert line("--curriculum_tasks", "CB", "RTE") == 0
    text = capsys.readouterr().out.replace(sys.executable, "printf '%s\\n'").replace("exec ", "")
    done = subprocess.run(["bash"], input=text, text=True, capture_output=True,
                          env={**os.environ, "SLURM_ARRAY_TASK_ID": "1"})
    words = done.stdout.splitlines()
    assert words[1:7] == ["--data_dir", SAMPLE, "--tasks", "CB", "--seeds", "2"], done.stderr
    assert words[words.index("--output_dir") + 1] == str(folder / "a run")
    number = words.index("--curriculum_tasks")
    assert words[number + 1:number + 3] == ["CB", "RTE"]
    assert re.fullmatch(rf"{folder}/a run/slurm/[\d-]+/1.json", words[-1])
    args = sweep.parse(words[1:])
    assert args.record and args.go and args.cluster == "local" and args.seeds == [2]


def test_only_what_is_missing_is_submitted(cluster, capsys):
    line, folder = cluster
    assert line("--go") == 0
    said = capsys.readouterr().out
    script, = submissions(folder)
    assert "CB seed 1: missing" in said and "submitted: 2 of 2 cells as job 7" in said
    name, root = name_of(script), Path(script).parent
    (folder / "queue").write_text(
        f"7_0|RUNNING|None|{name}\n7_1|PENDING|Priority|{name}\n9|RUNNING|None|other\n")
    assert line("--go") == 0
    assert capsys.readouterr().out.splitlines() == [
        "CB seed 1: running (7_0)", "CB seed 2: queued (7_1: Priority)", "nothing to submit"]
    # the first one failed, the second one is gone from the queue without a word
    (folder / "queue").write_text("")
    for number, state in enumerate(("failed", "running")):
        (root / f"{number}.json").write_text(json.dumps({"state": state, "code": 1, "starts": 1}))
    assert line("--go") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"CB seed 1: failed ({root}/0.log: code 1)"
    assert said[1].startswith(f"CB seed 2: failed ({root}/1.log: it is gone from the queue without a word")
    assert len(submissions(folder)) == 2 and "submitted: 2 of 2 cells" in said[2]
    # one is finished: the next line submits the other one alone
    for job in lib.slurm.cells_of(*jobs_of(folder))[0].jobs:
        finish(job)
    assert line("--go") == 0
    assert capsys.readouterr().out.splitlines()[0] == "CB seed 1: finished"
    assert "--array=0-0\n" in Path(submissions(folder)[-1]).read_text()


def jobs_of(folder):
    options = sweep.parse(["--data_dir", SAMPLE, "--output_dir", str(folder / "a run"), "--tasks", "CB",
                           "--seeds", "1", "2", "--rows", "kd"])
    return sweep.plan(options.tasks, options.seeds, options.rows, options.output_dir, options.data_dir,
                      options.more), options


def test_a_cell_in_the_queue_is_not_given_to_a_second_job(cluster, capsys):
    line, folder = cluster
    assert line("--go") == 0
    (folder / "queue").write_text(f"7_1|RUNNING|None|{name_of(submissions(folder)[0])}\n")
    job = lib.slurm.cells_of(*jobs_of(folder))[1].jobs[0]
    job.folder.mkdir(parents=True)  # it is at work
    (job.folder / "args.json").write_text(json.dumps(resolve_settings(job.args)))
    capsys.readouterr()
    assert line("--go", "--learning_rate", "1e-4") == 2
    error = capsys.readouterr().err
    assert "CB seed 2 is in the queue as 7_1, with other flags (--learning_rate, 1e-4)" in error
    assert "scancel 7_1" in error and error.count("\n") == 1 and len(submissions(folder)) == 1


@pytest.mark.parametrize("sbatch, said", [
    (None, "argument --sbatch: missing"),
    ("--partition=gpu", "no --time; give one"),
    ("--time=soon", "--time=soon is no time limit"),
    ("--time=3", "--time=3 leaves no time to work: a job is told to save 120 to 180 s before its end"),
    ("-t 00:02:30", "--time=00:02:30 leaves no time to work"),
    ("--time=5 --signal=B:USR1@300", "told to save 300 to 360 s before its end. Give over 6 minutes"),
    ("--time=1:00:00 --signal=TERM@60", "expected --signal=B:USR1@SECONDS"),
    ("--time=60 --array=0-3", "--array is set here, or cannot be used"),
    ("--time=60 -J mine", "--job-name is set here, or cannot be used"),
    ("--time=60 --wait", "--wait is set here, or cannot be used"),
    ("--time=60 --job=mine", "--job-name is set here"),
    ("--time=60 -M other", "--clusters is set here, or cannot be used"),
    ("--time=60 --test-only", "--test-only is set here, or cannot be used"),
    ("--time=60\n#SBATCH --no-requeue", "expected one line"),
    ("--time=60 --comment='a", "No closing quotation")])
def test_flags_of_sbatch_that_cannot_work_are_refused(sbatch, said, cluster, capsys):
    line, folder = cluster
    for words in ((), ("--go",)):
        assert line(*words, sbatch=sbatch) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not submissions(folder)


@pytest.mark.parametrize("limit, seconds", [
    ("4", 240), ("4:30", 270), ("1:00:00", 3600), ("2-0", 172800), ("1-2:30", 95400), ("0-0:0:9", 9),
    ("UNLIMITED", None)])
def test_time_limits_are_read_as_sbatch_reads_them(limit, seconds):
    assert lib.slurm.seconds_of(limit) == seconds


@pytest.mark.parametrize("words, said", [
    (["--sbatch=--time=60"], "argument --sbatch: '--time=60' found without --cluster slurm"),
    (["--setup", "true"], "argument --setup: 'true' found without --cluster slurm"),
    (["--at_once", "2"], "argument --at_once: 2 found without --cluster slurm"),
    (["--cluster", "slurm", "--sbatch=--time=60", "--record", "x"], "argument --record: is for the element"),
    (["--cluster", "pbs"], "argument --cluster: invalid choice: 'pbs'")])
def test_flags_that_do_not_belong_together_are_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        sweep.main(["--data_dir", "data", *words])
    assert said in capsys.readouterr().err


def test_what_the_cluster_refuses_leaves_nothing(cluster, capsys, monkeypatch):
    line, folder = cluster
    assert line("--go", "--seeds", *"12345") == 2
    assert "5 cells (a task and a seed each), but this cluster takes arrays of at most 4" in (
        capsys.readouterr().err)
    (folder / "broken").touch()
    assert line("--go") == 2
    error = capsys.readouterr().err
    assert "sbatch: sbatch: error: invalid partition specified: gpu; mend what it names" in error
    assert "nothing was submitted" in error
    assert not [path for path in (folder / "a run" / "slurm").iterdir() if path.is_dir()]
    stand_in(folder / "bin", "squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert line("--go") == 2 and "Unable to contact slurm controller" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/usr/bin-without")
    assert line("--go") == 2
    assert "the command sbatch is not on the PATH" in capsys.readouterr().err
    assert line() == 0  # to print the script it takes no SLURM


def test_what_may_have_been_submitted_is_kept(cluster, capsys):
    """sbatch fails where the controller is busy, though the job is in the queue by then."""
    line, folder = cluster
    (folder / "late").write_text("9_0|PENDING|Priority|NAME\n9_1|PENDING|Priority|NAME\n")
    assert line("--go") == 2
    error = capsys.readouterr().err
    assert "Socket timed out" in error and "it was submitted nevertheless" in error and error.count("\n") == 1
    (folder / "late").unlink()
    assert line("--go") == 0
    assert capsys.readouterr().out.splitlines() == [
        "CB seed 1: queued (9_0: Priority)", "CB seed 2: queued (9_1: Priority)", "nothing to submit"]


@pytest.mark.parametrize("scontrol, code, steps, starts, states, codes, asked", [
    ("exit 0", 0, 1, 1, ["finished"], [0], 0),
    ("exit 0", 1, 0, 1, ["failed"], [1], 0),
    ("exit 0", 128 + signal.SIGTERM, 1, 2, ["stopped"] * 2, [143] * 2, 0),      # scancel is for good
    ("exit 0", 128 + signal.SIGUSR1, 1, 3, ["put back"] * 3, [138] * 3, 3),
    ("exit 0", 128 + signal.SIGUSR1, 0, 2, ["put back", "failed"], [138, 1], 1),  # no step, twice
    ("echo 'Job is pending' >&2; exit 1", 128 + signal.SIGUSR1, 1, 1, ["stopped"], [138], 1),
    (None, 128 + signal.SIGUSR1, 1, 1, ["stopped"], [138], 0)])                 # no scontrol on the node
def test_what_becomes_of_an_element(scontrol, code, steps, starts, states, codes, asked, tmp_path,
                                    monkeypatch, capsys):
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin" if scontrol else "/nowhere")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    if scontrol:
        stand_in(tmp_path / "bin", "scontrol", f'echo "$*" >> {tmp_path}/asked\n{scontrol}')
    jobs, options = jobs_of(tmp_path)
    options.record, metrics = tmp_path / "3.json", jobs[0].folder / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)

    def run(jobs, options):
        with open(metrics, "a") as file:
            file.write("{}\n" * steps)
        return code

    monkeypatch.setattr(lib.local, "run", run)
    found = []
    for _ in range(starts):
        found.append((lib.slurm.run_cell(jobs, options), json.loads(options.record.read_text())["state"]))
    assert found == list(zip(codes, states, strict=True))
    lines = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
    assert lines == ["requeue 12_3"] * asked
    said = capsys.readouterr().out
    assert ("not put back" in said) == (states[-1] != "put back" and code == 128 + signal.SIGUSR1)
    assert json.loads(options.record.read_text())["starts"] == starts


def test_an_error_is_a_failed_element(tmp_path, monkeypatch):
    jobs, options = jobs_of(tmp_path)
    options.record = tmp_path / "3.json"
    monkeypatch.setattr(lib.local, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lib.slurm.run_cell(jobs, options)
    assert json.loads(options.record.read_text())["state"] == "failed"


def test_a_finished_sweep_is_no_ended_one():
    """A signal that came when the last run was at its end."""
    class Job:
        result, finished = {}, staticmethod(lambda: True)

    runs = lib.local.Sweep([Job()], 1, in_cell=True)
    runs.signum = signal.SIGUSR1
    assert runs.say_end() == 0
    runs.jobs[0].result = None
    assert runs.say_end() == 128 + signal.SIGUSR1


def test_a_second_process_does_not_submit_at_the_same_time(cluster, capsys):
    line, folder = cluster
    root = folder / "a run" / "slurm"
    root.mkdir(parents=True)
    with lib.slurm.lock(root / ".lock", busy="held"):
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "sweep.py"), "--data_dir", SAMPLE, "--output_dir",
             str(root.parent), "--rows", "kd", "--cluster", "slurm", "--sbatch=--time=60", "--go"],
            capture_output=True, text=True)
    assert done.returncode == 2 and "another process is submitting this sweep" in done.stderr


def test_a_step_is_what_counts_as_progress():
    before = {"a": 3, "b": 0}, {"one"}
    assert not lib.slurm.moved(before, before)
    assert not lib.slurm.moved(before, ({"a": 2, "b": 0}, {"one"}))  # begun again, not yet as far
    assert lib.slurm.moved(before, ({"a": 2, "b": 0}, {"two"}))
    assert lib.slurm.moved(before, ({"a": 3, "b": 1}, set()))


@pytest.mark.parametrize("order, ends", [
    ([signal.SIGUSR1], signal.SIGUSR1), ([signal.SIGUSR1, signal.SIGTERM], signal.SIGTERM),
    ([signal.SIGTERM, signal.SIGUSR1], signal.SIGTERM)])
def test_what_ends_a_job_for_good_outweighs_a_notice(order, ends):
    sent = []

    class Process:
        send_signal = staticmethod(sent.append)

    class Job:
        process = Process()
        finished = staticmethod(lambda: True)

    runs = lib.local.Sweep([], 1, in_cell=True)
    runs.running = [Job()]
    for signum in order:
        runs.stop(signum)
    assert runs.signum == ends and set(sent) == {signal.SIGTERM}


# --- on a real SLURM ----------------------------------------------------------------------------------------

class Cluster:
    """A node, and sweeps of small runs on it. Each has a folder of its own, by its name."""

    def __init__(self, environment, folder, encoder, data_dir):
        self.environment = {**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.folder, self.encoder, self.data_dir = folder, encoder, data_dir

    def words(self, name, *more, data_dir=None, rows=("uniform",)):
        return [sys.executable, str(ROOT / "scripts" / "sweep.py"), *as_words({
            "data_dir": data_dir or self.data_dir, "tasks": "CB", "seeds": 1, "rows": rows,
            "output_dir": self.folder / name, "teacher_model": self.encoder, "nlayers": 2,
            "teacher_epochs": 1, "epochs": 1, "meta_epochs": 1, "num_episodes": 60,
            "val_dataloader_size": 4, "max_seq_length": 64, "save_seconds": 0, "go": True}), *more]

    def start(self, name, sbatch="--time=60", **more):
        words = self.words(name, "--cluster", "slurm", f"--sbatch={sbatch}", **more)
        return subprocess.Popen(words, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True)

    def line(self, name, *given, **more):
        """(exit code, what was said) of the command."""
        process = self.start(name, *given, **more)
        out, err = process.communicate(timeout=120)
        return process.returncode, out + err

    def ask(self, *command):
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def record(self, name):
        """What the newest element of a sweep says of itself; {} before it says anything."""
        paths = sorted((self.folder / name / "slurm").glob("*/0.json"))
        return json.loads(paths[-1].read_text()) if paths else {}

    def log(self, name):
        return sorted((self.folder / name / "slurm").glob("*/0.log"))[-1]

    def until(self, what, condition, seconds=240):
        slurm_node.until(seconds, what, condition)

    def until_record(self, name, starts=None, **wanted):
        def there():
            record = self.record(name)
            return wanted.items() <= record.items() and record["starts"] == (starts or record["starts"])
        self.until(f"{name}: {wanted}, the {starts}. start", there)

    def until_episode(self, name, number=3):
        """Wait until its phase 4 is under way."""
        metrics = self.folder / name / "cb" / "paper-col-binary-uniform-seed1" / "metrics.jsonl"
        self.until(f"{name}: episode {number}",
                   lambda: metrics.exists() and f'"episode": {number},' in metrics.read_text())

    def run_of(self, name):
        """The process id of its main_superglue.py."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:  # it has just ended
                continue
            if any(word.endswith(b"main_superglue.py") for word in words) and any(
                    word.startswith(f"{self.folder / name}/".encode()) for word in words):
                return int(path.parent.name)
        return None

    def sleep_until_told(self, name, at_once=False):
        """Stop the run of a sweep in its third episode, or as soon as it is there, until it is to save: the
        machine is free for others meanwhile, and the run gets no further before. Returns the thread that
        wakes it."""
        if at_once:
            self.until(f"{name}: its run", lambda: self.run_of(name))
        else:
            self.until_episode(name)
        process = self.run_of(name)
        os.kill(process, signal.SIGSTOP)
        thread = threading.Thread(target=wake_when_told, args=(process,))
        thread.start()
        return thread

    def in_queue(self, name):
        element = self.record(name).get("element", "?")
        return element in self.ask("squeue", "--noheader", "--array", "--format", "%i").split()

    def content(self, name):
        """All that must not depend on how often the runs were ended: {file: content}."""
        found = {}
        for path in sorted((self.folder / name / "cb").rglob("*")):
            where = str(path.relative_to(self.folder / name))
            if path.suffix == ".safetensors" or "predictions" in where and path.is_file():
                found[where] = path.read_bytes()
            elif path.name in ("metrics.jsonl", "trajectories.jsonl"):
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                found[where] = [{**line, "seconds": None} for line in lines]
        return found


def wake_when_told(process):
    """Let a stopped process go on as soon as SIGTERM waits for it."""
    def told():
        masks = re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)", Path(f"/proc/{process}/status").read_text(), re.M)
        return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)

    slurm_node.until(180, "the sleeping run is told", told)
    os.kill(process, signal.SIGCONT)


@pytest.mark.slurm
@pytest.mark.parametrize("kind", [
    # a signal reaches every process of a job; jobs are put back only if they ask for it
    {"proctrack": "linuxproc", "requeue": 0, "notice": True, "port": 17017},
    # a signal reaches the first process alone; a job that makes way is sent SIGTERM, no notice
    {"proctrack": "cgroup", "requeue": 1, "notice": False, "port": 17117},
], ids=lambda kind: kind["proctrack"])
def test_on_a_real_slurm(kind, encoders, data_dir, tmp_path):
    if slurm_node.missing():
        assert not REQUIRED, f"MPDISTIL_TEST_SLURM=required, but missing: {slurm_node.missing()}"
        pytest.skip(f"NOT TESTED on a real SLURM: missing: {slurm_node.missing()}")
    if kind["proctrack"] == "cgroup" and not Path("/sys/fs/cgroup").is_dir():
        assert not REQUIRED, "MPDISTIL_TEST_SLURM=required, but there are no cgroups"
        pytest.skip("NOT TESTED on a real SLURM with cgroups: there are none")
    node = tmp_path / "node"
    try:
        environment = slurm_node.start(node, **kind)
        check(Cluster(environment, tmp_path / "runs and more", encoders["bert"], data_dir))
    finally:
        slurm_node.stop(node)


def check(cluster):
    # two at once: one submits, the other one sees it or is refused
    both = [cluster.start("limit", "--time=2 --gres=gpu:1 --signal=B:USR1@10") for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert sorted("submitted" in text for text in said) == [False, True], said
    code, text = cluster.line("limit", "--time=60", rows=("kd",))
    assert code == 2 and "is in the queue as 1_0, with other flags" in text
    waking = [cluster.sleep_until_told("limit")]

    # a job of higher priority wants the place
    assert cluster.line("preempted", "--partition=low --time=60")[0] == 0
    waking.append(cluster.sleep_until_told("preempted"))
    cluster.ask("sbatch", "--partition=high", "--ntasks=3", "--output=/dev/null", "--wrap=sleep 1")
    cluster.until_record("preempted", 2)

    # data that are broken: the cell fails, and its log is named
    broken = cluster.folder / "broken data"
    (broken / "CB").mkdir(parents=True)
    for name in ("train", "val"):
        (broken / "CB" / f"{name}.jsonl").write_text('{"premise": 1}\n')
    assert cluster.line("broken", data_dir=broken)[0] == 0
    cluster.until_record("broken", state="failed")
    cluster.until("the broken cell has left", lambda: not cluster.in_queue("broken"))
    log = cluster.log("broken")
    assert "train.jsonl:1" in log.read_text()
    code, text = cluster.line("broken", data_dir=broken)
    assert code == 0 and f"CB seed 1: failed ({log}: code 1)" in text and "submitted: 1 of 1" in text

    # scancel: saved, and not put back
    assert cluster.line("cancelled")[0] == 0
    cluster.until_episode("cancelled")
    element = cluster.record("cancelled")["element"]
    cluster.ask("scancel", element)
    cluster.until_record("cancelled", state="stopped", code=128 + signal.SIGTERM)
    cluster.until("the cancelled cell has left", lambda: not cluster.in_queue("cancelled"))
    assert list((cluster.folder / "cancelled" / "cb" / "paper-col-binary-uniform-seed1" / "state").iterdir())

    # told twice before a step: not put back a second time
    assert cluster.line("stuck")[0] == 0
    for starts, state in ((1, "put back"), (2, "failed")):
        cluster.until_record("stuck", starts, state="running")
        thread = cluster.sleep_until_told("stuck", at_once=True)  # it must not come to a step before
        cluster.ask("scancel", "--signal=USR1", "--batch", cluster.record("stuck")["element"])
        thread.join()
        cluster.until_record("stuck", starts, state=state)
    assert "ended before a step was made: the job is not put back" in cluster.log("stuck").read_text()

    # the cancelled one did not come back by itself; the same line goes on
    assert not cluster.in_queue("cancelled")
    code, text = cluster.line("cancelled")
    assert code == 0 and "CB seed 1: stopped (" in text and "submitted: 1 of 1" in text

    for thread in waking:
        thread.join()
    for name in ("limit", "preempted", "cancelled"):
        cluster.until_record(name, state="finished")
        assert cluster.line(name)[1].splitlines()[-1] == "nothing to submit"
        run_log = cluster.folder / name / "cb" / "logs" / "paper-col-binary-uniform-seed1.log"
        assert run_log.read_text().count("going on from") == 1
    assert cluster.record("limit")["starts"] == cluster.record("preempted")["starts"] == 2

    whole = subprocess.run(cluster.words("whole"), env=cluster.environment, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stdout
    expected = cluster.content("whole")
    assert len(expected) > 10
    for name in ("limit", "preempted", "cancelled"):
        found = cluster.content(name)
        assert [file for file in expected | found if expected.get(file) != found.get(file)] == []

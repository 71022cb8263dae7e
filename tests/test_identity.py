"""What a phase's identity covers: the code that its result depends on, the assembly included, and nothing
else."""
import json
import shutil

import pytest

from bookkeeping import identity
from conftest import ROOT

FUNCTIONS = {"teacher": "fine_tune", "student": "train_undistilled", "kd": "distill",
             "meta_teacher": "teach_meta_teacher", "kd_200": "continue_distillation",
             "mpdistil": "follow_curriculum"}
EVERY = set(FUNCTIONS)


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """Have the identity read a copy of the project with one change, and the original again for None."""
    def edit(file=None, old=None, new=None):
        folder = ROOT
        if file:
            folder = tmp_path / "project"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for path in ROOT.glob("*.py"):
                shutil.copy(path, folder)
            text = (ROOT / file).read_text()
            assert text.count(old) == 1, f"{file}: {text.count(old)} places with {old!r}"
            if "/" not in file:  # else the identity does not even read it
                (folder / file).write_text(text.replace(old, new))
        monkeypatch.setattr(identity, "HERE", folder)
        forget()

    def forget():
        identity.parse.cache_clear()
        identity.code_of.cache_clear()

    yield edit
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(
    "file, old, new, phases",
    [
        # what a phase's result depends on
        ("main_superglue.py", "copy.deepcopy(student.model)", "lab.new_student()", {"kd_200"}),
        (
            "main_superglue.py",
            'checkpoints.student, inputs.tasks, args.seed, "student"',
            'checkpoints.student, inputs.tasks, args.seed, "teacher"',
            {"student", "kd"},
        ),
        (
            "main_superglue.py",
            "alpha=0.0, beta=0.0, temperature=1.0",
            "alpha=0.1, beta=0.0, temperature=1.0",
            {"student"},
        ),
        ("main_superglue.py", "policy_learning_rate=args.", "policy_learning_rate=2 * args.", {"mpdistil"}),
        ("curriculum.py", "DISCOUNT = 0.99", "DISCOUNT = 0.5", {"mpdistil"}),
        ("curriculum.py", "ce - p_student.mean() +", "ce +", {"mpdistil"}),
        (
            "meta_policy.py",
            "0.5 * rules.loss(outputs_student, labels)",
            "0.6 * rules.loss(outputs_student, labels)",
            {"meta_teacher"},
        ),
        (
            "meta_policy.py",
            "alpha * soft + (1 - alpha) * ce",
            "soft + (1 - alpha) * ce",
            {"student", "kd", "kd_200"},
        ),
        ("meta_policy.py", "optimizer.step()", "optimizer.step(None)", EVERY),
        ("tasks.py", "temperature ** 2 * F.mse_loss", "temperature * F.mse_loss", EVERY),
        ("metrics.py", "if not value > self.score:", "if not value >= self.score:", EVERY),
        ("models.py", "std=0.02", "std=0.03", EVERY),
        ("data_utils.py", "order[start:start + batch_size]", "order[start:start + batch_size + 0]", EVERY),
        # what no phase's result depends on
        (
            "metrics.py",
            "round(value, 6) for value in scores.tolist()",
            "round(value, 7) for value in scores.tolist()",
            set(),
        ),
        ("tasks.py", "rows_of(2490, 277, 3000)", "rows_of(2490, 277, 3001)", set()),
        ("bookkeeping/files.py", "waiting for another run", "waiting for some other run", set()),
        ("bookkeeping/states.py", "SHARE = 0.01", "SHARE = 0.02", set()),
        ("bookkeeping/phases.py", "already computed", "computed already", set()),
        ("arguments.py", '"passes over quiz"', '"epochs"', set()),
        ("curriculum.py", '"""Of a distribution, in nats.', '"""Of some distribution, in nats.', set()),
        ("main_superglue.py", "holds this run, finished; nothing to do", "is finished", set()),
    ],
)
def test_an_edit_reaches_the_phases_that_hang_on_it(file, old, new, phases, edited):
    """And no others. A phase's identity covers those of the phases that it reads besides: here it is the code
    alone."""
    before = {name: identity.code_of(function, ("Alternation",)) for name, function in FUNCTIONS.items()}
    assert None not in before.values()
    edited(file, old, new)
    after = {name: identity.code_of(function, ("Alternation",)) for name, function in FUNCTIONS.items()}
    assert {name for name in FUNCTIONS if after[name] != before[name]} == phases


def test_what_alternation_calls_is_covered_where_phases_take_turns():
    assert identity.code_of("distill") != identity.code_of("distill", ("Alternation",))
    assert identity.code_of("no_such_function") is None


def test_a_finished_run_that_other_code_made(command, edited, capsys):
    """It says so, and --fresh computes it again; an edit that changes no result does not count."""
    flags = dict(folder="runs/run", tasks=["CB"])
    assert command(**flags)[0] == 0
    edited("tasks.py", "rows_of(2490, 277, 3000)", "rows_of(2490, 277, 3001)")
    assert command(**flags)[0] == 0 and "nothing to do" in capsys.readouterr().out
    edited("curriculum.py", "DISCOUNT = 0.99", "DISCOUNT = 0.5")
    assert command(**flags)[0] == 2
    said = capsys.readouterr().err
    assert (said.count("\n") == 1 and "made by other code (changed since: mpdistil)" in said
            and "--fresh" in said)
    code, folder = command(**flags, fresh=True)
    assert code == 0 and json.loads((folder / "result.json").read_text())["reused"] == []


def test_an_unfinished_run_computes_anew_what_other_code_made(command, edited, capsys):
    flags = dict(folder="runs/run", tasks=["CB"])
    assert command(**flags, stop_after="kd")[0] == 0
    edited("meta_policy.py", "alpha * soft + (1 - alpha) * ce", "soft + (1 - alpha) * ce")
    code, folder = command(**flags)
    assert code == 0 and json.loads((folder / "result.json").read_text())["reused"] == ["teacher"]

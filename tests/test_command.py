"""The whole command on tiny encoders: every task, loss and reward; phases reused; the same bytes again."""
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from transformers import AutoModel

import main_superglue
import meta_policy
from bookkeeping.states import Saver
from conftest import ROOT, TASK_NAMES, make_encoder, read_lines
from data_utils import read_task
from metrics import read_predictions, score
from models import load_encoder
from tasks import TASKS


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def weights(folder):
    """Relative name -> bytes of every weight file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))
    }


def without_times(path):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read_lines(path)]


@pytest.mark.parametrize("protocol", ("paper", "released"))
def test_kd_200_has_as_many_steps_and_looks_as_phase_4(protocol, command, monkeypatch):
    """And is a phase that runs share, whose presence changes no other row."""
    flags = dict(protocol=protocol, num_episodes=3, train_dataloader_size=8, val_dataloader_size=2)
    updates, sizes = Counter(), Counter()
    apply_gradients, consider = meta_policy.apply_gradients, Saver.consider

    def updating(optimizer, settings):
        updates[type(settings).__name__, settings.epochs] += 1
        apply_gradients(optimizer, settings)

    def watching(self, state, at_end=False):
        if "kd_200" in state and not at_end:
            state = state["kd_200"]
            sizes[len(state["epoch"].order[len(state["meter"].steps) - 1])] += 1
        consider(self, state, at_end)

    monkeypatch.setattr(meta_policy, "apply_gradients", updating)
    monkeypatch.setattr(Saver, "consider", watching)
    code, plain = command(folder="plain/run", **flags)
    assert code == 0 and "kd_200" not in result_of(plain)["rows"]
    code, with_control = command(folder="control/run", kd_200=True, **flags)
    assert code == 0
    result, metrics = result_of(with_control), without_times(with_control / "metrics.jsonl")
    assert list(result["rows"]) == ["teacher", "kd", "meta_teacher", "kd_200", "mpdistil"]
    assert [line["epoch"] for line in metrics if line["phase"] == "kd_200"] == [1, 2, 3]
    episodes = read_lines(with_control / "trajectories.jsonl")
    assert sizes == {2: sum(len(e["actions"]) for e in episodes)}
    assert updates["Distillation",
                   3] == (sum(len(e["actions"]) for e in episodes) if protocol == "paper" else 3)
    chosen = [
        line["scores"]["dev"]["accuracy" if protocol == "paper" else "f1"]
        for line in metrics
        if line["phase"] == "kd_200"
    ]
    assert result["rows"]["kd_200"]["dev"]["epoch"] == 1 + chosen.index(max(chosen))
    assert [line for line in metrics if line["phase"] != "kd_200"] == without_times(plain / "metrics.jsonl")
    assert {name: data for name, data in weights(with_control).items() if name.startswith("models")} == {
        name: data for name, data in weights(plain).items() if name.startswith("models")}
    code, shared = command(folder="control/again", kd_200=True, reward_function="real", **flags)
    assert code == 0 and "kd_200" in result_of(shared)["reused"]


@pytest.mark.parametrize("reward", ("binary", "real"))
@pytest.mark.parametrize("loss", ("col", "com"))
@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_task_loss_and_reward(task, loss, reward, command, data_dir):
    code, folder = command(task.lower(), use_comp_loss=loss == "com", reward_function=reward)
    assert code == 0
    result = result_of(folder)
    assert (result["task"], result["protocol"], result["loss"], result["reward"], result["curriculum"],
            result["seed"]) == (task, "paper", loss, reward, "policy", 42)
    assert list(result["rows"]) == ["teacher", "kd", "meta_teacher", "mpdistil"]
    assert (set(result["seconds"]) == {"teacher", "kd", "meta_teacher", "mpdistil"}
            and result["peak_memory_bytes"] > 0)
    labels = {example.idx: example.label for example in read_task(TASKS[task], data_dir, ("dev",))["dev"]}
    assert result["dev_labels"] == [
        list(labels.values()).count(number) for number in range(len(TASKS[task].labels))
    ]
    for row, figures in result["rows"].items():                    # predictions read back give the same score
        answers = read_predictions(folder / "predictions" / row / "dev" / f"{task}.jsonl", TASKS[task])
        again = score(TASKS[task], [answers[idx] for idx in labels], list(labels.values()))
        assert again.items() <= figures["dev"].items() and ("f1" in again) == (task == "CB")
        assert figures["dev"]["right"] == "".join(
            str(int(answers[idx] == label)) for idx, label in labels.items())
        assert (len(read_predictions(folder / "predictions" / row / "test" / f"{task}.jsonl",
                                     TASKS[task])) == 8)
    metrics, trajectories = read_lines(folder / "metrics.jsonl"), read_lines(folder / "trajectories.jsonl")
    assert [line["phase"] for line in metrics] == ["teacher", "kd", "meta_teacher", "mpdistil", "mpdistil"]
    for line, episode in zip(metrics[3:], trajectories):
        steps = len(episode["actions"])
        assert steps == -(-result["data"][f"{task}/quiz"]["examples"] // 4)
        assert {len(episode[key]) for key in ("rewards", "advantages", "probabilities")} == {steps}
        assert sum(episode["rewards"]) == pytest.approx(line["reward"], abs=1e-6)
        assert sum(episode["advantages"]) == pytest.approx(0, abs=1e-6)
        assert all(sum(p) == pytest.approx(1, abs=1e-5)
                   for p in episode["probabilities"]) and set(episode["actions"]) <= set(TASK_NAMES)
    assert AutoModel.from_pretrained(folder / "models" / "student").config.num_hidden_layers == 3
    assert ((folder / "environment.json").is_file() and (folder / "args.json").is_file()
            and (folder / "log.txt").stat().st_size > 0)


@pytest.mark.parametrize("kind", ("mpnet", "deberta", "distilbert"))
def test_other_encoders(kind, command, encoders):
    code, folder = command("COPA", teacher_model=encoders[kind], tasks=["COPA", "WSC"])
    assert code == 0 and list(result_of(folder)["rows"]) == ["teacher", "kd", "meta_teacher", "mpdistil"]
    assert (folder / "models" / "student" / "model.safetensors").is_file()


def test_another_student_encoder(command, tmp_path):
    teacher, student = make_encoder("bert", tmp_path / "t", 1), make_encoder("bert", tmp_path / "s", 2,
                                                                             num_hidden_layers=3)
    code, folder = command(teacher_model=teacher, student_model=student, nlayers=2, tasks=["CB"])
    assert code == 0 and result_of(folder)["student_model"] == str(student)


def test_same_seed_gives_the_same_bytes_and_reuse_the_same_as_computing(command):
    """Three runs of a variant: computing, computing again by itself (--fresh), and after another variant left
    its phases."""
    flags = dict(use_comp_loss=True, reward_function="real", undistilled=True)
    command(folder="shared/other", reward_function="binary")
    code, reusing = command(folder="shared/reusing", **flags)
    # its meta-teacher has another loss
    assert code == 0 and result_of(reusing)["reused"] == ["teacher", "kd"]
    code, again = command(folder="shared/again", **flags)
    assert code == 0 and result_of(again)["reused"] == ["teacher", "student", "kd", "meta_teacher"]
    code, fresh = command(folder="fresh", fresh=True, **flags)
    assert code == 0 and result_of(fresh)["reused"] == []
    rows = [result_of(folder)["rows"] for folder in (reusing, again, fresh)]
    assert rows[0] == rows[1] == rows[2] and list(
        rows[0]) == ["teacher", "student", "kd", "meta_teacher", "mpdistil"]
    assert weights(reusing) == weights(again)
    shared = weights(reusing.parent / "phases")
    assert weights(fresh / "phases").items() <= shared.items() and len(shared) > len(weights(
        fresh / "phases"))
    assert {f"phases/{name}" for name in weights(fresh / "phases")} | set(weights(reusing)) == set(
        weights(fresh))
    assert {name: data
            for name, data in weights(fresh).items()
            if name.startswith("models")} == weights(reusing)
    for name in ("metrics.jsonl", "trajectories.jsonl"):
        assert without_times(reusing / name) == without_times(again / name) == without_times(fresh / name)


def test_identity_holds_what_the_result_depends_on_and_nothing_else(command):
    def identities(folder, **flags):
        code, path = command(folder=f"runs/{folder}", stop_after="meta_teacher", **flags)
        assert code == 0
        return {name: phase["identity"] for name, phase in result_of(path)["phases"].items()}

    base = identities("base")
    assert identities("a", reward_function="real", num_episodes=7, curriculum="uniform", tasks=["CB"]) == base
    changed = identities("b", epochs=2)
    assert (changed["teacher"] == base["teacher"] and changed["kd"] != base["kd"]
            and changed["meta_teacher"] != base["meta_teacher"])
    assert all(a != b for a, b in zip(identities("c", seed=1).values(), base.values()))
    assert all(a != b for a, b in zip(identities("d", split_seed=1).values(), base.values()))
    changed = identities("e", meta_learning_rate=0.5)
    assert changed["kd"] == base["kd"] and changed["meta_teacher"] != base["meta_teacher"]


@pytest.mark.parametrize("curriculum, row", [("uniform", "mpdistil"), ("main_task", "no_curriculum")])
def test_other_curricula(curriculum, row, command):
    code, folder = command(curriculum=curriculum, num_episodes=3)
    assert code == 0 and list(result_of(folder)["rows"])[-1] == row
    for episode in read_lines(folder / "trajectories.jsonl"):
        if curriculum == "main_task":
            assert set(episode["actions"]) == {"CB"}
        expected = [1 / 6] * 6 if curriculum == "uniform" else [0, 1, 0, 0, 0, 0]
        assert all(p == pytest.approx(expected) for p in episode["probabilities"])
    entropies = [line["entropy"] for line in read_lines(folder / "metrics.jsonl") if "episode" in line]
    assert entropies == pytest.approx([math.log(6) if curriculum == "uniform" else 0] * 3, abs=1e-6)


def test_selection_on_quiz_and_unlabelled_dev(command, data_dir, tmp_path):
    code, folder = command(select_on="quiz", folder="quiz")
    assert code == 0 and set(read_lines(folder / "metrics.jsonl")[0]["scores"]) == {"dev", "quiz"}
    for name in TASK_NAMES:
        (tmp_path / "data" / name).mkdir(parents=True)
        for path in (data_dir / name).iterdir():
            (tmp_path / "data" / name / path.name).write_text(path.read_text())
    val = tmp_path / "data" / "CB" / "val.jsonl"
    val.write_text("".join(json.dumps({**row, "label": -1}) + "\n" for row in read_lines(val)))
    code, folder = command(select_on="quiz", folder="unlabelled", data_dir=tmp_path / "data")
    assert code == 0 and {row["dev"] for row in result_of(folder)["rows"].values()} == {None}
    assert command(folder="refused", data_dir=tmp_path / "data")[0] == 2


def test_predictions_of_a_reused_phase_are_of_the_tokens_of_this_run(command, data_dir, tmp_path):
    """A longer --max_seq_length that only the test file feels: the teacher is reused, its test predictions
    are not."""
    data = shutil.copytree(data_dir / "CB", tmp_path / "data" / "CB").parent
    rows = read_lines(data / "CB" / "test.jsonl")
    rows[0]["premise"] = "the " * 200
    (data / "CB" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for length in (64, 80):
        code, folder = command(folder=f"r/{length}", data_dir=data, max_seq_length=length,
                               stop_after="teacher")
        assert code == 0
    assert result_of(folder)["reused"] == ["teacher"]
    kept = sorted(
        path.name.split("-")[1] for path in (folder.parent / "phases").glob("teacher-*/predictions/*.json"))
    assert kept == ["dev", "test", "test"]


def test_the_teachers_encoder_runs_once_per_example(command, monkeypatch):
    """After phase 1, over all phases and all runs that share the teacher; again only for [CLS] states that
    nobody kept."""
    calls = []

    def load_counted(*arguments):
        encoder = load_encoder(*arguments)
        encoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output[0])))
        return encoder

    monkeypatch.setattr(main_superglue, "load_encoder", load_counted)
    code, folder = command("COPA", folder="runs/a")
    sizes = {
        name.removeprefix("COPA/"): split["examples"]
        for name, split in result_of(folder)["data"].items()
        if "COPA/" in name
    }
    assert (code == 0 and sum(calls) == 2 * sum(sizes.values())
            and set(sizes) == {"train", "quiz", "dev", "test"})
    calls.clear()
    # fewer layers are a part of more
    assert command("COPA", folder="runs/b", use_comp_loss=True, nlayers=2)[0] == 0 and not calls
    assert command("COPA", folder="runs/c", nlayers=4)[0] == 0 and sum(calls) == 2 * sizes["train"]


def test_stored_outputs_that_were_altered_are_refused(command, capsys):
    code, folder = command(folder="runs/a", stop_after="kd")
    table = next((folder.parent / "phases").glob("teacher-*/outputs/CB-quiz-*.npy"))
    data = table.read_bytes()
    table.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    capsys.readouterr()
    assert command(folder="runs/b", reward_function="real")[0] == 2
    message = capsys.readouterr().err
    assert str(table) in message and "sha256" in message and "remove" in message and message.count("\n") == 1


def test_stop_after_and_going_on(command):
    for stop, rows in (("teacher", 1), ("kd", 2), ("meta_teacher", 3), (None, 4)):
        code, folder = command(stop_after=stop)
        result = result_of(folder)
        assert (code == 0 and len(result["rows"]) == rows and result["stopped_after"] == stop
                and len(result["reused"]) == rows - 1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert command()[0] == 0 and command(stop_after="kd")[0] == 0             # finished: nothing is touched
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_fresh_computes_again_what_is_there(command):
    flags = dict(fresh=True, tasks=["CB"])
    assert command(stop_after="teacher", **flags)[0] == 0
    before = weights(command(**flags)[1])
    code, folder = command(**flags)                                            # a finished run too
    assert code == 0 and result_of(folder)["reused"] == [] and weights(folder) == before


def test_names_in_any_case_and_order_are_the_same_run(command, capsys):
    assert command("CB", tasks=["WSC", "cb"], stop_after="teacher")[0] == 0
    capsys.readouterr()
    assert (command("cb", tasks=["CB", "WSC"], stop_after="teacher")[0] == 0
            and "nothing to do" in capsys.readouterr().out)
    assert json.loads((command("cb", tasks=["CB", "WSC"], stop_after="teacher")[1] /
                       "args.json").read_text())["tasks"] == ["CB", "WSC"]


def test_command_line_from_the_shell(encoders, data_dir, tmp_path):
    """A real process, offline, in another folder: default output folder, table and exit code."""
    argv = [
        sys.executable,
        str(ROOT / "main_superglue.py"), "--task", "wsc", "--data_dir",
        str(data_dir), "--teacher_model",
        str(encoders["bert"]), "--nlayers", "2", "--teacher_epochs", "1", "--epochs", "1", "--meta_epochs",
        "1", "--num_episodes", "1", "--val_dataloader_size", "4", "--use_comp_loss", "--max_seq_length", "64"
    ]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "wsc" / "paper-com-binary-policy-seed42"
    assert result_of(folder)["loss"] == "com" and (tmp_path / "runs" / "wsc" / "phases").is_dir()
    assert ("curriculum tasks found" in done.stdout and "spans located:" in done.stdout
            and "truncated" in done.stdout)
    row = result_of(folder)["rows"]["kd"]["dev"]
    assert (f"{row['correct']}/{row['total']}" in done.stdout
            and str(folder.relative_to(tmp_path)) in done.stdout)


def test_a_loss_that_is_not_finite_stops_with_phase_and_step(command, capsys):
    code, folder = command(teacher_learning_rate=1e38, teacher_epochs=3)
    assert code == 1 and not (folder / "result.json").exists()
    assert "phase teacher, epoch 1, step" in capsys.readouterr().err


def test_help_explains_every_flag():
    from arguments import build_parser
    for action in build_parser()._actions:
        assert action.help, action.dest

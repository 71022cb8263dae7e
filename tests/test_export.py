"""models/student as plain transformers opens it, in a process that has nothing of the project; predict.py."""

import json
import subprocess
import sys

import pytest
import torch
import transformers

import export_onnx
import predict
from bookkeeping import export
from conftest import ROOT, as_words, read_lines
from data_utils import read_task
from families import FAMILIES, make_family
from tasks import TASKS, find_task
from test_families import REFUSED
from test_own_tasks import write_news


def answers_of(job_of, *folders):
    """What tests/plain.py answers, in a process of its own without the project on its path."""
    jobs = "".join(json.dumps(job_of(folder)) + "\n" for folder in folders)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "plain.py")],
        input=jobs,
        capture_output=True,
        text=True,
        cwd=folders[0],
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def job_of(folder):
    """The dev examples of a run, as the card of its student says that inputs are built."""
    args = json.loads((folder / "args.json").read_text())
    task = find_task(args["task"], data_dir=args["data_dir"])
    dev = read_task(task, args["data_dir"], ("train", "dev"))["dev"]
    return {
        "folder": str(folder / "models" / "student"),
        "choices": task.rules.choices,
        "inputs": [example.pairs for example in dev],
    }


def check_answers(folder, found):
    """They are those of the run's last row, and the labels are named."""
    result = json.loads((folder / "result.json").read_text())
    task = find_task(result["task"], data_dir=json.loads((folder / "args.json").read_text())["data_dir"])
    row = list(result["rows"])[-1]
    lines = read_lines(folder / "predictions" / row / "dev" / f"{task.name}.jsonl")
    if task.kind == "regression":
        assert found["answers"] == pytest.approx([line["label"] for line in lines], abs=1e-4)
    else:
        assert [task.answers[answer] for answer in found["answers"]] == [line["label"] for line in lines]
    if task.kind == "classification":
        names = task.label_names or [str(answer) for answer in task.answers]
        assert found["labels"] == {str(number): name for number, name in enumerate(names)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, encoders, data_dir, glue):
    """Finished runs: a classification, choices, a regression, classes with other names, one's own task."""
    import main_superglue
    from arguments import parse_arguments

    root = tmp_path_factory.mktemp("exports")
    write_news(root / "own")
    found = {}
    for task, data in (
        ("CB", data_dir),
        ("COPA", data_dir),
        ("STS-B", glue),
        ("SST-2", glue),
        ("News", root / "own"),
    ):
        flags = dict(task=task, data_dir=data, tasks=[task], teacher_model=encoders["bert"], nlayers=2,
                     teacher_epochs=2, epochs=2, meta_epochs=1, num_episodes=1, val_dataloader_size=2,
                     device="cpu", max_seq_length=64, learning_rate=3e-3, output_dir=root / "runs" / task)
        assert main_superglue.main(parse_arguments(as_words(flags))) == 0
        found[task] = root / "runs" / task
    return found


def test_a_process_that_has_transformers_alone(runs):
    for folder, found in zip(runs.values(), answers_of(job_of, *runs.values()), strict=True):
        check_answers(folder, found)
        exported = json.loads((folder / "result.json").read_text())["exports"]["student"]
        kind = "MultipleChoice" if folder.name == "COPA" else "SequenceClassification"
        assert (
            exported["class"] == f"BertFor{kind}" and exported["verified"] and exported["difference"] < 1e-5
        )


def test_pipeline(runs):
    """text-classification, with the pairs as a dictionary."""
    folder = runs["CB"]
    pipe = transformers.pipeline("text-classification", model=str(folder / "models" / "student"))
    pairs = [example.pairs[0] for example in job_examples(folder)]
    found = [pipe({"text": first, "text_pair": second}, truncation=True) for first, second in pairs]
    found = [answer[0] if isinstance(answer, list) else answer for answer in found]
    lines = read_lines(folder / "predictions" / "mpdistil" / "dev" / "CB.jsonl")
    assert [answer["label"] for answer in found] == [line["label"] for line in lines]


def job_examples(folder):
    args = json.loads((folder / "args.json").read_text())
    return read_task(TASKS[args["task"]], args["data_dir"], ("train", "dev"))["dev"]


def test_the_card_and_the_configuration(runs):
    for task, folder in runs.items():
        student = folder / "models" / "student"
        card, config = (student / "README.md").read_text(), json.loads((student / "config.json").read_text())
        assert f"# {task}: mpdistil of an MPDistil run" in card and "protocol paper" in card
        assert "`python " in card and "--seed" not in card.split("Inputs")[1]
        expected = {"STS-B": "regression", "COPA": None}.get(task, "single_label_classification")
        assert config.get("problem_type") == expected
        assert json.loads((student / "tokenizer_config.json").read_text())["model_max_length"] == 64
    assert "What was the cause?" in (runs["COPA"] / "models" / "student" / "README.md").read_text()
    assert "negative, positive" in (runs["SST-2"] / "models" / "student" / "README.md").read_text()


def test_other_rows_are_written_where_they_are_asked_for(command, capsys):
    """Teacher and distilled student, with their own scores on their cards; a row that is not there is
    refused."""
    code, folder = command("CB", tasks=["CB"], export=["teacher", "kd"], stop_after="kd")
    result = json.loads((folder / "result.json").read_text())
    assert code == 0 and list(result["exports"]) == ["teacher", "kd"]
    for row, layers in (("teacher", 4), ("kd", 3)):
        assert result["exports"][row]["verified"]
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "models" / row)
        assert model.config.num_hidden_layers == layers
        dev = result["rows"][row]["dev"]
        card = (folder / "models" / row / "README.md").read_text()
        assert f"episode: {dev['correct']}/{dev['total']}." in card
    capsys.readouterr()
    assert command("CB", folder="other", export=["kd_200"])[0] == 2
    assert "--export: kd_200 found, which this run does not train" in capsys.readouterr().err


def test_an_export_that_gives_other_logits_ends_the_run_with_1(command, monkeypatch, capsys):
    """All figures are there, and the same command says it again."""
    make = export.plain_classifier

    def spoilt(model, task, head_dropout):
        whole = make(model, task, head_dropout)
        with torch.no_grad():
            whole.classifier.bias += 1
        return whole

    monkeypatch.setattr(export, "plain_classifier", spoilt)
    code, folder = command("CB", tasks=["CB"])
    said = capsys.readouterr().out
    assert code == 1 and "models/student: BertForSequenceClassification gives other logits" in said
    assert json.loads((folder / "result.json").read_text())["exports"]["student"]["verified"] is False
    assert command("CB", tasks=["CB"])[0] == 1


def test_a_family_without_a_class_for_choices(command, tmp_path):
    """DeBERTa has none: AutoModel loads the encoder, predict.py gives the run's predictions."""
    folder = make_family("DeBERTa", tmp_path / "encoder")
    code, run = command("COPA", tasks=["COPA"], teacher_model=folder, max_seq_length=48)
    exported = json.loads((run / "result.json").read_text())["exports"]["student"]
    assert code == 0 and exported["class"] is None and "no ModelForMultipleChoice" in exported["reason"]
    assert "Plain transformers has no class for it" in (run / "models" / "student" / "README.md").read_text()
    assert transformers.AutoModel.from_pretrained(run / "models" / "student").config.num_hidden_layers == 3


# --- predict.py ---------------------------------------------------------------------------------------------

DEV = {
    "CB": "CB/val.jsonl",
    "COPA": "COPA/val.jsonl",
    "STS-B": "STS-B/dev.tsv",
    "SST-2": "SST-2/dev.tsv",
    "News": "News/dev.csv",
}


@pytest.mark.parametrize("task", DEV)
def test_predictions_and_scores_are_the_runs(task, runs, tmp_path, capsys):
    folder = runs[task]
    data = json.loads((folder / "args.json").read_text())["data_dir"]
    assert predict.main([str(folder), f"{data}/{DEV[task]}", "--output", str(tmp_path / "out.jsonl")]) == 0
    found, result = read_lines(tmp_path / "out.jsonl"), json.loads((folder / "result.json").read_text())
    lines = read_lines(folder / "predictions" / "mpdistil" / "dev" / f"{task}.jsonl")
    dev = result["rows"]["mpdistil"]["dev"]
    said = capsys.readouterr().err
    if task == "STS-B":
        assert [line["label"] for line in found] == pytest.approx([line["label"] for line in lines], abs=1e-5)
        assert f"Pearson {100 * dev['pearson']:.1f}" in said
        return
    assert [(line["idx"], line["label"]) for line in found] == [
        (line["idx"], line["label"]) for line in lines
    ]
    assert f"{task}: {dev['correct']}/{dev['total']}" in said
    for line in found:
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        names = find_task(task, data_dir=data).label_names
        name = names[line["label"]] if names else str(line["label"])
        assert line["probabilities"][name] > max(line["probabilities"].values()) - 2e-6


def test_inputs_without_idx_and_label(runs, tmp_path, capsys):
    (tmp_path / "a.csv").write_text('sentence\n"a, b"\nc\n')
    assert predict.main([str(runs["SST-2"] / "models" / "student"), str(tmp_path / "a.csv")]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["idx"] for line in said.out.splitlines()] == [0, 1] and said.err == ""


def test_what_cannot_be_predicted_is_refused(runs, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"premise": "p"}\n')
    for words, expected in (
        ([tmp_path, tmp_path / "a.jsonl"], "neither inputs.json nor models/student/inputs.json found"),
        ([runs["CB"], tmp_path / "a.jsonl"], "a.jsonl:1: field 'hypothesis' missing"),
        ([runs["CB"], tmp_path / "none.jsonl"], "none.jsonl: no such file"),
        ([runs["CB"], tmp_path / "a.xlsx"], "ends in .xlsx found"),
    ):
        assert predict.main([str(word) for word in words]) == 2
        said = capsys.readouterr().err
        assert expected in said and said.count("\n") == 1


# --- every family -------------------------------------------------------------------------------------------

RUNNING = [family for family in FAMILIES if family not in REFUSED]


@pytest.mark.slow
@pytest.mark.parametrize("family", RUNNING)
def test_each_family_in_a_process_of_its_own(family, command, tmp_path):
    folder = make_family(family, tmp_path / "encoder")
    padding = ["padding=max_length"] if "max_length" in family else None
    code, run = command("CB", tasks=["CB"], teacher_model=folder, max_seq_length=48, set=padding)
    exported = json.loads((run / "result.json").read_text())["exports"]["student"]
    assert code == 0 and exported["verified"], exported
    if not padding:  # of ConvBERT padding changes what it computes, and plain.py pads nothing
        check_answers(run, answers_of(job_of, run)[0])


# --- ONNX ---------------------------------------------------------------------------------------------------


def test_what_onnx_needs_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(export_onnx, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        export_onnx.main([str(tmp_path)])
    assert "onnx, onnxscript, onnxruntime not installed; pip install onnx==" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("task", ("CB", "COPA", "STS-B"))
def test_onnx_gives_the_same_logits(task, runs, capsys):
    for name in export_onnx.EXTRAS:
        pytest.importorskip(name)
    assert export_onnx.main([str(runs[task])]) == 0
    assert "model.onnx" in capsys.readouterr().out
    assert (runs[task] / "models" / "student" / "model.onnx").is_file()

"""GLUE: the official layouts with their oddities, every task through the command line, regression, MNLI's two
halves, the leaderboard's zip, Table 4."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import main_superglue
import make_submission
import make_tables
import score
from arguments import parse_arguments
from bookkeeping.errors import InputError
from bookkeeping.files import write_record
from conftest import as_words, read_lines
from data_utils import PARTS, curriculum_tasks, read_dataset, read_hub, read_task, split_train_quiz, strata_of
from metrics import floor_of
from metrics import score as score_of
from models import Heads
from tasks import KINDS, TASKS, find_task, tasks_of
from test_bad_input import said as note

GLUE = tasks_of("glue")
REGRESSION = KINDS["regression"]
VARIANTS = [("col", "binary"), ("com", "real"), ("col", "real"), ("com", "binary")]


# --- layouts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GLUE)
def test_official_layouts(name, glue):
    """Rows, labels, texts and idx of every split, whatever the columns."""
    task = TASKS[name]
    found = read_task(task, glue, PARTS)
    halves = {"dev_mismatched": 12, "test_mismatched": 6, "ax": 5} if name == "MNLI" else {}
    assert {part: len(examples) for part, examples in found.items()} == {
        "train": 48,
        "dev": 12,
        "test": 6,
        **halves,
    }
    for part, examples in found.items():
        rows = list(range(len(examples)))
        if name == "QQP" and part == "train":  # the fourth and the fifth row are broken
            rows = [*range(3), *range(5, 50)]
        assert [example.idx for example in examples] == rows
        labels = [example.label for example in examples]
        if part.startswith(("test", "ax")):
            assert set(labels) == {None}
        elif name == "STS-B":
            assert labels[:6] == [5.0, 0.25, 3.5, 2.0, 1.0, 4.2]
        else:
            assert labels == [n % len(task.labels) for n in range(len(labels))]
        ((first, second),) = examples[0].pairs
        assert first.endswith(" .") and (second is None) == (name in ("CoLA", "SST-2"))
        assert not any(how.startswith("unread") for example in examples for how in example.notes)
    if name == "QQP":
        assert found["train"][0].notes["broken"] == 2


def test_quotes_are_literal_and_the_byte_order_mark_is_none(glue):
    texts = [
        text
        for name in ("MRPC", "QQP")
        for example in read_task(TASKS[name], glue, ("train",))["train"]
        for text in example.pairs[0]
    ]
    assert any('this "film"' in text for text in texts) and not any("\ufeff" in text for text in texts)


def test_one_task_in_two_layouts(glue, tmp_path):
    """RTE of GLUE and of SuperGLUE: the same examples give the same split and the same checksums."""
    official = read_task(TASKS["RTE"], glue, ("train", "dev"))
    (tmp_path / "RTE").mkdir()
    for part, stem in (("train", "train"), ("dev", "val")):
        lines = [
            {
                "premise": example.pairs[0][0],
                "hypothesis": example.pairs[0][1],
                "idx": example.idx,
                "label": TASKS["RTE"].labels[example.label],
            }
            for example in official[part]
        ]
        (tmp_path / "RTE" / f"{stem}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = read_task(TASKS["RTE"], tmp_path, ("train", "dev"))
    for part in again:
        assert [(e.idx, e.pairs, e.label) for e in again[part]] == [
            (e.idx, e.pairs, e.label) for e in official[part]
        ]


@pytest.mark.parametrize(
    "name, file, change, expected",
    [
        (
            "QQP",
            "test.tsv",
            lambda text: text + "7\tone column less\n",
            "test.tsv:8: 2 columns found, expected 3",
        ),
        ("SST-2", "train.tsv", lambda text: text + "no label here\n", "train.tsv:50: no label, but 48"),
        ("SST-2", "train.tsv", lambda text: text.replace("sentence\tlabel\n", ""), "train.tsv:1: columns"),
        (
            "STS-B",
            "train.tsv",
            lambda text: text.replace("\t5.000\n", "\t5.001\n", 1),
            "train.tsv:2: label '5.001' found, expected a number from 0 to 5",
        ),
        ("STS-B", "dev.tsv", lambda text: text.replace("\t5.000\n", "\thigh\n", 1), "label 'high' found"),
        ("STS-B", "dev.tsv", lambda text: text.replace("\t5.000\n", "\tnan\n", 1), "label 'nan' found"),
        ("MNLI", "train.tsv", lambda text: text.replace("\tentailment\n", "\t-\n", 1), "label '-' found"),
        (
            "CoLA",
            "train.tsv",
            lambda text: text.replace("gj04\t0", "gj04\t2", 1),
            "label '2' found, expected one",
        ),
        ("MRPC", "train.tsv", lambda text: text.replace("#2 String", "String", 1), "missing: sentence2"),
        ("RTE", "train.tsv", lambda text: text.replace("index", "number", 1), "missing: idx"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_in_a_file_is_named(name, file, change, expected, glue, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    for path in (glue / name).iterdir():
        text = path.read_text(encoding="utf-8")
        (folder / path.name).write_text(change(text) if path.name == file else text, encoding="utf-8")
    with pytest.raises(InputError, match="^" + str(folder)) as refused:
        read_task(TASKS[name], tmp_path, PARTS)
    assert expected in str(refused.value) and "\n" not in str(refused.value)
    note("refused", str(refused.value))


def test_broken_lines_are_said_whatever_becomes_of_the_first_example(glue, command, capsys):
    code, folder = command("QQP", data_dir=glue, tasks=["QQP"], stop_after="teacher", max_train=8)
    assert (
        code == 0 and "QQP/train: 2 lines with another number of columns left out" in capsys.readouterr().out
    )
    assert json.loads((folder / "data.json").read_text())["QQP/train"]["broken"] == 2


def test_glue_tasks_as_lines_of_json(tmp_path):
    """Without idx where the task has none, and with the columns' official names."""
    for name, lines in (
        ("SST-2", [{"sentence": "fine", "label": 1}, {"sentence": "bad", "label": 0}]),
        ("STS-B", [{"idx": 0, "sentence1": "a", "sentence2": "b", "score": 2.5}]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = read_task(TASKS[name], tmp_path, ("train",))["train"]
        assert [(example.idx, example.label) for example in found] == (
            [(0, 1), (1, 0)] if name == "SST-2" else [(0, 2.5)]
        )


def test_mnli_needs_both_halves(glue, tmp_path):
    (tmp_path / "MNLI").mkdir()
    for name in ("train", "dev_matched"):
        os.link(glue / "MNLI" / f"{name}.tsv", tmp_path / "MNLI" / f"{name}.tsv")
    with pytest.raises(InputError, match="dev_mismatched.tsv: no such file"):
        read_task(TASKS["MNLI"], tmp_path, PARTS)


HUB = {  # columns and class names as nyu-mll/glue has them
    "MRPC": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"]),
    "QQP": (["question1", "question2"], ["not_duplicate", "duplicate"]),
    "SST-2": (["sentence"], ["negative", "positive"]),
    "CoLA": (["sentence"], ["unacceptable", "acceptable"]),
    "QNLI": (["question", "sentence"], ["entailment", "not_entailment"]),
    "RTE": (["sentence1", "sentence2"], ["entailment", "not_entailment"]),
    "WNLI": (["sentence1", "sentence2"], ["not_entailment", "entailment"]),
    "MNLI": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"]),
    "STS-B": (["sentence1", "sentence2"], None),
}


@pytest.mark.parametrize("name", GLUE)
def test_the_hub_gives_the_same_examples(name, glue, monkeypatch):
    """From tables of the form that nyu-mll/glue has: class names, MNLI's four splits, labels -1 in test."""
    import datasets

    import data_utils

    from_files, asked = read_task(TASKS[name], glue, PARTS), []
    columns, names = HUB[name]

    def load(repository, config):
        asked.append((repository, config))
        data = {}
        for part, examples in from_files.items():
            rows = [
                {
                    **dict(zip(columns, example.pairs[0])),
                    "idx": example.idx,
                    "label": -1 if example.label is None else example.label,
                }
                for example in examples
            ]
            label = datasets.Value("float32") if names is None else datasets.ClassLabel(names=names)
            features = {column: datasets.Value("string") for column in columns}
            features |= {"idx": datasets.Value("int32"), "label": label}
            half = "_matched" if name == "MNLI" and part in ("dev", "test") else ""
            data[part.replace("dev", "validation") + half] = datasets.Dataset.from_list(
                rows, features=datasets.Features(features)
            )
        return data

    monkeypatch.setattr(data_utils, "load_hub", load)
    found = read_hub(TASKS[name], PARTS, "as_is")
    assert found.keys() == from_files.keys() - {"ax"}
    for part in found:
        close = pytest.approx if name == "STS-B" else lambda values: values
        assert [(e.idx, e.pairs) for e in found[part]] == [(e.idx, e.pairs) for e in from_files[part]]
        labels = [example.label for example in from_files[part]]
        assert [example.label for example in found[part]] == (labels if None in labels else close(labels))
    assert asked == [
        ("aps/super_glue", "rte")
        if name == "RTE"
        else ("nyu-mll/glue", {"SST-2": "sst2", "STS-B": "stsb"}.get(name, name.lower()))
    ]


@pytest.mark.skipif(
    not (Path(os.environ.get("MPDISTIL_DATA_DIR", "")) / "STS-B").is_dir(),
    reason="set MPDISTIL_DATA_DIR to a folder with the official GLUE files",
)
def test_official_files_have_their_official_sizes():
    folder, seen = os.environ["MPDISTIL_DATA_DIR"], []
    for name in GLUE:
        if (Path(folder) / name / "train.tsv").is_file():
            found = {part: len(examples) for part, examples in read_task(TASKS[name], folder, PARTS).items()}
            assert found == {part: TASKS[name].official[part] for part in found}
            seen.append(name)
    assert len(seen) >= 6


# --- the curriculum and the splits --------------------------------------------------------------------------


def test_the_curriculum_is_of_the_main_tasks_benchmark(glue, data_dir, tmp_path):
    def names(main, folder, asked=None):
        return [task.name for task in curriculum_tasks(asked, TASKS[main], folder)]

    assert names("MRPC", glue) == GLUE
    assert names("CB", data_dir) == tasks_of("superglue")
    for source in (glue, data_dir):
        for folder in source.iterdir():
            if not (tmp_path / folder.name).exists():
                os.symlink(folder, tmp_path / folder.name)
    assert names("CB", tmp_path) == tasks_of("superglue") and names("STS-B", tmp_path) == GLUE
    assert names("RTE", tmp_path) == list(TASKS)  # which is in both
    assert names("CB", tmp_path, ["sts-b", "copa"]) == ["CB", "COPA", "STS-B"]
    assert names("RTE", "hub") == tasks_of("superglue") and names("WNLI", "hub") == GLUE


def test_regression_is_stratified_by_rounded_score():
    task, labels = TASKS["STS-B"], [n / 10 for n in range(51)] * 8
    examples = [type("E", (), {"label": label}) for label in labels]
    strata = strata_of(task, examples)
    assert [strata[n] for n in (0, 4, 5, 14, 15, 45, 50)] == [0, 0, 1, 1, 2, 5, 5]
    _, quiz = split_train_quiz("STS-B", range(len(labels)), strata, 42)
    share = np.bincount([strata[n] for n in quiz]) / (np.bincount(strata) / 10)
    assert len(quiz) == 41 and (abs(share - 1) < 0.25).all()
    percent = type("T", (), {"label_range": (0.0, 100.0)})
    assert [REGRESSION.labels.stratum(label, percent) for label in (0, 9, 10, 100)] == [0, 0, 1, 5]


def test_quiz_and_train_are_capped_and_it_is_said(command, glue, capsys):
    code, folder = command(
        "SST-2", data_dir=glue, tasks=["SST-2", "STS-B"], quiz_size=4, max_train=20, val_dataloader_size=2
    )
    said, data = capsys.readouterr().out, json.loads((folder / "data.json").read_text())
    assert code == 0
    assert data["SST-2/train"]["examples"] == 20 and data["SST-2/train"]["over_max_train"] == 23
    for name in ("SST-2/quiz", "STS-B/quiz"):
        assert data[name]["examples"] == 4 and data[name]["over_quiz_size"] == 1
    assert "SST-2/train: 23 examples left out (--max_train)" in said
    assert "SST-2/quiz: 1 examples left out (--quiz_size)" in said
    steps = {len(line["rewards"]) for line in read_lines(folder / "trajectories.jsonl")}
    assert steps == {2}
    for form in ("md", "csv", "tex"):
        make_tables.main([str(folder), "--table", "4", "--format", form, "--mixed"])
        table = capsys.readouterr().out
        expected = "SST-2/quiz 4 of 5 (--quiz_size)" if form != "csv" else ",4,20\n"
        assert expected in table, form
    assert "where the official files give" not in table


# --- all phases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GLUE)
def test_every_task_with_both_losses_and_rewards(name, glue, command, tmp_path):
    """Through the command line: what is scored and predicted, and of MNLI both halves. All four variants of
    the two tasks that are unlike the others, each loss and each reward of the rest."""
    for loss, reward in VARIANTS if name in ("STS-B", "MNLI") else VARIANTS[:2]:
        code, folder = command(
            name,
            folder=f"{name}/{loss}-{reward}",
            data_dir=glue,
            nlayers=2,
            num_episodes=1,
            tasks=[name, "STS-B", "SST-2"],
            reward_function=reward,
            use_comp_loss=loss == "com",
            quiz_size=4,
            max_train=16,
        )
        assert code == 0
        result = json.loads((folder / "result.json").read_text())
        assert list(result["rows"]) == ["teacher", "kd", "meta_teacher", "mpdistil"]
        for row, figures in result["rows"].items():
            halves = ["dev", "dev_mismatched"] if name == "MNLI" else ["dev"]
            assert list(figures) == halves
            for half in halves:
                expected = {"accuracy", "correct", "right"} if name != "STS-B" else {"mse", "example_scores"}
                assert expected | set(TASKS[name].metrics) <= figures[half].keys()
                assert all(np.isfinite(figures[half][metric]) for metric in TASKS[name].metrics)
            splits = [*halves, *(["test", "test_mismatched", "ax"] if name == "MNLI" else ["test"])]
            for split in splits:
                lines = read_lines(folder / "predictions" / row / split / f"{name}.jsonl")
                assert len(lines) == {"d": 12, "t": 6, "a": 5}[split[0]]
                assert all(
                    isinstance(line["label"], float)
                    if name == "STS-B"
                    else line["label"] in TASKS[name].answers
                    for line in lines
                )
    mpdistil = read_lines(folder / "metrics.jsonl")[-1]
    assert mpdistil["phase"] == "mpdistil" and np.isfinite(mpdistil["policy_loss"])


def test_a_runs_own_figures_from_its_predictions(glue, command, capsys):
    """score.py on the dev predictions of a regression, and by scipy alone."""
    code, folder = command("STS-B", data_dir=glue, tasks=["STS-B"], stop_after="kd", teacher_epochs=2)
    dev = json.loads((folder / "result.json").read_text())["rows"]["kd"]["dev"]
    predictions = folder / "predictions" / "kd" / "dev"
    answers = [line["label"] for line in read_lines(predictions / "STS-B.jsonl")]
    labels = [example.label for example in read_task(TASKS["STS-B"], glue, ("train", "dev"))["dev"]]
    assert dev["pearson"] == pytest.approx(stats.pearsonr(answers, labels).statistic, abs=1e-7)
    assert dev["spearman"] == pytest.approx(stats.spearmanr(answers, labels).statistic, abs=1e-12)
    assert dev["example_scores"] == pytest.approx(
        [-((a - b) ** 2) for a, b in zip(answers, labels)], abs=1e-5
    )
    assert capsys.readouterr().out
    assert score.main(["--predictions", str(predictions), "--labels", str(glue / "STS-B" / "dev.tsv")]) == 0
    line = capsys.readouterr().out.splitlines()[2]
    assert line == (
        f"| STS-B | 12 examples |  |  | Pearson {100 * dev['pearson']:.1f}, Spearman"
        f" {100 * dev['spearman']:.1f} |  |"
    )


# --- regression's equations and scores ----------------------------------------------------------------------

OUTPUTS = torch.tensor([[1.0], [4.0], [2.5]], dtype=torch.float64)
LABELS = torch.tensor([2.0, 4.0, 0.5], dtype=torch.float64)


def test_regression_by_hand():
    assert REGRESSION.loss(OUTPUTS, LABELS).item() == pytest.approx((1 + 0 + 4) / 3)
    assert REGRESSION.agreement(OUTPUTS, LABELS).tolist() == [-1.0, 0.0, -2.0]
    for temperature in (1.0, 5.0):  # which has no say
        assert REGRESSION.soft_loss(OUTPUTS, OUTPUTS + 2, temperature).item() == pytest.approx(4)
    assert REGRESSION.soft_loss(OUTPUTS, OUTPUTS, 5.0).item() == 0
    assert REGRESSION.answer(OUTPUTS).tolist() == [1.0, 4.0, 2.5]
    assert REGRESSION.labels.example_scores([1.0, 3.0], [3.0, 3.0]).tolist() == [-4.0, 0.0]


def test_a_binary_reward_counts_the_nearer_ones():
    from curriculum import binary_reward, real_reward

    student, meta_teacher = (
        REGRESSION.agreement(outputs[:, None], LABELS)
        for outputs in (
            torch.tensor([2.5, 4.0, 0.0], dtype=torch.float64),
            torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64),
        )
    )
    assert binary_reward(student, meta_teacher, 10).item() == pytest.approx(0.2)  # a tie is no win
    assert real_reward(student, meta_teacher, 10).item() == pytest.approx((0.5 + 0 + 1.0) / 10)


def test_regressions_gradients_by_finite_differences():
    labels = LABELS
    for loss in (
        lambda outputs: REGRESSION.loss(outputs, labels),
        lambda outputs: REGRESSION.agreement(outputs, labels - 0.1).mean(),
        lambda outputs: REGRESSION.soft_loss(OUTPUTS + 0.3, outputs, 5.0),
    ):
        assert torch.autograd.gradcheck(loss, OUTPUTS.clone().requires_grad_())


def test_a_head_of_one_output_beside_one_of_classes():
    heads = Heads([TASKS["STS-B"], TASKS["MNLI"]], 8, 0, "student").eval()
    assert heads("STS-B", torch.zeros(5, 8)).shape == (5, 1) and heads("MNLI", torch.zeros(5, 8)).shape == (
        5,
        3,
    )


@pytest.mark.parametrize(
    "name, answers, labels, expected",
    [
        ("MRPC", [1, 1, 0, 0], [1, 0, 1, 0], {"accuracy": 0.5, "f1_binary": 0.5, "correct": 2}),
        ("MRPC", [0, 0, 0, 0], [1, 0, 0, 0], {"accuracy": 0.75, "f1_binary": 0.0, "correct": 3}),
        ("CoLA", [1, 1, 0, 0], [1, 0, 1, 0], {"matthews": 0.0, "accuracy": 0.5}),
        ("CoLA", [1, 1, 0, 0], [1, 1, 0, 0], {"matthews": 1.0, "accuracy": 1.0}),
        ("CoLA", [1, 1, 1, 1], [1, 1, 0, 0], {"matthews": 0.0, "accuracy": 0.5}),
        ("CB", [0, 1, 2, 2], [0, 1, 2, 1], {"accuracy": 0.75, "f1": (1 + 2 / 3 + 2 / 3) / 3}),
        ("STS-B", [1.0, 2.0, 3.0], [2.0, 4.0, 5.0], {"pearson": 0.981981, "spearman": 1.0, "mse": 3.0}),
        ("STS-B", [2.0, 2.0], [1.0, 5.0], {"pearson": 0.0, "spearman": 0.0, "constant": "answers"}),
        ("STS-B", [2.0, 3.0], [5.0, 5.0], {"pearson": 0.0, "constant": "labels"}),
    ],
)
def test_scores_by_hand(name, answers, labels, expected):
    found = score_of(TASKS[name], answers, labels)
    for metric, value in expected.items():
        assert found[metric] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-6)), metric
    assert found["total"] == len(labels) and ("constant" in found) == ("constant" in expected)


@pytest.fixture(scope="module")
def runs_of_table_4(glue, encoders, tmp_path_factory):
    """STS-B with two seeds, MNLI and SST-2 with one; shared phases once."""
    root = tmp_path_factory.mktemp("table_4")
    small = dict(nlayers=2, teacher_epochs=1, epochs=2, meta_epochs=1, num_episodes=2, val_dataloader_size=2,
                 device="cpu", max_seq_length=64, quiz_size=4, learning_rate="1e-3", data_dir=glue,
                 teacher_model=encoders["bert"])
    for task, seed in (("STS-B", 42), ("STS-B", 43), ("MNLI", 42), ("SST-2", 42)):
        for curriculum, controls in (("policy", True), ("uniform", False)):
            flags = dict(task=task, seed=seed, curriculum=curriculum, tasks=[task, "STS-B"],
                         undistilled=controls, kd_200=controls,
                         output_dir=root / task / f"{seed}-{curriculum}")
            assert main_superglue.main(parse_arguments(as_words({**small, **flags}))) == 0
    return root


def test_table_4(runs_of_table_4, capsys, tmp_path):
    """The columns that have runs, two of MNLI and two of STS-B; the paper's numbers; differences of squared
    errors."""

    def table(form, *more):
        flags = [str(runs_of_table_4), "--table", "4", "--mixed", "--format", form, *more]
        assert make_tables.main(flags) == 0
        return capsys.readouterr().out

    page = table("md", "--compact", str(tmp_path / "runs.jsonl"))
    header = next(line for line in page.splitlines() if line.startswith("| row"))
    cells = [cell.strip() for cell in header.split("|")[2:-1:2]]
    assert cells == ["MNLI acc matched (n = 1)", "MNLI-MM acc mismatched (n = 1)", "SST-2 acc (n = 1)",
                     "STS-B pearson (n = 2)", "STS-B spearman (n = 2)"]
    assert ("Missing: no runs of MRPC acc, MRPC f1, QNLI acc, QQP acc, QQP f1, RTE acc, WNLI acc."
            in page)
    teacher = [
        cell.strip()
        for cell in next(line for line in page.splitlines() if line.startswith("| Teacher ")).split("|")[2:-1]
    ]
    assert teacher[1::2][:2] == ["83.7", "83.4"]
    rows = {
        seed: json.loads((runs_of_table_4 / "STS-B" / f"{seed}-policy" / "result.json").read_text())["rows"][
            "teacher"
        ]["dev"]["pearson"]
        for seed in (42, 43)
    }
    mean, spread = 100 * np.mean(list(rows.values())), 100 * np.std(list(rows.values()), ddof=1)
    assert teacher[6] == f"{mean:.1f} ± {spread:.1f}"
    floor = next(
        line for line in page.splitlines() if line.startswith("| Majority class, mean of the labels")
    )
    assert [floor.split("|")[column].strip() for column in (2, 4, 8)] == ["33.3", "33.3", "0.0"]
    assert "Of a regression the differences are of minus the squared error" in page
    assert "| SST-2, of 12" in page and "| STS-B, of 12" not in page  # counts where there are counts
    scores = {}
    for row in ("mpdistil", "kd_200"):
        scores[row] = [
            json.loads((runs_of_table_4 / "STS-B" / f"{seed}-policy" / "result.json").read_text())["rows"][
                row
            ]["dev"]["example_scores"]
            for seed in (42, 43)
        ]
    difference = np.mean(scores["mpdistil"]) - np.mean(scores["kd_200"])
    assert f"{difference:+.4f}" in page
    compact = tmp_path / "runs.jsonl"
    assert (
        make_tables.main([str(compact), "--table", "4", "--mixed"]) == 0 and capsys.readouterr().out == page
    )
    html = table("html", "--output", str(tmp_path / "page.html"), "--figures", str(tmp_path / "figures"))
    text = (tmp_path / "page.html").read_text()
    assert html == "" and "dev Pearson, %" in text and "kd Pearson" in text
    assert {path.name for path in (tmp_path / "figures").glob("*.png")} >= {
        "table_4.png",
        "episodes_STS-B.png",
    }
    lines = [line.split(",") for line in table("csv").splitlines()]
    assert ["MNLI-MM", "acc mismatched", "teacher", "42"] in [line[:4] for line in lines]
    assert "\\begin{tabular}" in table("tex")


def test_floors():
    assert floor_of(TASKS["MRPC"], [10, 30])["accuracy"] == 0.75
    assert floor_of(TASKS["MRPC"], [10, 30])["f1_binary"] == pytest.approx(60 / 70)
    floor = floor_of(TASKS["STS-B"], {"examples": 3, "mean": 2.0, "variance": 1.0})
    assert floor["pearson"] == 0 and floor["constant"] == "answers"


# --- the leaderboard ----------------------------------------------------------------------------------------


def make_run(folder, name, splits, changes=None, **result):
    """What a finished run leaves of what make_submission.py reads."""
    task = TASKS[name]
    for split, count in splits.items():
        path = folder / "predictions" / "mpdistil" / split / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = [
            (task.answers[n % len(task.answers)] if task.answers else 1.23456 * n - 0.5) for n in range(count)
        ]
        lines = [json.dumps({"idx": n, "label": label}) for n, label in enumerate(labels)]
        path.write_text("".join(f"{line}\n" for line in (changes or list)(lines)))
    write_record(
        folder / "result.json",
        {
            "task": name,
            "protocol": "paper",
            "set": [],
            "seed": 42,
            "curriculum": "policy",
            "rows": {"mpdistil": {}},
            "stopped_after": None,
            **result,
        },
    )
    return folder


def submit(tmp_path, *runs, benchmark="glue"):
    return make_submission.main(
        [*map(str, runs), "--output", str(tmp_path / "out.zip"), "--benchmark", benchmark]
    )


def test_a_submission_to_glue(tmp_path, capsys):
    """All nine tasks and AX: names, headers, spellings, rows."""
    runs = [
        make_run(
            tmp_path / name,
            name,
            {
                split: TASKS[name].official[split]
                for split in TASKS[name].official
                if split[:2] in ("te", "ax")
            },
        )
        for name in GLUE
        if name != "QQP"
    ]
    assert submit(tmp_path, *runs) == 0
    assert "missing for a complete submission: QQP (no run given)" in capsys.readouterr().out
    first = {
        "CoLA": "0",
        "SST-2": "0",
        "MRPC": "0",
        "STS-B": "0.000",
        "MNLI-m": "entailment",
        "WNLI": "0",
        "MNLI-mm": "entailment",
        "QNLI": "entailment",
        "RTE": "entailment",
        "AX": "entailment",
    }
    sizes = {
        "CoLA": 1063,
        "SST-2": 1821,
        "MRPC": 1725,
        "STS-B": 1379,
        "MNLI-m": 9796,
        "MNLI-mm": 9847,
        "QNLI": 5463,
        "RTE": 3000,
        "WNLI": 146,
        "AX": 1104,
    }
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == sorted(f"{name}.tsv" for name in first)
        for name in first:
            lines = archive.read(f"{name}.tsv").decode().splitlines()
            assert lines[0] == "index\tprediction" and lines[1] == f"0\t{first[name]}"
            assert [int(line.split("\t")[0]) for line in lines[1:]] == list(range(sizes[name]))
        scores = [float(line.split("\t")[1]) for line in archive.read("STS-B.tsv").decode().splitlines()[1:]]
        assert min(scores) == 0 and max(scores) == 5 and scores[1] == 0.735


def test_what_makes_no_submission_to_glue(tmp_path, capsys):
    def refused(code, *expected):
        said = capsys.readouterr().err
        assert code == 2 and said.count("\n") == 1 and all(words in said for words in expected), said

    halves = {"test": 9796, "test_mismatched": 9847}
    run = make_run(tmp_path / "mnli", "MNLI", halves)
    assert submit(tmp_path, run) == 0
    said = capsys.readouterr().out
    assert (
        "AX (predictions of an MNLI model" in said and "9796 predictions of test, 9847 predictions of" in said
    )
    refused(
        submit(tmp_path, make_run(tmp_path / "one", "MNLI", {"test": 9796})), "test_mismatched/MNLI.jsonl"
    )
    refused(submit(tmp_path, make_run(tmp_path / "cb", "CB", {"test": 250})), "a run of CB found", "CoLA")
    refused(
        submit(tmp_path, make_run(tmp_path / "m", "MRPC", {"test": 1725}), benchmark="superglue"),
        "a run of MRPC found",
        "BoolQ",
    )
    short = make_run(tmp_path / "short", "WNLI", {"test": 146}, lambda lines: lines[:-1])
    refused(submit(tmp_path, short), "145 predictions found, expected 146")
    other = make_run(
        tmp_path / "other",
        "STS-B",
        {"test": 1379},
        lambda lines: [line.replace('"idx": 7,', '"idx": 1400,') for line in lines],
    )
    refused(submit(tmp_path, other), "1 missing (7), 1 unexpected (1400)")
    text = make_run(
        tmp_path / "text",
        "STS-B",
        {"test": 1379},
        lambda lines: [*lines[:-1], '{"idx": 1378, "label": "high"}'],
    )
    refused(submit(tmp_path, text), "STS-B.jsonl:1379", 'label "high" found, expected a number')


def test_names_of_tasks_in_any_case():
    assert find_task("sts-b").name == "STS-B" and find_task("mnli").name == "MNLI"


def test_a_described_column_of_classes():
    from datasets import Dataset

    rows = Dataset.from_list([{"sentence": "a", "label": 1, "idx": 0}])
    ((where, record),) = read_dataset(rows, TASKS["SST-2"], "hub")
    assert where == "hub:1" and record["label"] == 1

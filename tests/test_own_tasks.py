"""Tasks that a task.json describes: files of every kind, all phases, what is refused."""

import json
import re
import shlex

import pytest

import make_tables
import score
import sweep
from bookkeeping.errors import InputError
from conftest import ROOT, read_lines
from data_utils import PARTS, curriculum_tasks, read_task
from tasks import find_task, read_description
from test_bad_input import said as note
from test_bad_input import spell

ROWS = [
    (f'{adjective} news {number}, "quoted"', f"body {number} of {topic}", topic)
    for number in range(16)
    for adjective, topic in (("good", "Sport"), ("dull", "politics"), ("wet", "weather"))
]
NEWS = {
    "kind": "classification",
    "fields": {"headline": "text", "body": "text"},
    "inputs": ["headline", "body"],
    "labels": ["sport", "politics", "weather"],
    "label": "topic",
    "metrics": ["accuracy", "f1"],
    "files": {"train": "train.csv", "dev": "dev.csv", "test": "test.csv"},
}
SIZES = {"train": 48, "dev": 12, "test": 6}


def as_csv(rows, separator=",", quote=True):
    def cell(text):
        return '"' + text.replace('"', '""') + '"' if quote else text

    return "".join(separator.join(map(cell, row)) + "\n" for row in rows)


def write_news(root, ending="csv", name="News", **changes):
    """A three-way task with labels of its own. Returns its folder."""
    folder = root / name
    folder.mkdir(parents=True)
    files = {part: f"{part}.{ending}" for part in SIZES}
    (folder / "task.json").write_text(json.dumps({**NEWS, "files": files, **changes}))
    for part, count in SIZES.items():
        rows, path = [row[:2] if part == "test" else row for row in ROWS[:count]], folder / files[part]
        header = ("headline", "body", "topic")[: 2 if part == "test" else 3]
        if ending in ("csv", "tsv"):
            tab = ending == "tsv"
            path.write_text(as_csv([header, *rows], "\t" if tab else ",", not tab), encoding="utf-8")
        elif ending == "jsonl":
            path.write_text("".join(json.dumps(dict(zip(header, row))) + "\n" for row in rows))
        else:
            from datasets import Dataset

            Dataset.from_list([dict(zip(header, row)) for row in rows]).to_parquet(str(path))
    return folder


@pytest.mark.parametrize("ending", ("csv", "tsv", "jsonl", "parquet"))
def test_files_of_every_kind_give_the_same_examples(ending, tmp_path):
    write_news(tmp_path, ending)
    task = find_task("news", data_dir=tmp_path)
    assert task.name == "News" and task.labels == ("sport", "politics", "weather") and task.outputs == 3
    found = read_task(task, tmp_path, PARTS)
    assert {part: len(examples) for part, examples in found.items()} == SIZES
    for part, examples in found.items():
        for number, (example, row) in enumerate(zip(examples, ROWS)):
            assert example.pairs == [row[:2]] and example.idx == number
            assert example.label == (None if part == "test" else number % 3)


def test_texts_stay_texts(tmp_path):
    """No number, date or gap is made of what looks so; a comma, quotes and a line end stand within quotes."""
    texts = ["007", "1e5", "NA", "null", "2020-01-01", "true", 'a, "b"\nc', " x "]
    folder = tmp_path / "T"
    folder.mkdir()
    (folder / "task.json").write_text(
        json.dumps(
            {
                "kind": "classification",
                "fields": {"text": "text"},
                "inputs": ["text"],
                "labels": [0, 1],
                "files": {"train": "a.csv", "dev": "a.csv"},
            }
        )
    )
    (folder / "a.csv").write_text(as_csv([("text", "label"), *((text, "1") for text in texts)]))
    found = read_task(find_task("T", data_dir=tmp_path), tmp_path, ("train",))["train"]
    assert [example.pairs for example in found] == [[(text, None)] for text in texts]


def task_of_two(folder, rows, **changes):
    """A task of texts and two labels, in a csv."""
    folder.mkdir(parents=True)
    made = {
        "kind": "classification",
        "fields": {"text": "text"},
        "inputs": ["text"],
        "labels": [1, 0],
        **changes,
    }
    (folder / "task.json").write_text(json.dumps({**made, "files": {"train": "a.csv", "dev": "a.csv"}}))
    (folder / "a.csv").write_text(rows)
    return read_task(find_task(folder.name, data_dir=folder.parent), folder.parent, ("train",))["train"]


@pytest.mark.parametrize("labels", ([1, 0], [True, False], ["0 ", " 1"], [-1, 1]))
def test_the_order_of_labels_is_the_descriptions(labels, tmp_path):
    found = task_of_two(tmp_path / "T", f"text,label\na,{labels[0]}\nb,{labels[1]}\n", labels=labels)
    assert [example.label for example in found] == [0, 1]
    if isinstance(labels[0], bool):
        found = task_of_two(tmp_path / "again" / "T", "text,label\na,1\nb,0\n", labels=labels)
        assert [example.label for example in found] == [0, 1]


def test_odd_csv_files(tmp_path):
    """A first column without a name, as pandas writes its index; a long text; a folder whose name is a
    pattern, beside those that match it."""
    found = task_of_two(tmp_path / "T", ",text,label\n0,a,1\n1,b,0\n")
    assert [example.pairs[0][0] for example in found] == ["a", "b"]
    found = task_of_two(tmp_path / "long" / "T", f"text,label\n{'x' * 200_000},1\nb,0\n")
    assert len(found[0].pairs[0][0]) == 200_000
    task_of_two(tmp_path / "data1" / "T", "text,label\nother,1\nother,0\n")
    found = task_of_two(tmp_path / "data[1]" / "T", "text,label\nmine,1\nmine,0\n")
    assert [example.pairs[0][0] for example in found] == ["mine", "mine"]


def test_a_description_that_nobody_asks_for_is_not_read(tmp_path, data_dir):
    (tmp_path / "Foreign").mkdir()
    (tmp_path / "Foreign" / "task.json").write_text("{}")
    (tmp_path / "CB").symlink_to(data_dir / "CB")
    assert [task.name for task in curriculum_tasks(None, find_task("CB", data_dir=tmp_path), tmp_path)] == [
        "CB"
    ]
    with pytest.raises(InputError, match="Foreign/task.json: no key 'kind'"):
        find_task("foreign", data_dir=tmp_path)


def test_other_descriptions_make_no_one_table(command, tmp_path, capsys):
    folder = write_news(tmp_path / "data")
    flags = dict(data_dir=tmp_path / "data", tasks=["News"], stop_after="teacher")
    assert command("News", folder="runs/one", **flags)[0] == 0
    (folder / "task.json").write_text(json.dumps({**NEWS, "metrics": ["f1"]}))
    assert command("News", folder="runs/two", seed=43, **flags)[0] == 0
    assert make_tables.main([str(tmp_path / "runs"), "--table", "own", "--mixed"]) == 2
    assert "metrics ['accuracy', 'f1'] and ['f1']; descriptions" in capsys.readouterr().err


def test_a_task_of_choices_and_one_of_numbers(tmp_path, command):
    """Both in one student, the labels -1 and 1 among them; all phases."""
    quiz, grade = tmp_path / "data" / "Quiz", tmp_path / "data" / "Grade"
    quiz.mkdir(parents=True), grade.mkdir()
    (quiz / "task.json").write_text(
        json.dumps(
            {
                "kind": "multiple_choice",
                "fields": {"ask": "text", "a": "text", "b": "text", "c": "text"},
                "inputs": ["ask"],
                "choices": ["a", "b", "c"],
                "labels": ["A", "B", "C"],
                "idx": "id",
                "files": {"train": "x.jsonl", "dev": "y.jsonl"},
            }
        )
    )
    lines = [
        {"id": f"q{n}", "ask": "who", "a": "Ada", "b": "Ben", "c": f"none of {n}", "label": "abc"[n % 3]}
        for n in range(40)
    ]
    (quiz / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (quiz / "y.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:9]))
    (grade / "task.json").write_text(
        json.dumps(
            {
                "kind": "regression",
                "fields": {"essay": "text", "age": "integer"},
                "inputs": ["essay"],
                "range": [-1, 1],
                "metrics": ["spearman"],
                "files": {"train": "x.tsv", "dev": "x.tsv"},
            }
        )
    )
    rows = [
        ("essay", "age", "label"),
        *((f'an "essay" {n}', "9", f"{n / 10 - 1:.1f}") for n in range(21)),
        *((f"more {n}", "10", "-1") for n in range(21)),
    ]
    (grade / "x.tsv").write_text(as_csv(rows, "\t", quote=False))
    for task in ("Grade", "Quiz"):
        code, folder = command(task, folder=f"runs/{task}", data_dir=tmp_path / "data", num_episodes=1)
        result = json.loads((folder / "result.json").read_text())
        assert code == 0 and json.loads((folder / "args.json").read_text())["tasks"] == ["Grade", "Quiz"]
        dev = result["rows"]["mpdistil"]["dev"]
        assert ("spearman" in dev and "pearson" not in dev) if task == "Grade" else dev["total"] == 9
        found = read_lines(folder / "predictions" / "kd" / "dev" / f"{task}.jsonl")
        assert found[0]["idx"] == (0 if task == "Grade" else "q0")
    assert {line["label"] for line in found} <= {"A", "B", "C"}


SMALL = (
    "--seeds 42 --rows kd mpdistil_col_binary --nlayers 2 --teacher_epochs 1 --epochs 1 --meta_epochs 1"
    " --num_episodes 2 --device cpu --val_dataloader_size 2 --max_seq_length 64"
)


@pytest.mark.usefixtures("in_process")
def test_the_readmes_task_from_a_folder_to_a_table(tmp_path, encoders, data_dir, capsys, monkeypatch):
    """What the README says, word by word, but small: the description, the sweep, the table; then the scores,
    and the task beside an official one in the curriculum."""
    block = r"<!-- own task -->\n```json\n(.*?)```\n```bash\n(.*?)```"
    description, commands = re.search(block, (ROOT / "README.md").read_text(), re.DOTALL).groups()
    sweeping, tabling = (shlex.split(line) for line in commands.splitlines())
    assert [sweeping[1], tabling[1]] == ["scripts/sweep.py", "scripts/make_tables.py"]
    folder = write_news(tmp_path / "data")
    (folder / "task.json").write_text(description)
    (tmp_path / "encoders").mkdir()
    (tmp_path / "encoders" / "MiniLM").symlink_to(encoders["bert"])
    monkeypatch.chdir(tmp_path)
    assert sweep.main([*sweeping[2:], *SMALL.split()]) == 0, capsys.readouterr()
    capsys.readouterr()
    assert make_tables.main([*tabling[2:], "--mixed"]) == 0
    table = capsys.readouterr().out
    assert "| News accuracy (n = 1)" in table and "paper" not in table.split("\n\n")[2]
    assert re.search(r"^\| Majority class +\| 33.3", table, re.MULTILINE)
    for form in ("html", "csv", "tex"):
        assert make_tables.main([*tabling[2:], "--mixed", "--format", form]) == 0
        assert "News" in capsys.readouterr().out
    run = next((tmp_path / "runs").glob("news/news/*binary*seed42"))
    line = read_lines(run / "predictions" / "kd" / "dev" / "News.jsonl")[0]
    assert line["idx"] == 0 and line["label"] in NEWS["labels"]
    words = ["--predictions", str(run / "predictions" / "kd" / "dev"), "--labels", str(folder / "dev.csv")]
    assert score.main(words) == 0
    dev = json.loads((run / "result.json").read_text())["rows"]["kd"]["dev"]
    assert f"| News | {dev['correct']}/12 |" in capsys.readouterr().out
    assert make_tables.main(["runs/news", "--table", "1a", "--mixed"]) == 2
    assert "runs of News found, expected some of BoolQ" in capsys.readouterr().err


def test_a_described_task_beside_an_official_one(command, tmp_path, data_dir):
    write_news(tmp_path / "data")
    (tmp_path / "data" / "CB").symlink_to(data_dir / "CB")
    code, folder = command("CB", data_dir=tmp_path / "data", tasks=["cb", "news"], num_episodes=3)
    assert code == 0
    picked = {task for line in read_lines(folder / "trajectories.jsonl") for task in line["actions"]}
    assert picked == {"CB", "News"} and "News/task.json" in json.loads((folder / "data.json").read_text())


def test_the_description_is_part_of_what_was_computed(command, tmp_path, capsys):
    """Other content, another run: refused in the same folder, computed anew in another one."""
    data, flags = tmp_path / "data", dict(data_dir=tmp_path / "data", tasks=["News"], stop_after="teacher")
    folder = write_news(data)
    code, first = command("News", folder="runs/one", **flags)
    assert code == 0
    (folder / "task.json").write_text(json.dumps({**NEWS, "metrics": ["f1"]}))
    assert command("News", folder="runs/one", **flags)[0] == 2
    assert "News/task.json changed" in capsys.readouterr().err
    code, second = command("News", folder="runs/two", **flags)
    assert code == 0 and not json.loads((second / "result.json").read_text())["reused"]
    (folder / "task.json").write_text(json.dumps(NEWS, indent=3))  # form is no content
    assert command("News", folder="runs/one", **flags)[0] == 0 and "nothing to do" in capsys.readouterr().out


def test_the_curriculum_of_a_described_task(tmp_path):
    write_news(tmp_path)
    write_news(tmp_path, name="Other")
    (tmp_path / "CB").mkdir()
    (tmp_path / "CB" / "train.jsonl").write_text("")
    task = find_task("News", data_dir=tmp_path)
    assert [found.name for found in curriculum_tasks(None, task, tmp_path)] == ["News", "Other"]
    assert [found.name for found in curriculum_tasks(["cb", "other"], task, tmp_path)] == [
        "CB",
        "News",
        "Other",
    ]
    assert [found.name for found in curriculum_tasks(None, find_task("CB"), tmp_path)] == ["CB"]


REGRESSION = {"kind": "regression", "labels": None, "range": [0, 1], "metrics": None}
BAD = [  # what replaces keys of NEWS (None: the key is left out), what is said
    ({"kind": "ranking"}, "key 'kind': 'ranking' found, expected one of classification"),
    ({"kind": None}, "no key 'kind'"),
    ({"fields": None}, "no key 'fields'"),
    ({"files": None}, "no key 'files'"),
    ({"colour": "red"}, "key 'colour' found, expected some of kind, fields"),
    ({"fields": {}}, "key 'fields': {} found, expected an object that is not empty"),
    ({"fields": ["headline"]}, "key 'fields'"),
    ({"fields": {"headline": "string", "body": "text"}}, "'headline' of type 'string' found"),
    ({"fields": {"headline": ["text"], "body": "text"}}, "of type ['text'] found"),
    ({"fields": {"headline": "text", "body": "text", "topic": "text"}}, "key 'fields': 'topic'"),
    ({"fields": {"headline": "text", "body": "text", "label": "text"}}, "key 'fields': 'label'"),
    (
        {"inputs": ["headline", "text"]},
        "key 'inputs': 'text' found, expected names of fields (headline, body)",
    ),
    ({"inputs": [["headline"], "body"]}, "key 'inputs': ['headline'] found"),
    ({"inputs": ["headline", "body", "body"]}, "3 inputs and 0 choices found, expected one or two"),
    ({"inputs": None}, "0 inputs and 0 choices"),
    ({"choices": ["body"]}, "2 inputs and 1 choices"),
    ({"labels": None}, "no key 'labels'"),
    ({"labels": ["one"]}, "key 'labels': ['one'] found, expected at least"),
    ({"labels": ["a", "A"]}, "key 'labels'"),
    ({"labels": [0.5, 1]}, "key 'labels'"),
    ({"labels": ["", "a"]}, "key 'labels'"),
    ({"range": [0, 1]}, "key 'range' found, expected 'labels' instead"),
    ({"metrics": ["bleu"]}, "key 'metrics': 'bleu' found, expected some of accuracy, f1, matthews"),
    ({"metrics": ["f1_binary"]}, "key 'metrics': 'f1_binary'"),
    ({"metrics": ["f1", "f1"]}, "each once"),
    ({"metrics": "f1"}, "key 'metrics': 'f1' found, expected a list"),
    ({"files": {"train": "train.csv"}}, "key 'files' without 'dev' found"),
    ({"files": {"train": "train.csv", "valid": "dev.csv"}}, "key 'files': 'valid' found"),
    ({"files": {"train": "../train.csv", "dev": "dev.csv"}}, "train '../train.csv' found"),
    ({"files": {"train": "train.xlsx", "dev": "dev.csv"}}, "which ends in jsonl, csv, tsv, parquet"),
    ({**REGRESSION, "labels": [0, 1]}, "key 'labels' found, expected 'range' instead"),
    ({**REGRESSION, "range": [0, 10**400]}, "two numbers"),
    ({**REGRESSION, "range": None}, "no key 'range'"),
    ({**REGRESSION, "range": [1, 0]}, "key 'range': [1, 0]"),
    ({**REGRESSION, "range": [0, 1, 2]}, "two numbers"),
    ({**REGRESSION, "range": ["0", "1"]}, "two numbers"),
    ({**REGRESSION, "metrics": ["accuracy"]}, "key 'metrics': 'accuracy' found, expected some of pearson"),
    ({"kind": "multiple_choice"}, "2 inputs and 0 choices for 3 labels"),
    ({"kind": "multiple_choice", "inputs": ["headline"], "choices": ["body"]}, "choices for 3 labels"),
]


@pytest.mark.parametrize("changes, expected", BAD, ids=spell)
def test_bad_descriptions_are_refused(changes, expected, tmp_path):
    folder = write_news(tmp_path)
    made = {key: value for key, value in {**NEWS, **changes}.items() if value is not None}
    (folder / "task.json").write_text(json.dumps(made))
    with pytest.raises(InputError) as refused:
        find_task("News", data_dir=tmp_path)
    said = str(refused.value)
    assert said.startswith(f"{folder}/task.json: ") and expected in said and "\n" not in said, said
    note("refused", said)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{", "no JSON"),
        ("[]", "list found, expected a JSON object"),
        ('{"kind": "a", "kind": "b"}', "stands twice"),
        (b"\xff", "byte 0 that is not UTF-8"),
        ("[" * 100000, "no JSON"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_what_is_no_description_is_refused(text, expected, tmp_path):
    folder = write_news(tmp_path)
    (folder / "task.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match="task.json: ") as refused:
        read_description(folder / "task.json")
    assert expected in str(refused.value) and "\n" not in str(refused.value)
    note("refused", str(refused.value))


def test_names_of_described_tasks(tmp_path):
    write_news(tmp_path, name="mrpc")
    with pytest.raises(InputError, match="a description of mrpc, which is a task of this project"):
        read_description(tmp_path / "mrpc" / "task.json")
    with pytest.raises(InputError, match="found in the folder of MRPC, which is a task of this project"):
        read_task(find_task("MRPC", data_dir=tmp_path), tmp_path, PARTS)
    for name in ("two words", "v1.0", "eval", "items"):
        write_news(tmp_path / "other", name=name)
        with pytest.raises(InputError, match=f"a folder named {name!r} found"):
            find_task(name, data_dir=tmp_path / "other")


@pytest.mark.parametrize(
    "ending, spoil, expected",
    [
        ("csv", lambda text: text.replace(b'"topic"', b'"body"'), "train.csv:1: column 'body' stands twice"),
        ("csv", lambda text: text.replace(b',"topic"', b""), "train.csv:2: 3 columns found, expected 2"),
        (
            "csv",
            lambda text: text.replace(b'"topic"', b'"theme"'),
            "train.csv:2: no label found, expected every",
        ),
        (
            "csv",
            lambda text: text.replace(b'"headline"', b'"title"'),
            "train.csv:2: field 'headline' missing",
        ),
        (
            "csv",
            lambda text: text.replace(b'"Sport"', b'"chess"', 1),
            "train.csv:2: label 'chess' found, expected one",
        ),
        ("csv", lambda text: text + b'"a","b","sport","d"\n', "train.csv: no .csv that can be read"),
        ("csv", lambda text: text + b'"a","b"\n', "train.csv:50: no label, but 48"),
        ("csv", lambda text: text[:-9] + b'"\xff"\n', "train.csv:49: byte"),
        ("csv", lambda text: b"", "train.csv"),
        ("csv", lambda text: text[:25], "train.csv: no examples found"),
        (
            "csv",
            lambda text: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a pointer of git lfs",
        ),
        ("tsv", lambda text: text + b"a\tb\tc\td\n", "train.tsv: no .tsv that can be read"),
        ("jsonl", lambda text: text + b"{\n", "train.jsonl:49: not JSON"),
        ("jsonl", lambda text: text.replace(b'"body"', b'"text"', 1), "train.jsonl:1: field 'body' missing"),
        ("parquet", lambda text: text[:100], "train.parquet: no .parquet that can be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_files_are_refused(ending, spoil, expected, command, tmp_path, capsys):
    folder = write_news(tmp_path / "data", ending)
    path = folder / f"train.{ending}"
    path.write_bytes(spoil(path.read_bytes()))
    code, run = command("News", data_dir=tmp_path / "data", tasks=["News"])
    said = capsys.readouterr().err
    assert code == 2 and expected in said and said.startswith("error: ") and said.count("\n") == 1, said
    assert not run.exists()
    note("refused", said)


def test_a_file_that_is_not_there_is_named(command, tmp_path, capsys):
    folder = write_news(tmp_path / "data")
    (folder / "test.csv").unlink()
    assert command("News", data_dir=tmp_path / "data")[0] == 2
    said = capsys.readouterr().err
    assert "test.csv: no such file, expected the test split that News's description names" in said

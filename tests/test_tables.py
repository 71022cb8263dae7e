"""Statistics against figures worked out by hand, and make_tables.py: what its pages say of made-up runs, and
the committed results."""
import csv
import io
import json
import re
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from lib import run_records
from lib.rows import MPDISTIL, ROWS
from lib.statistics import (
    chance_of_wins,
    corrected,
    count_wins,
    exact_interval,
    expected_best,
    mean_interval,
    permutation_p,
)

import make_tables
from conftest import ROOT

# --- statistics ---------------------------------------------------------------------------------------------

def test_exact_interval():
    low, high = exact_interval(0, 10)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** 0.1)  # (1 - p)^10 = 2.5%
    assert exact_interval(10, 10) == pytest.approx((0.025 ** 0.1, 1))


def test_mean_interval():
    # two seeds that differ say nothing
    assert mean_interval(np.array([[1, 1, 1, 1], [0, 0, 0, 0]])) == (0.5, -1, 1)
    assert mean_interval(np.array([[1, 1, 1, 1], [0, 0, 0, 0]]), least=0) == (0.5, 0, 1)
    # t, 4 degrees of freedom: 2.776 sd / sqrt(5)
    mean, low, high = mean_interval(np.repeat([[0], [0], [1], [1], [1]], 9, 1))
    assert (mean, low, high) == pytest.approx((0.6, 0.6 - 2.776445 * 0.3 ** 0.5 / 5 ** 0.5, 1))
    values = (np.random.default_rng(1).random((5, 400)) < 0.6).astype(int)
    mean, low, high = mean_interval(values)
    # independent answers: up to sqrt(3)
    assert mean == values.mean() and 1 < (high - low) / (2 * 1.96 * np.sqrt(0.24 / 2000)) < 2
    assert mean_interval(values) == mean_interval(values)                     # the same draws
    assert mean_interval(values[:1])[0] == values[0].mean()
    assert mean_interval(np.zeros((3, 7))) == (0, 0, 0)


def test_permutation_p():
    one, none = np.ones((1, 4), dtype=int), np.zeros((1, 4), dtype=int)
    # exact: 4 discordant examples, McNemar's 2 * (1/2)^4
    assert permutation_p(one, none) == pytest.approx(2 / 16)
    # five equal seeds are no more evidence
    assert permutation_p(np.repeat(one, 5, 0), np.repeat(none, 5, 0)) == pytest.approx(2 / 16)
    assert permutation_p(one, one) == 1
    first = np.array([[1, 1, 1, 1, 1, 1, 0] + [1] * 20])
    second = np.array([[0, 0, 0, 0, 0, 0, 1] + [1] * 20])
    assert permutation_p(first, second) == pytest.approx(2 * 8 / 2 ** 7)      # McNemar: 6 against 1
    first, second = np.ones((1, 30), dtype=int), np.array([[0] * 20 + [1] * 10])
    assert permutation_p(first, second) < 0.001                               # drawn, not counted


def test_holm():
    assert corrected([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and corrected([]) == []


def test_expected_best():
    assert (
        expected_best([4, 1, 3, 2], 1) == 2.5
        and expected_best([4, 1, 3, 2], 4) == 4
        and expected_best([4, 1, 3, 2], 99) == 4
    )
    assert expected_best([4, 1, 3, 2], 2) == pytest.approx(20 / 6)            # of the six pairs: 4 4 4 3 3 2


def test_wins_and_their_chance():
    assert count_wins([3, 3, 3], [[4, 3, 1], [2, 3, 2]]) == 1
    teacher, student = [np.array([0]), np.array([0])], [np.array([1]), np.array([1])]
    assert chance_of_wins(teacher, [student]) == pytest.approx(1 / 4)         # both tasks, each one in two
    assert chance_of_wins(student, [teacher]) == 1
    # five equals: the teacher is the best once in five
    rng = np.random.default_rng(2)
    teacher, *students = ([rng.random(300)] for _ in range(5))
    while count_wins([teacher[0].sum()], [[student[0].sum()] for student in students]) == 0:
        teacher[0] = rng.random(300)
    assert chance_of_wins(teacher, students) == pytest.approx(0.8, abs=0.03)


# --- pages of made-up runs ----------------------------------------------------------------------------------

EXAMPLES, LOOKS = 40, 12


def made_up(task="CB", seed=42, loss="col", reward="binary", curriculum="policy", answers=None, **changes):
    """A record; answers: {row: how many of the examples are right}."""
    last = "no_curriculum" if curriculum == "main_task" else "mpdistil"
    answers = {
        "teacher": 30,
        "kd": 20,
        "meta_teacher": 30,
        **({last: 20} if curriculum else {}),
        **(answers or {}),
    }
    rows = {row: {"dev": {"accuracy": right / EXAMPLES, "correct": right, "total": EXAMPLES, "epoch": 1,
                          "right": "1" * right + "0" * (EXAMPLES - right)}} for row, right in answers.items()}
    episodes = LOOKS if curriculum else 0
    looks = {
        "mpdistil" if row == last else row: [10] * (LOOKS - 1) + [right] for row, right in answers.items()
    }
    return {
        "run": f"{task.lower()}/paper-{loss}-{reward}-{curriculum}-seed{seed}",
        "task": task,
        "protocol": "paper",
        "set": [],
        "loss": loss,
        "reward": reward,
        "curriculum": curriculum or "policy",
        "seed": seed,
        "stopped_after": None,
        "select_on": "dev",
        "dev_labels": [22, 18],
        "rows": rows,
        "seconds": {"teacher": 1800.0, **({"mpdistil": 900.0} if curriculum else {})},
        "peak_memory_bytes": 2**30,
        "phases": {"teacher": f"{task}{seed}"},
        "phase_order": "sequential",
        "encoder": {
            "teacher": "tiny",
            "student": "tiny",
            "nlayers": 3,
            "teacher_sha256": "a" * 64,
            "student_sha256": "a" * 64,
        },
        "flags": {
            "teacher_epochs": 10,
            "epochs": 10,
            "meta_epochs": 10,
            "num_episodes": LOOKS,
            "tasks": ["BoolQ", "CB"],
        },
        "data": {
            f"{task}/dev": {"examples": EXAMPLES},
            f"{task}/train": {"examples": 200},
            f"{task}/quiz": {"examples": 50},
            "BoolQ/quiz": {"examples": 853},
        },
        "looks": looks,
        "rewards": [0.5] * episodes,
        "entropies": [1.0] * episodes,
        "actions": ["0111"] * episodes,
        "environment": {
            "python": "3",
            "torch": "2",
            "transformers": "5",
            "cpu_threads": 2,
            "gpu": None,
            "git_commit": "c" * 40,
            "git_changes": False,
        },
        **changes,
    }


def column(task="CB", seeds=(42, 43, 44), **answers):
    """Records of all rows; answers: {row of the table: right answers}."""
    shared = {
        row: answers.get(row, right)
        for row, right in (("teacher", 30), ("student", 20), ("kd", 20), ("kd_200", 20))
    }
    records = []
    for seed in seeds:
        records.append(made_up(task, seed, curriculum=None, answers=shared))
        for name, row in ROWS.items():
            if row.phase == "phase 4":
                records.append(made_up(task, seed, row.loss, row.reward, row.curriculum, answers={
                    **shared, row.found_as: answers.get(name, 20)}))
    return records


@pytest.fixture
def tables(tmp_path, capsys):
    """tables(records, *flags) -> (exit code, stdout, stderr)."""
    def run(records, *flags, table="1a"):
        path = tmp_path / "runs.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        code = make_tables.main([str(path), "--table", table, *map(str, flags)])
        found = capsys.readouterr()
        return code, found.out, found.err
    return run


def row_of(text, start):
    """Cells of the first table row that begins so."""
    return [
        cell.strip()
        for cell in (
            next(line for line in text.splitlines() if line.startswith(f"| {start}")).strip("|").split("|")
        )
    ]


def test_ours_beside_the_papers(tables, tmp_path):
    records = column() + column("COPA", seeds=(42,))
    code, text, _ = tables(records)
    assert code == 0
    teacher = row_of(text, "Teacher")
    assert teacher == [
        "Teacher",
        "missing",
        "75.3",
        "75.0 ± 0.0",
        "83.9",
        "75.0",
        "63.0",
        "missing",
        "67.1",
        "missing",
        "57.1",
        "missing",
        "64.4",
    ]
    assert (
        "CB acc (n = 3)" in text
        and "COPA acc (n = 1)" in text
        and "Missing: no runs of BoolQ acc, RTE acc, WiC acc, WSC acc." in text
    )
    assert row_of(text, "Majority class")[3] == "55.0" and "| Teacher" in text and "30, 30, 30" in text
    assert (
        "BoolQ quiz 853 examples, where the official files give 943" in text
        and "COPA train and quiz together 250" in text
    )
    assert "CB train" not in text and "--max" not in text and "12 episodes (not the default, 200)" in text
    # 4 teachers of half an hour that runs share, 4 x 7 times a quarter of an hour
    assert "32 runs with 9.0 process hours" in text
    for record in records[:8]:  # those of CB's first seed
        record["rows"]["kd"]["dev"].update(correct=24, accuracy=0.6, right="1" * 24 + "0" * 16)
    assert row_of(tables(records)[1], "Distilled student")[3] == "53.3 ± 5.8"  # 60, 50, 50
    text = tables([record for record in records if record["curriculum"] != "uniform"])[1]
    assert (
        "Missing rows: CB: uniform; COPA: uniform." in text
        and row_of(text, "Control: uniform")[3] == "missing"
    )
    note = tmp_path / "note.txt"
    note.write_text("An encoder of our own.\n")
    assert (
        "## What was run\n\n- An encoder of our own.\n- Encoder: tiny" in tables(records, "--note", note)[1]
    )
    text = tables(records + column("RTE"), table="4")[1]
    assert (
        text.startswith("# Table 4: GLUE")
        and "no runs of MNLI acc matched" in text
        and row_of(text, "Teacher")[15] == "75.0 ± 0.0"
    )
    assert "Left out: 24 runs of CB, which has no column; 8 runs of COPA, which has no column." in text
    assert "--table 4: runs of CB, COPA found, expected some of MNLI" in tables(records, table="4")[2]


def test_a_direction_is_named_only_where_the_tests_carry_it(tables):
    same = tables(column())[1]
    assert (
        "The learnt policy is not shown to differ from a uniform one in any of 4 comparisons (CB +0.0"
        " points); in 100.0% of the steps it picks the very task that chance alone picks with the same seed."
        in same
    )
    # 10 of 40: p = 2 / 2^10
    assert "A student is below its teacher in 4 of 4 comparisons (CB -25.0 points)" in same
    assert "what is kept is the best of 12 against 12 looks" in same
    better = tables(column(**{name: 36 for name in MPDISTIL}))[1]
    assert "The learnt policy is better than a uniform one in 4 of 4 comparisons (CB +40.0 points);" in better
    assert (
        "Phase 4 beats the distilled student that is distilled on for as many steps and looks (kd_200) in 4"
        " of 4 comparisons"
        in better
    )
    slightly = tables(column(**{name: 24 for name in MPDISTIL}))[1]  # 4 of 40: p = 1/8
    assert (
        "The learnt policy is not shown to differ from a uniform one in any of 4 comparisons (CB +10.0"
        " points);"
        in slightly
    )
    line = row_of(slightly, "MPDistil, collaborative + binary | Distilled student")
    assert line[2:] == [
        "12 : 12",
        "+10.0",
        "+2.5 to +20.0",
        "+4 +4 +4",
        "0.125",
        "1.000",
        "no difference shown",
    ]
    one = tables(column(seeds=(42,), **{name: 36 for name in MPDISTIL}))[1]
    assert (
        "The learnt policy was compared in one seed alone, which shows no direction (CB +40.0 points);" in one
    )
    # +20, +0 and +20 of 40: clear over examples, not over seeds
    apart = column(**{name: 40 for name in MPDISTIL})
    for record in apart:
        if record["seed"] == 43 and record["curriculum"] == "policy" and "mpdistil" in record["rows"]:
            record["rows"]["mpdistil"] = record["rows"]["kd"]
    line = row_of(tables(apart)[1], "MPDistil, collaborative + binary | Control: uniform")
    assert line[5:] == ["+20 +0 +20", "< 0.001", "0.004", "no difference shown"]
    real = tables(column(mpdistil_col_real=36, mpdistil_com_real=36))[1]
    assert "The real reward is better than the binary one in 1 of 1 comparison (CB +40.0 points)." in real
    assert (
        "The competitive loss is not shown to differ from the collaborative one in any of 1 comparison (CB"
        " +0.0 points)."
        in real
    )


def test_wins_and_selection(tables):
    text = tables(column(mpdistil_com_real=31) + column("COPA"))[1]
    assert row_of(text, "best of the four")[1:5] == ["2", "1", "0", "1"] and row_of(text, "best of the four")[
        6:9
    ] == ["4", "1", "1"]
    assert (
        "single variants are above it in 0 of 2 to 1 of 2 tasks and the best of the four in 1 of 2, whose"
        " chance is at most 0."
        in text
    )
    kept = row_of(text[text.index("What selecting"):], "MPDistil, collaborative + binary")
    # 20 once, 10 eleven times of 40; 10 of 12 looks hold the best in 10/12
    assert kept[1:6] == ["12", "50.0", "27.1", "50.0", "45.8"]
    assert kept[6:] == ["22.9", "4.2"]
    records = column()
    uniform = next(record for record in records if record["curriculum"] == "uniform")
    uniform["actions"] = ["1111"] * LOOKS  # one seed of three, one step of four
    line = row_of(
        (page := tables(records)[1])[page.index("What the policy does") :], "CB: MPDistil, competitive + real"
    )
    assert line[1:] == ["12", "1.0000", "1.0000", "0.5000", "0.5000", "91.7"]


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(protocol="released"), "protocol paper and released"),
        (dict(select_on="quiz"), "select_on dev and quiz"),
        (dict(flags={**made_up()["flags"], "num_episodes": 99}), "--num_episodes 12 and 99"),
        (dict(data={"CB/dev": {"examples": 41}}), "CB/dev has other examples"),
    ],
)
def test_runs_that_cannot_stand_in_one_table_are_refused(change, said, tables):
    code, out, error = tables([made_up(), made_up(seed=43, **change)])
    assert code == 2 and said in error and error.count("\n") == 1 and not out


def test_what_cannot_be_read_is_refused(tables, tmp_path, capsys, monkeypatch):
    assert tables([made_up(), made_up()])[0] == 2 and tables([{}])[0] == 2
    other = made_up(answers={"kd": 21}, run="cb/again", reward="real")
    assert (
        "runs cb/again and cb/paper-col-binary-policy-seed42: both have the row kd of CB, seed 42"
        in tables([made_up(), other])[2]
    )
    assert "runs.jsonl:2: not the record of a run" in tables([made_up(), {}])[2]
    assert make_tables.main([str(tmp_path / "runs.jsonl"), str(tmp_path), "--table", "1a"]) == 2
    assert "no finished run found" in tables([])[2]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        make_tables.main(["nowhere", "--table", "1a"])
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "figures", None)
    code, _, error = tables(column(seeds=(42,)), "--figures", tmp_path / "figures")
    assert code == 2 and "pip install -r scripts/requirements.txt" in error


def test_runs_of_the_command_become_records(command, tables, tmp_path, lines, capsys):
    """From run folders and from the compact file the same table; the record holds what the folder says."""
    flags = dict(num_episodes=3, undistilled=True, kd_200=True)
    for seed in (42, 43):
        assert command(folder=f"cb/{seed}", seed=seed, **flags)[0] == 0
    assert command(folder="cb/stopped", seed=44, stop_after="kd", **flags)[0] == 0
    (tmp_path / "cb" / "unfinished").mkdir()
    (tmp_path / "cb" / "unfinished" / "args.json").write_text("{}")
    capsys.readouterr()
    compact, texts = tmp_path / "compact.jsonl", []
    assert make_tables.main([str(tmp_path), "--table", "1a", "--compact", str(compact)]) == 0
    texts.append(capsys.readouterr().out)
    assert make_tables.main([str(compact), "--table", "1a"]) == 0
    texts.append(capsys.readouterr().out)
    assert texts[0].replace("Left out: unfinished, unfinished.\n\n", "") == texts[1] != texts[0]
    record, folder = run_records.read_compact(compact)[0], tmp_path / "cb" / "42"
    result, metrics = json.loads((folder / "result.json").read_text()), lines(folder / "metrics.jsonl")
    assert record["rows"] == result["rows"] and record["run"] == "cb/42"
    assert record["looks"]["mpdistil"] == [
        line["scores"]["dev"]["correct"] for line in metrics if line["phase"] == "mpdistil"
    ]
    assert len(record["looks"]["kd_200"]) == 3 and len(record["rewards"]) == 3
    steps = [line["actions"] for line in lines(folder / "trajectories.jsonl")]
    assert [[record["flags"]["tasks"][int(sign)] for sign in signs] for signs in record["actions"]] == steps
    assert str(tmp_path) not in compact.read_text()                       # no paths of a machine
    counts = [result_of["rows"]["kd"]["dev"]["correct"] for result_of in run_records.read_compact(compact)]
    assert f"| {', '.join(map(str, counts))} " in texts[0]


def test_formats(tables, tmp_path):
    records = column(seeds=(42, 43)) + column("COPA", seeds=(42, 43))
    rows = list(csv.DictReader(io.StringIO(tables(records, "--format", "csv")[1])))
    assert len(rows) == 13 * (2 * 2 + 4) and {row["task"] for row in rows if row["seed"]} == {"CB", "COPA"}
    teacher = next(row for row in rows if row["task"] == "CB" and row["row"] == "teacher")
    assert teacher == {
        "task": "CB",
        "metric": "acc",
        "row": "teacher",
        "seed": "42",
        "percent": "75.0",
        "correct": "30",
        "total": "40",
        "paper_percent": "83.9",
    }
    tex = tables(records, "--format", "tex")[1]
    assert (
        tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 9
        and "Teacher & missing & 75.3 & 75.0 ± 0.0 & 83.9" in tex
    )
    page = tmp_path / "page.html"
    assert tables(records, "--format", "html", "--output", page, "--figures", tmp_path / "figures")[0] == 0
    html = page.read_text()
    assert html.count("<svg") == 5 and html.count("<table") == 9 and "<code>paper</code>" in html
    # nothing to fetch: pictures lie in it, links lead to its own parts and to the runs
    assert html.count('<a href="runs.jsonl">') == len(records)
    assert (
        not re.search(r'(src|href)="(?!#|data:|runs.jsonl)', html)
        and not re.search(r"url\((?!#)", html)
        and "<script" not in html
    )
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(
        f"{name}.{ending}"
        for name in (
            "table_1a",
            *(f"{kind}_{task}" for kind in ("episodes", "curriculum") for task in ("CB", "COPA")),
        )
        for ending in ("png", "svg")
    )


# --- the committed results ----------------------------------------------------------------------------------

def sections(text):
    """{heading: what stands below it} of markdown."""
    parts = re.split(r"^#+ (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


RESULTS = sorted((ROOT / "results").glob("*/runs.jsonl"))


def test_where_phases_alternate_rows_are_not_matched_across_losses(tables):
    records = column()
    for record in records:
        record.update(protocol="released", phase_order="alternating")
    # another kd, with the loss
    records += [made_up(seed=45, loss="com", protocol="released", phase_order="alternating")]
    text = tables(records)[1]
    assert "Phases 2 and 3 alternate" in text and "`without curriculum` is the same computation" not in text
    part = text[text.index("Paired"):text.index("What the policy")]
    pairs = re.findall(r"^\| MPDistil, (\w+) \+ \w+ +\| ([^|]*?) +\|", part, re.MULTILINE)
    assert len(pairs) == 10 and {other for loss, other in pairs if loss == "competitive"} == {"Teacher"}
    assert row_of(text[text.index("Correct"):], "Distilled student")[1] == "20, 20, 20"


@pytest.mark.parametrize("runs", RESULTS, ids=lambda path: path.parent.name)
def test_committed_pages_come_from_the_committed_runs(runs, tmp_path):
    """The same bytes; of the PNG files, which packed pictures are, the same pixels."""
    folder, table = runs.parent, runs.parent.name.split("-")[0].removeprefix("table_")
    here = tmp_path / "runs.jsonl"
    here.write_bytes(runs.read_bytes())
    for name, flags in (
        ("table.md", []),
        ("table.tex", ["--format", "tex"]),
        ("table.csv", ["--format", "csv"]),
        ("page.html", ["--format", "html", "--figures", str(tmp_path / "figures")]),
    ):
        assert (
            make_tables.main(
                [
                    str(here),
                    "--table",
                    table,
                    "--note",
                    str(folder / "note.txt"),
                    "--output",
                    str(tmp_path / name),
                    *flags,
                ]
            )
            == 0
        )
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    there = {path.name for path in (folder / "figures").iterdir()}
    assert there == {path.name for path in (tmp_path / "figures").iterdir()}
    for name in there:
        made, kept = tmp_path / "figures" / name, folder / "figures" / name
        same = (
            np.array_equal(imread(made), imread(kept))
            if made.suffix == ".png"
            else made.read_bytes() == kept.read_bytes()
        )
        assert same, name


def test_the_results_say_what_the_committed_page_says():
    results = (ROOT / "docs" / "RESULTS.md").read_text()
    assert RESULTS
    for path in RESULTS:
        page = sections((path.parent / "table.md").read_text())
        main = re.search(r"(^\|.*\n)+", next(iter(page.values())), re.MULTILINE).group()
        assert main in results, f"the main table of {path.parent.name}"
        for line in page["What the runs say"].strip().splitlines():
            assert line in results, line


def test_the_readme_says_what_the_committed_page_says():
    """Its headline table has the page's rows and some of its columns; its three sentences are beginnings of
    the page's."""
    headline = sections((ROOT / "README.md").read_text())["Result"]
    page = sections((ROOT / "results" / "table_1a-minilm" / "table.md").read_text())
    ours, theirs = ([[cell.strip() for cell in line.strip("|").split("|")]
                     for line in re.search(r"(^\|.*\n)+", text, re.MULTILINE).group().splitlines()
                     if not re.fullmatch(r"[|:-]+", line)]
                    for text in (headline, next(iter(page.values()))))
    columns = [0, *(theirs[0].index(name) + shift for name in ours[0][1::2] for shift in (0, 1))]
    assert ours == [[row[column] for column in columns] for row in theirs] and len(columns) == 5
    said = [" ".join(line.split()).removesuffix(".")
            for line in re.findall(r"^- (.*(?:\n  .*)*)", headline, re.MULTILINE)]
    assert len(said) == 3
    for sentence in said:
        assert re.search(rf"^- {re.escape(sentence)}[;.]", page["What the runs say"], re.MULTILINE), sentence

"""Statistics against figures worked out by hand, and make_tables.py: what its pages say of made-up runs,
and the committed results."""
import csv
import gc
import io
import itertools
import json
import re
import sys

import matplotlib
import numpy as np
import pytest
from scipy import stats

from lib import run_records
from lib.comparisons import compare
from lib.pages import sentences
from lib.rows import MPDISTIL, ROWS
from lib.run_records import Found
from lib.statistics import (
    chance_of_wins,
    corrected,
    count_wins,
    exact_interval,
    expected_best,
    mean_interval,
    paired_t_p,
    permutation_p,
)

import make_tables

# --- statistics ---------------------------------------------------------------------------------------------

def test_exact_interval():
    low, high = exact_interval(0, 10)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** 0.1)  # (1 - p)^10 = 2.5%
    assert exact_interval(10, 10) == pytest.approx((0.025 ** 0.1, 1))


def test_differences_of_squared_errors():
    """Which are no multiples of one number: random swaps give about what all swaps give, a smallest spread
    over seeds is not assumed, and an interval may reach beyond 1."""
    random = np.random.default_rng(0)
    first, second = -random.random((3, 9)) * 4, -random.random((3, 9)) * 4
    sums = (first - second).sum(0)
    signs = np.array(list(itertools.product((1, -1), repeat=9)))
    exact = np.mean(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9)
    assert permutation_p(first, second) == pytest.approx(exact, abs=0.02)
    assert permutation_p(first, first) == 1 and permutation_p(first, second) == permutation_p(first, second)
    expected = stats.ttest_rel(first.mean(1), second.mean(1)).pvalue
    assert paired_t_p(first, second, counts=False) == pytest.approx(expected)
    assert paired_t_p(first, first, counts=False) == 1 and paired_t_p(first, first - 1, counts=False) == 0
    mean, low, high = mean_interval(first - second + 3, ends=(None, None))
    assert low < mean < high and high > 1


def test_mean_interval():
    # two seeds that differ say nothing
    assert mean_interval(np.array([[1, 1, 1, 1], [0, 0, 0, 0]])) == (0.5, -1, 1)
    assert mean_interval(np.array([[1, 1, 1, 1], [0, 0, 0, 0]]), ends=(0.0, 1.0)) == (0.5, 0, 1)
    # t, 4 degrees of freedom: 2.776 sd / sqrt(5)
    mean, low, high = mean_interval(np.repeat([[0], [0], [1], [1], [1]], 9, 1))
    assert (mean, low, high) == pytest.approx((0.6, 0.6 - 2.776445 * 0.3 ** 0.5 / 5 ** 0.5, 1))
    values = (np.random.default_rng(1).random((5, 400)) < 0.6).astype(int)
    mean, low, high = mean_interval(values)
    # independent answers: up to sqrt(3)
    assert mean == values.mean() and 1 < (high - low) / (2 * 1.96 * np.sqrt(0.24 / 2000)) < 2
    assert mean_interval(values) == mean_interval(values)  # the same draws
    assert mean_interval(values[:1])[0] == values[0].mean()
    assert mean_interval(np.zeros((3, 7))) == (0, 0, 0)


def test_permutation_p():
    one, none = np.ones((1, 4), dtype=int), np.zeros((1, 4), dtype=int)
    # 4 discordant examples, McNemar's 2 * (1/2)^4
    assert permutation_p(one, none) == pytest.approx(2 / 16)
    # five equal seeds are no more evidence
    assert permutation_p(np.repeat(one, 5, 0), np.repeat(none, 5, 0)) == pytest.approx(2 / 16)
    assert permutation_p(one, one) == 1
    first = np.array([[1, 1, 1, 1, 1, 1, 0] + [1] * 20])
    second = np.array([[0, 0, 0, 0, 0, 0, 1] + [1] * 20])
    assert permutation_p(first, second) == pytest.approx(2 * 8 / 2 ** 7)  # McNemar: 6 against 1
    first, second = np.ones((1, 60), dtype=int), np.array([[0] * 40 + [1] * 20])
    assert permutation_p(first, second) == pytest.approx(2 / 2 ** 40)  # counted, not drawn
    # differences 2, 1 and -1 over two seeds: of 8 signed sums, 6 are at least 2 in size
    assert permutation_p([[1, 1, 0], [1, 0, 0]], [[0, 0, 1], [0, 0, 0]]) == pytest.approx(6 / 8)
    # means over three rows, differences 1/3 and 1: 4/3 and 2/3 in size, twice each
    assert permutation_p([[1 / 3, 1.0]], [[0.0, 0.0]]) == pytest.approx(2 / 4)


def test_paired_t_p():
    differences = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    # by seed 1/4, 2/4, 3/4: t = 2 sqrt(3), 2 degrees of freedom: p = 1 - t / sqrt(2 + t^2)
    t = 12 ** 0.5
    assert paired_t_p(differences, np.zeros((3, 4))) == pytest.approx(1 - t / (2 + t ** 2) ** 0.5)
    assert paired_t_p(np.zeros((3, 4)), differences) == pytest.approx(1 - t / (2 + t ** 2) ** 0.5)
    assert paired_t_p(differences[:1], np.zeros((1, 4))) == 1  # one seed says nothing of others
    assert paired_t_p(differences, differences) == 1
    # seeds that agree to the example: the spread of rounding, sqrt(1/6) of an example
    equal, t = np.repeat([[1, 1, 0, 0]], 3, 0), 2 / (1 / 6 / 3) ** 0.5
    assert paired_t_p(equal, np.zeros((3, 4))) == pytest.approx(1 - t / (2 + t ** 2) ** 0.5)


def test_holm():
    assert corrected([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and corrected([]) == []


def test_expected_best():
    assert expected_best([4, 1, 3, 2], 1) == 2.5
    assert expected_best([4, 1, 3, 2], 4) == 4 and expected_best([4, 1, 3, 2], 99) == 4
    assert expected_best([4, 1, 3, 2], 2) == pytest.approx(20 / 6)  # of the six pairs: 4 4 4 3 3 2


def test_wins_and_their_chance():
    assert count_wins([3, 3, 3], [[4, 3, 1], [2, 3, 2]]) == 1
    teacher, student = [np.array([0]), np.array([0])], [np.array([1]), np.array([1])]
    assert chance_of_wins(teacher, [student]) == pytest.approx(1 / 4)  # both tasks, each one in two
    assert chance_of_wins(student, [teacher]) == 1
    # five equals: the teacher is the best once in five
    rng = np.random.default_rng(2)
    teacher, *students = ([rng.random(300)] for _ in range(5))
    while count_wins([teacher[0].sum()], [[student[0].sum()] for student in students]) == 0:
        teacher[0] = rng.random(300)
    assert chance_of_wins(teacher, students) == pytest.approx(0.8, abs=0.03)


# --- pages of made-up runs ----------------------------------------------------------------------------------

EXAMPLES, LOOKS = 40, 12
ENVIRONMENT = {"python": "3", "torch": "2", "transformers": "5", "platform": "Linux", "cpu": "some",
               "cpu_threads": 2, "gpu": None, "deterministic": None, "cuda": None, "git_commit": "c" * 40,
               "git_changes": False}
PICKS = {("col", "binary", "policy"): "0111", ("col", "real", "policy"): "0110",
         ("com", "binary", "policy"): "0101", ("com", "real", "policy"): "0100",
         ("col", "binary", "uniform"): "0011"}  # of each step of an episode


def figures_of(right, **when):
    """A row's figures; right: how many of the examples, or which."""
    signs = right if isinstance(right, str) else "1" * right + "0" * (EXAMPLES - right)
    correct = signs.count("1")
    return {"accuracy": correct / len(signs), "correct": correct, "total": len(signs), "right": signs, **when}


def made_up(task="CB", seed=42, loss="col", reward="binary", curriculum="policy", answers=None, **changes):
    """A record; answers: {row: how many of the examples are right, or which}."""
    last = "no_curriculum" if curriculum == "main_task" else "mpdistil"
    answers = {"teacher": 30, "kd": 20, "meta_teacher": 30, **({last: 20} if curriculum else {}),
               **(answers or {})}
    rows = {row: {"dev": figures_of(right, **({"episode": LOOKS} if row == last else {"epoch": 1}))}
            for row, right in answers.items()}
    examples = len(rows["teacher"]["dev"]["right"])
    episodes = LOOKS if curriculum else 0
    sizes = {f"{task}/dev": examples, f"{task}/train": 200, f"{task}/quiz": 50, "BoolQ/quiz": 853}
    return {
        "run": f"{task.lower()}/paper-{loss}-{reward}-{curriculum}-seed{seed}", "task": task,
        "protocol": "paper", "set": [], "loss": loss, "reward": reward, "curriculum": curriculum or "policy",
        "seed": seed, "stopped_after": None, "select_on": "dev", "dev_labels": [22, examples - 22],
        "rows": rows, "seconds": {"teacher": 1800.0, **({"mpdistil": 900.0} if curriculum else {})},
        "peak_memory_bytes": 2 ** 30, "phases": {"teacher": f"{task}{seed}"}, "phase_order": "sequential",
        "encoder": {"teacher": "tiny", "student": "tiny", "nlayers": 3, "teacher_sha256": "a" * 64,
                    "student_sha256": "a" * 64},
        "flags": {"teacher_epochs": 10, "epochs": 10, "meta_epochs": 10, "num_episodes": LOOKS,
                  "train_dataloader_size": 8, "val_dataloader_size": 8, "tasks": ["BoolQ", "CB"]},
        "data": {name: {"examples": size} for name, size in sizes.items()},
        "looks": {"mpdistil" if row == last else row: [10] * (LOOKS - 1) + [figures["dev"]["correct"]]
                  for row, figures in rows.items()},
        "rewards": [0.5] * episodes, "entropies": [1.0] * episodes,
        "actions": [PICKS.get((loss, reward, curriculum), "1111")] * episodes,
        "environment": ENVIRONMENT, **changes}


def column(task="CB", seeds=(42, 43, 44), **answers):
    """Records of all rows; answers: {row of the table: right answers}."""
    shared = {row: answers.get(row, right) for row, right in (
        ("teacher", 30), ("student", 20), ("kd", 20), ("kd_200", 20), ("kd_quiz", 20))}
    records = []
    for seed in seeds:
        records.append(made_up(task, seed, curriculum=None, answers=shared))
        for name, row in ROWS.items():
            if row.phase == "phase 4" and not row.learning:
                records.append(made_up(task, seed, row.loss, row.reward, row.curriculum, answers={
                    **shared, row.found_as: answers.get(name, 20)}))
    return records


def variant_of(records, name):
    """Those of the records that have a row of phase 4."""
    row = ROWS[name]
    return [record for record in records if row.found_as in record["rows"] and (
        record["loss"], record["reward"], record["curriculum"]) == (row.loss, row.reward, row.curriculum)]


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
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def sections(text):
    """{heading: what stands below it} of markdown."""
    parts = re.split(r"^#+ (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def test_ours_beside_the_papers(tables, tmp_path):
    records = column() + column("COPA", seeds=(42,))
    code, text, _ = tables(records)
    assert code == 0
    assert row_of(text, "Teacher") == ["Teacher", "75.0 ± 0.0", "83.9", "75.0", "63.0"]
    assert list(sections(text))[1:3] == ["What the runs say", "Ours beside the paper's"]  # found first
    assert "CB acc (n = 3)" in text and "COPA acc (n = 1)" in text
    assert "Missing: no runs of BoolQ acc, RTE acc, WiC acc, WSC acc." in text
    assert row_of(text, "Majority class")[1] == "55.0" and "| Teacher" in text and "30, 30, 30" in text
    assert "BoolQ quiz 853 examples, where the official files give 943" in text
    assert "COPA train and quiz together 250" in text
    assert "CB train" not in text and "--max" not in text and "12 episodes (not the default, 200)" in text
    # 4 teachers of half an hour that runs share, 4 x 7 times a quarter of an hour
    assert "32 runs with 9.0 process hours" in text
    for record in records[:8]:  # those of CB's first seed
        record["rows"]["kd"]["dev"] = figures_of(24)
    assert row_of(tables(records)[1], "Distilled student")[1] == "53.3 ± 5.8"  # 60, 50, 50
    text = tables([record for record in records if record["curriculum"] != "uniform"])[1]
    assert "Missing rows: CB: uniform, mpdistil_learning; COPA: uniform, mpdistil_learning." in text
    assert "\n| Control: uniform" not in text  # a control that no run has takes no line
    text = tables([record for record in records if (record["curriculum"], record["task"]) !=
                   ("uniform", "CB")])[1]
    assert row_of(text, "Control: uniform")[1] == "missing"
    note = tmp_path / "note.txt"
    note.write_text("An encoder of our own.\n")
    text = tables(records, "--note", note)[1]
    assert "## What was run\n\n- An encoder of our own.\n- Encoder: tiny" in text
    text = tables(records + column("RTE"), table="4")[1]
    assert text.startswith("# Table 4: GLUE") and "no runs of MNLI acc matched" in text
    assert row_of(text, "Teacher")[1] == "75.0 ± 0.0"  # RTE is the one column with runs
    assert "Left out: 24 runs of CB, which has no column; 8 runs of COPA, which has no column." in text
    assert "--table 4: runs of CB, COPA found, expected some of MNLI" in tables(records, table="4")[2]


def test_what_the_controls_differ_in_is_said(tables):
    """Phase 4 sees quiz, and its batches may have another size than those of kd_200."""
    records = column()
    text = tables(records)[1]
    assert "25% more labels than train alone. `kd_quiz` is distilled on train and quiz together." in text
    assert row_of(text, "Control: distilled on train and quiz together")[1] == "50.0 ± 0.0"
    assert "A step of `kd_200`" not in text
    line = row_of(text, "MPDistil, collaborative + binary | Control: distilled on train and quiz")
    assert line[2:5] == ["12 : 12", "+0.0", "+0.0 to +0.0"]
    said = "A step of `kd_200` has 8 examples, a step of phase 4 16."
    for record in records:
        record["flags"]["val_dataloader_size"] = 16
    assert said in tables(records)[1]  # older records: kd_200 had the batches of phase 2
    for known, expected in ((8, True), (16, False), (None, False)):
        for record in records:
            record["kd_200_batch"] = known
        assert (said in tables(records)[1]) == expected


# --- directions ---------------------------------------------------------------------------------------------

def test_a_direction_is_named_only_where_the_tests_carry_it(tables):
    same = tables(column())[1]
    assert ("The learnt policy is not shown to differ from a uniform one in any of 4 comparisons (CB +0.0"
            " points); in 25.0 to 75.0% of the steps it picks the very task that chance alone picks with the"
            " same seed." in same)
    # 10 of 40: 2 / 2^10, times 22 comparisons
    assert "A student is below its teacher in 4 of 4 comparisons (CB -25.0 points)" in same
    assert "what is kept is the best of 12 against 12 looks" in same
    better = tables(column(**{name: 36 for name in MPDISTIL}))[1]
    assert "The learnt policy is better than a uniform one in 4 of 4 comparisons (CB +40.0 points);" in better
    for control in ("the distilled student that is distilled on for as many steps and looks (kd_200)",
                    "the one that is distilled on train and quiz together (kd_quiz)"):
        assert f"Phase 4 beats {control} in 4 of 4 comparisons" in better
    slightly = tables(column(**{name: 24 for name in MPDISTIL}))[1]  # 4 of 40: p = 1/8
    assert ("The learnt policy is not shown to differ from a uniform one in any of 4 comparisons (CB +10.0"
            " points);" in slightly)
    line = row_of(slightly, "MPDistil, collaborative + binary | Distilled student")
    assert line[2:] == ["12 : 12", "+10.0", "+2.5 to +20.0", "+4 +4 +4", "0.125", "0.003", "1.000",
                        "no difference shown"]
    one = tables(column(seeds=(42,), **{name: 36 for name in MPDISTIL}))[1]
    assert ("The learnt policy was compared in one seed alone, which shows no direction (CB +40.0 points);"
            in one)
    real = tables(column(mpdistil_col_real=36, mpdistil_com_real=36))[1]
    assert "The real reward is better than the binary one in 1 of 1 comparison (CB +40.0 points)." in real
    assert ("The competitive loss is not shown to differ from the collaborative one in any of 1 comparison"
            " (CB +0.0 points)." in real)


def test_methods_to_compare_with_stand_beside_kd(tables):
    records = column()
    for record in records:
        if record["curriculum"] == "policy" and "kd_200" in record["rows"]:
            record["rows"]["hinton_kd"] = {"dev": figures_of(36, epoch=2)}
            record["looks"]["hinton_kd"] = [10, 36]
    text = tables(records)[1]
    assert row_of(text, "KD (Hinton et al. 2015)")[1] == "90.0 ± 0.0" and "ALP-KD" not in text
    line = next(line for line in text.splitlines() if line.startswith("| KD (Hinton et al. 2015)")
                and "Distilled student" in line)
    assert "+40.0" in line and "hinton_kd" not in text.split("Missing rows")[1].split("\n")[0]


def learning(records, **changes):
    """The runs of a policy that can learn beside records of CB."""
    return [{**made_up(seed=seed, reward="real", answers={"mpdistil": 39}, set=["advantage=step_mean",
                                                                              "reward_of=improvement"]),
             "run": f"cb/paper-advantage-col-real-learning-seed{seed}", "learning": True, **changes}
            for seed in sorted({record["seed"] for record in records})]


def test_a_policy_that_can_learn_stands_beside_the_others(tables):
    records = column()
    runs = learning(records)
    for record in runs:
        record["flags"] = {**record["flags"], "policy_learning_rate": 1e-2, "meta_learning_rate": 1e-3}
    for record in records:
        record["flags"] = {**record["flags"], "policy_learning_rate": 1e-3, "meta_learning_rate": 1e-3}
    code, text, error = tables(records + runs)
    assert code == 0, error
    assert row_of(text, "Control, ours")[1] == "97.5 ± 0.0"
    assert row_of(text, "MPDistil, collaborative + real")[1] == "50.0 ± 0.0"  # not one of its runs
    assert "`mpdistil_learning` is ours: --set advantage=step_mean reward_of=improvement" in text
    assert "--policy_learning_rate 0.01," not in text and "Protocol `paper`." in text
    assert "The policy that can learn (ours)" in text and "Missing rows: CB: kd_quiz" not in text
    lines = [line for line in text.splitlines() if line.startswith("| Control, ours") and "+47.5" in line]
    assert len(lines) == 4  # kd_200, uniform, the main task alone, the policy as published
    # a rate or a choice of the whole sweep is no difference between its runs; another one is
    for record in records + runs:
        record["flags"] = {**record["flags"], "meta_learning_rate": 5e-3}
    for record in records:
        record["flags"]["policy_learning_rate"] = 5e-3
        record["set"] = ["advantage=step_mean"]
    assert tables(records + runs)[0] == 0
    for record in runs:
        record["set"] = [*record["set"], "meta_term=attached"]
    code, _, error = tables(records + runs)
    assert code == 2 and "meta_term=attached" in error


def test_where_the_loss_reaches_the_student_rows_are_not_matched_across_losses(tables):
    records = column()
    for record in records:
        record["set"] = ["meta_term=attached"]
    text = tables(records)[1]
    uniform = [line for line in text.splitlines() if re.match(r"\| MPDistil, .*\| Control: uniform", line)]
    assert len(uniform) == 2 and all("collaborative" in line for line in uniform)


def test_seeds_and_the_number_of_comparisons_count(tables):
    """Differences that are clear over examples, for these seeds, and whose interval leaves zero out: over
    seeds p is 0.01, which is no direction among 22 comparisons."""
    records = column(seeds=(42, 43, 44, 45, 46))
    for record, more in zip(variant_of(records, "mpdistil_col_binary"), (6, 12, 3, 14, 9), strict=True):
        record["rows"]["mpdistil"]["dev"] = figures_of(20 + more, episode=LOOKS)
    line = row_of(tables(records)[1], "MPDistil, collaborative + binary | Control: uniform")
    low, high = map(float, line[4].split(" to "))
    assert line[5] == "+6 +12 +3 +14 +9" and 0 < low < high
    assert line[6] == "< 0.001" and line[7] == "0.011"
    assert line[8:] == ["0.216", "no difference shown"]


def null_page(rng, sizes, seeds, spread, lasting=0.0):
    """Records of a page on which no row is better than another: every row and seed has a level of its own,
    `spread` (standard deviation, in shares) around 0.6, which no row has more of than another; every
    example its difficulty. lasting: standard deviation of what a row has for or against an example on all
    seeds."""
    records, shared = [], ("teacher", "kd", "kd_200", "kd_quiz")
    for task, examples in sizes.items():
        difficulty = rng.uniform(-0.35, 0.35, examples)
        chance = {row: 0.6 + difficulty + lasting * rng.standard_normal(examples)
                  for row in (*shared, *MPDISTIL, "uniform")}
        for seed in range(42, 42 + seeds):
            answers = {}
            for row, mean in chance.items():
                right = rng.random(examples) < mean + spread * rng.standard_normal()
                answers[row] = "".join("01"[int(sign)] for sign in right)
            controls = {row: answers[row] for row in shared}
            records.append(made_up(task, seed, curriculum=None, answers=controls))
            for name in (*MPDISTIL, "uniform"):
                row = ROWS[name]
                records.append(made_up(task, seed, row.loss, row.reward, row.curriculum,
                                       {**controls, "mpdistil": answers[name]}))
    return records


def names_a_direction(records):
    """Whether a page does: in the verdicts of its comparisons, without which its sentences may not."""
    found = Found(records)
    rows, factors = compare(found)
    verdicts = {comparison.verdict for comparison in (*rows.values(), *factors.values())}
    said = " ".join(sentences(found, rows, factors, {}))
    named = re.search(r"is better|is worse|beats|loses|is above|is below", said) is not None
    assert verdicts <= {"higher", "lower", "no difference shown"}
    assert not named or verdicts & {"higher", "lower"}
    return bool(verdicts & {"higher", "lower"})


SMALL, LARGE = {"CB": 56, "COPA": 100}, {"RTE": 277, "WiC": 638}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [SMALL, LARGE], ids=lambda sizes: "+".join(sizes))
@pytest.mark.parametrize("seeds, spread, lasting", [
    (5, 0.05, 0), (5, 0.07, 0), (5, 0.025, 0), (3, 0.05, 0), (3, 0.07, 0), (2, 0.07, 0), (5, 0.05, 0.15),
    (5, 0.025, 0.3)])
def test_pages_on_which_nothing_differs_name_no_direction(sizes, seeds, spread, lasting, monkeypatch):
    """But for one in twenty, within the error of so many pages (two standard deviations)."""
    monkeypatch.setattr(gc, "collect", lambda: None)  # statsmodels does it for each page
    rng, pages = np.random.default_rng(3), 400
    share = np.mean([names_a_direction(null_page(rng, sizes, seeds, spread, lasting)) for _ in range(pages)])
    print(f"{'+'.join(sizes)}, {seeds} seeds, spread {spread}, lasting {lasting}: {share:.1%} of {pages}")
    assert share <= 0.05 + 2 * (0.05 * 0.95 / pages) ** 0.5


# --- one computation, counted once --------------------------------------------------------------------------

def lines_of_differences(text):
    """(row, minus, ..., so) of all tables of differences on a page."""
    part = text[text.index("## Paired differences"):text.index("## What the policy does")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()
            if line.startswith("| MPDistil")]
    return {(row[0], row[1]): row[2:] for row in rows}


def as_if_one_run(records, *names):
    """Rows of phase 4 that picked what the first one picked, and answered what it answered."""
    for others in zip(*(variant_of(records, name) for name in names), strict=True):
        for record in others[1:]:
            record.update(actions=others[0]["actions"], looks=others[0]["looks"])
            record["rows"]["mpdistil"] = others[0]["rows"]["mpdistil"]


def test_the_same_student_is_compared_once(tables):
    """Two rows that are one student give one comparison, the third differs and counts; that with each other
    leaves the page's count, its family and its intervals."""
    records = column(mpdistil_col_binary=36)

    def times():
        """By how much the smallest p is corrected."""
        comparison = compare(Found(records))[0]["CB", "mpdistil_col_binary", "uniform"]
        return comparison.p_corrected / max(comparison.p_values)

    assert times() == pytest.approx(4 * 5 + 2)
    as_if_one_run(records, *MPDISTIL[:3])
    assert times() == pytest.approx(2 * 5 + 1)  # of rows; both factors have the same sides
    text = tables(records)[1]
    lines = lines_of_differences(text)
    labels = ["MPDistil, collaborative + binary", "MPDistil, collaborative + real",
              "MPDistil, competitive + binary"]
    for against, so in (("Distilled student", "higher"), ("Teacher", "no difference shown"),
                        ("Control: uniform policy, collaborative + binary", "higher")):
        assert lines[labels[0], against][-1] == so
        for label in labels[1:]:
            assert lines[label, against] == [""] * 7 + [f"same run as {labels[0]}"]
    assert "better than a uniform one in 1 of 2 comparisons" in text
    assert row_of(text, labels[1])[1] == "90.0 ± 0.0 (same run)"
    assert row_of(text, labels[0])[1] == "90.0 ± 0.0" and "36, 36, 36 (same run)" in text
    assert (f"on every seed; one student, which counts once. CB: {labels[1]}; {labels[2]}: as {labels[0]}."
            in text)
    assert row_of(text[text.index("Does the student"):], labels[1])[2:7] == ["same run", "", "", "", ""]


def test_sides_that_are_one_computation_are_no_comparison(tables):
    records = column()
    as_if_one_run(records, *MPDISTIL)
    text = tables(records)[1]
    for factor in ("real - binary", "competitive - collaborative"):
        assert row_of(text, f"CB: {factor}")[1:] == [""] * 7 + ["same run"]
    assert ("The real reward and the binary one: the same run on CB. The competitive loss and the"
            " collaborative one: the same run on CB." in text)
    assert "A student is below its teacher in 1 of 1 comparison (CB -25.0 points)" in text
    records = column()
    as_if_one_run(records, "mpdistil_col_binary", "uniform")
    line = lines_of_differences(tables(records)[1])[
        "MPDistil, collaborative + binary", "Control: uniform policy, collaborative + binary"]
    assert line == [""] * 7 + ["same run"]


@pytest.mark.parametrize("change", [
    lambda record: record.update(actions=["0101"] + record["actions"][1:]),
    lambda record: record["looks"]["mpdistil"].__setitem__(0, 11),
    lambda record: record["rows"]["mpdistil"]["dev"].update(right="0" + "1" * 20 + "0" * 19),
    lambda record: record["rows"]["mpdistil"]["dev"].update(episode=LOOKS - 1),
    lambda record: record["phases"].update(kd="another student")])
def test_answers_alone_do_not_make_one_run(change):
    """On one seed of three: other picks, other looks, other answers, another look that was kept, another
    student to begin with."""
    records = column()
    as_if_one_run(records, "mpdistil_col_binary", "mpdistil_com_binary")
    found = Found(records)
    assert found.same_run("CB", "mpdistil_com_binary") == "mpdistil_col_binary"
    assert found.same_run("CB", "mpdistil_col_binary") == "mpdistil_col_binary"
    assert found.same_run("CB", "teacher") == "teacher"
    record = json.loads(json.dumps(variant_of(records, "mpdistil_com_binary")[1]))
    records[records.index(variant_of(records, "mpdistil_com_binary")[1])] = record
    change(record)
    assert Found(records).same_run("CB", "mpdistil_com_binary") == "mpdistil_com_binary"


def test_what_comes_after_the_kept_look_does_not_count():
    """But for rewards where the policy's loss moves the student."""
    records = column()
    as_if_one_run(records, "mpdistil_col_binary", "mpdistil_com_binary")
    for record in records:
        if "mpdistil" in record["rows"]:
            record["rows"]["mpdistil"]["dev"]["episode"] = 3
    record = variant_of(records, "mpdistil_com_binary")[0]
    record.update(actions=record["actions"][:3] + ["0000"] * 9, rewards=[0.7] * LOOKS)
    assert Found(records).same_run("CB", "mpdistil_com_binary") == "mpdistil_col_binary"
    for record in records:
        record["set"] = ["state_gradient=attached"]
    assert Found(records).same_run("CB", "mpdistil_com_binary") == "mpdistil_com_binary"


@pytest.mark.parametrize("both", [False, True])
def test_without_curriculum_one_run_stands_for_both_losses(both, tables):
    """As the sweep runs it today, and with both runs, as older results have them."""
    records = column(no_curriculum_col=24, no_curriculum_com=24)
    if not both:
        for record in variant_of(records, "no_curriculum_com"):
            records.remove(record)
    code, text, _ = tables(records)
    assert code == 0 and row_of(text, "without curriculum, collaborative")[1] == "60.0 ± 0.0"
    assert row_of(text, "without curriculum, competitive")[1] == "60.0 ± 0.0 (same run)"
    assert "without curriculum, competitive: as without curriculum, collaborative." in text
    lines = list(csv.DictReader(io.StringIO(tables(records, "--format", "csv")[1])))
    same = {line["row"]: line["same_run_as"] for line in lines if line["task"] == "CB"}
    assert same["no_curriculum_com"] == "no_curriculum_col" and not same["no_curriculum_col"]


def test_where_phases_alternate_rows_are_not_matched_across_losses(tables):
    records = column(no_curriculum_com=24)
    for record in records:
        record.update(protocol="released", phase_order="alternating")
    # another kd, with the loss
    records += [made_up(seed=45, loss="com", protocol="released", phase_order="alternating")]
    text = tables(records)[1]
    assert "Phases 2 and 3 alternate" in text and "`without curriculum` is the same computation" not in text
    pairs = [(row.split()[1], other) for row, other in lines_of_differences(text)]
    assert len(pairs) == 2 * 5 + 2
    assert {other for loss, other in pairs if loss == "competitive"} == {"Teacher"}
    assert row_of(text[text.index("Correct"):], "Distilled student")[1] == "20, 20, 20"
    assert row_of(text, "without curriculum, competitive")[1] == "60.0 ± 0.0 (n = 3)"
    for record in variant_of(records, "no_curriculum_com"):
        records.remove(record)
    assert row_of(tables(records)[1], "without curriculum, competitive")[1] == "missing"


# --- wins, selection, the policy ----------------------------------------------------------------------------

def test_wins_and_selection(tables):
    text = tables(column(mpdistil_com_real=31) + column("COPA"))[1]
    assert row_of(text, "best of the four")[1:5] == ["2", "1", "0", "1"]
    assert row_of(text, "best of the four")[6:10] == ["-", "4", "1", "1"]
    assert ("by their means alone, which show no direction, single variants are above it in 0 of 2 to 1 of 2"
            " tasks and the best of the four in 1 of 2, whose chance is at most 0." in text)
    wins = text[text.index("Does the student"):]
    assert row_of(wins, "MPDistil, competitive + real")[2:7] == ["1", "0", "1", "0.697", "0"]
    clear = tables(column(mpdistil_com_real=40, teacher=20))[1]
    assert row_of(clear[clear.index("Does the student"):], "MPDistil, competitive + real")[6] == "1"
    kept = row_of(text[text.index("What selecting"):], "MPDistil, collaborative + binary")
    # 20 once, 10 eleven times of 40; 10 of 12 looks hold the best in 10/12
    assert kept[1:6] == ["12", "50.0", "27.1", "50.0", "45.8"]
    assert kept[6:] == ["22.9", "4.2"]
    records = column()
    for record in variant_of(records, "mpdistil_com_real"):
        record["actions"] = [PICKS["col", "binary", "uniform"]] * LOOKS
    # one seed of three, one step of four
    variant_of(records, "mpdistil_com_real")[0]["actions"] = ["1011"] * LOOKS
    text = tables(records)[1]
    line = row_of(text[text.index("What the policy"):], "CB: MPDistil, competitive + real")
    assert line[1:] == ["12", "1.0000", "1.0000", "0.5000", "0.5000", "91.7"]


# --- what may stand in one table ----------------------------------------------------------------------------

@pytest.mark.parametrize("change, said", [
    (dict(protocol="released"), "protocol paper and released"),
    (dict(flags={**made_up()["flags"], "num_episodes": 99}), "--num_episodes 12 and 99"),
    (dict(flags={**made_up()["flags"], "later_flag": 1}), "--later_flag None and 1"),
    (dict(encoder={**made_up()["encoder"], "nlayers": 4}), "encoder {"),
    (dict(data={"CB/dev": {"examples": 41}}), "CB/dev has other examples")])
def test_runs_that_cannot_stand_in_one_table_are_refused(change, said, tables):
    for records in ([made_up(), made_up(seed=43, **change)], [made_up(**change), made_up(seed=43)]):
        code, out, error = tables(records, "--mixed")
        assert code == 2 and error.count("\n") == 1 and not out
        assert said in error or said.split(" and ")[0].split()[-1] in error


@pytest.mark.parametrize("records", [
    [made_up(select_on="quiz")], [made_up(), made_up(seed=43, select_on="quiz")],
    [made_up(curriculum=None, select_on="quiz")]])
def test_runs_that_selected_on_quiz_are_refused(records, tables):
    """Phases 3 and 4 train on it."""
    code, out, error = tables(records, "--mixed")
    assert code == 2 and not out and error.count("\n") == 1
    assert "--select_on quiz: phases 3 and 4 train on quiz" in error
    assert "run it again without the flag" in error and records[-1]["run"] in error


OTHERS = {"git_commit": "d" * 40, "git_changes": True, "cpu_threads": 1, "gpu": "H100", "cpu": "another",
          "platform": "macOS", "torch": "3", "transformers": "6", "python": "4"}


@pytest.mark.parametrize("where", ["environment", "phase_environments"])
@pytest.mark.parametrize("name", OTHERS)
def test_runs_of_other_code_or_machines_are_refused_unless_asked_for(name, where, tables):
    """Of the run itself, or of a phase that it took from another one."""
    other = {**ENVIRONMENT, name: OTHERS[name]}
    change = {where: {"kd": other} if where == "phase_environments" else other}
    records = [made_up(), made_up(seed=43, **change)]
    code, out, error = tables(records)
    said = (f"{name} {ENVIRONMENT[name]} ({records[0]['run']}) and {OTHERS[name]} ({records[1]['run']})"
            if name != "git_changes"
            else f"files that differ from their commit in 1 of 2 runs ({records[1]['run']})")
    assert code == 2 and not out and error.count("\n") == 1 and said in error and "--mixed" in error
    code, out, error = tables(records, "--mixed")
    assert code == 0 and f"- Mixed, as --mixed allows: {said}." in out and not error
    assert tables([made_up(), made_up(seed=43)])[0] == 0
    assert "Mixed" not in tables([made_up(), made_up(seed=43)], "--mixed")[1]


def test_older_records_say_less_and_stay_readable(tables):
    assert set(run_records.PROVENANCE) == set(ENVIRONMENT)
    records = [made_up(), made_up(seed=43)]
    for record in records:
        record["environment"] = {name: value for name, value in ENVIRONMENT.items()
                                 if name not in ("platform", "cpu")}
        record["peak_memory_bytes"] = None  # nor does every system say it
    code, out, _ = tables(records)
    assert code == 0 and "Machine: GPU none, CPU threads a run 2, torch 2" in out
    assert "peak memory of a run unknown; 2 runs" in out
    assert "Machine: GPU none, CPU threads a run 2 (some), torch 2" in tables([made_up()])[1]


def test_what_cannot_be_read_is_refused(tables, tmp_path, capsys, monkeypatch):
    assert tables([made_up(), made_up()])[0] == 2 and tables([{}])[0] == 2
    other = made_up(answers={"kd": 21}, run="cb/again", reward="real")
    assert ("runs cb/again and cb/paper-col-binary-policy-seed42: both have the row kd of CB, seed 42"
            in tables([made_up(), other])[2])
    assert "runs.jsonl:2: not the record of a run" in tables([made_up(), {}])[2]
    assert make_tables.main([str(tmp_path / "runs.jsonl"), str(tmp_path), "--table", "1a"]) == 2
    assert "no finished run found" in tables([])[2]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        make_tables.main(["nowhere", "--table", "1a"])
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "lib.figures", None)
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
    # the tree may hold changes while these tests are written
    assert make_tables.main([str(tmp_path), "--table", "1a", "--mixed", "--compact", str(compact)]) == 0
    texts.append(capsys.readouterr().out)
    assert make_tables.main([str(compact), "--table", "1a", "--mixed"]) == 0
    texts.append(capsys.readouterr().out)
    assert texts[0].replace("Left out: unfinished, unfinished.\n\n", "") == texts[1] != texts[0]
    record, folder = run_records.read_compact(compact)[0], tmp_path / "cb" / "42"
    result, metrics = json.loads((folder / "result.json").read_text()), lines(folder / "metrics.jsonl")
    assert record["rows"] == result["rows"] and record["run"] == "cb/42"
    assert record["looks"]["mpdistil"] == [
        line["scores"]["dev"]["correct"] for line in metrics if line["phase"] == "mpdistil"]
    assert len(record["looks"]["kd_200"]) == 3 and len(record["rewards"]) == 3
    steps = [line["actions"] for line in lines(folder / "trajectories.jsonl")]
    assert [[record["flags"]["tasks"][int(sign)] for sign in signs] for signs in record["actions"]] == steps
    assert str(tmp_path) not in compact.read_text()  # no paths of a machine
    counts = [result_of["rows"]["kd"]["dev"]["correct"] for result_of in run_records.read_compact(compact)]
    assert f"| {', '.join(map(str, counts))} " in texts[0]
    # where and by what code the run and each of its phases was computed, and in which batches kd_200 learnt
    environment = json.loads((folder / "environment.json").read_text())
    assert record["environment"] == {name: environment[name] for name in run_records.PROVENANCE}
    assert record["phase_environments"] == {name: record["environment"] for name in result["phases"]}
    phase = folder / result["phases"]["kd_200"]["folder"] / "phase.json"
    settings = json.loads(phase.read_text())["depends_on"]["settings"]
    assert record["kd_200_batch"] == settings["batch_size"]


def test_formats(tables, tmp_path):
    records = column(seeds=(42, 43)) + column("COPA", seeds=(42, 43))
    rows = list(csv.DictReader(io.StringIO(tables(records, "--format", "csv")[1])))
    absent = [name for name, row in ROWS.items() if row.learning or row.baseline]  # no run has them
    assert len(rows) == (len(ROWS) - len(absent)) * (2 * 2 + 4)
    assert {row["task"] for row in rows if row["seed"]} == {"CB", "COPA"}
    teacher = next(row for row in rows if row["task"] == "CB" and row["row"] == "teacher")
    assert teacher == {"task": "CB", "metric": "acc", "row": "teacher", "seed": "42", "percent": "75.0",
                       "correct": "30", "total": "40", "paper_percent": "83.9", "same_run_as": "",
                       "quiz_size": "", "max_train": ""}
    tex = tables(records, "--format", "tex")[1]
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 9
    assert "Teacher & 75.0 ± 0.0 & 83.9 & 75.0 ± 0.0 & 63.0" in tex
    page = tmp_path / "page.html"
    assert tables(records, "--format", "html", "--output", page, "--figures", tmp_path / "figures")[0] == 0
    html = page.read_text()
    assert html.count("<svg") == 5 and html.count("<table") == 9 and "<code>paper</code>" in html
    # nothing to fetch: pictures lie in it, links lead to its own parts and to the runs
    assert html.count('<a href="runs.jsonl">') == len(records) and "<script" not in html
    assert not re.search(r'(src|href)="(?!#|data:|runs.jsonl)', html) and not re.search(r"url\((?!#)", html)
    names = ["table_1a", *(f"{kind}_{task}" for kind in ("episodes", "curriculum")
                           for task in ("CB", "COPA"))]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(
        f"{name}.{ending}" for name in names for ending in ("png", "svg"))


@pytest.mark.parametrize("rewards", [["real"], ["real", "binary"]], ids=len)
def test_a_narrow_figure_holds_its_legend(rewards):
    """With one row it was wider than the figure."""
    from lib.figures import SETTINGS, draw_episodes
    records = [made_up(reward=reward) for reward in rewards] + [made_up(curriculum="uniform")]
    for record in records:
        record["rewards"] = [0.5] * LOOKS
    with matplotlib.rc_context(SETTINGS):
        figure = draw_episodes(Found(records), "CB")
        figure.canvas.draw()
        legend = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].texts) == 3
    assert legend.x0 >= 0 and legend.y0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y1 <= figure.bbox.y1

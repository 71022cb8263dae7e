"""compare_runs.py: what its page says of made-up runs."""
import json

import pytest

import compare_runs
from test_tables import EXAMPLES, made_up

SEEDS = (42, 43, 44)


def side(kd=20, task="CB", seeds=SEEDS, **changes):
    """A record a seed, of the phases up to kd_200. kd: right answers, a number or one a seed."""
    of_seeds = kd if isinstance(kd, tuple) else (kd,) * len(seeds)
    return [made_up(task, seed, curriculum=None, answers={"kd": right, "kd_200": 25}, **changes)
            for seed, right in zip(seeds, of_seeds, strict=True)]


@pytest.fixture
def page(tmp_path, capsys):
    """page(base records, *others' records, more=flags) -> (exit code, {row: cells} of each table, text)."""
    def run(base, *others, more=()):
        words = []
        for number, records in enumerate((base, *others)):
            path = tmp_path / f"{number}.jsonl"
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
            words += ["--other" if number else "--base", str(path)]
        code = compare_runs.main([*words, *map(str, more)])
        found = capsys.readouterr()
        tables = [{cells[1]: cells for cells in (
            [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()
            if line.startswith("| CB"))} for part in found.out.split("\n## ")[1:]]
        return code, tables, found.out + found.err
    return run


def flags(**changes):
    return {**made_up()["flags"], **changes}


def test_a_change_is_paired_named_and_tested(page, tmp_path):
    base, other = side(20), side((32, 33, 33), flags=flags(precision="bf16"))
    code, (found,), text = page(base, other, more=["--compact", tmp_path / "kept"])
    assert code == 0 and "## --precision (fp32, bf16)\n" in text
    row = dict(zip(compare_runs.HEADER, found["Distilled student"], strict=True))
    assert (row["seeds"], row["base"], row["other"], row["looks"]) == ("3", "50.0", "81.7", "12 : 12")
    assert row["difference"] == "+31.7" and row["by seed"] == "+12 +13 +13" and row["so"] == "higher"
    teacher = dict(zip(compare_runs.HEADER, found["Teacher"], strict=True))
    assert teacher["so"] == "same run" and teacher["difference"] == ""  # both sides have its phase
    assert "for all 3 comparisons" in text  # kd, meta-teacher, kd_200
    kept = [str(tmp_path / "kept" / name) for name in ("base.jsonl", "other1.jsonl")]
    output = tmp_path / "again.md"
    assert compare_runs.main(["--base", kept[0], "--other", kept[1], "--output", str(output)]) == 0
    assert output.read_text() == text  # from the compact records alone


def test_p_is_corrected_for_all_that_the_page_has(page):
    base = side(20, phases={})
    change = side((25, 27, 28), set=["pkd_layers=skip"], phases={})
    alone = page(base, change, more=["--rows", "kd"])[1][0]["Distilled student"]
    code, (first, second), text = page(base, change, side(20, set=["soft_loss=logits"], phases={}),
                                       more=["--rows", "kd"])
    place = compare_runs.HEADER.index("corrected")
    assert float(first["Distilled student"][place]) == pytest.approx(2 * float(alone[place]), abs=0.002)
    assert second["Distilled student"][-1] == "no difference shown"
    assert "## --set pkd_layers (as by default, skip)" in text and "for all 2 comparisons" in text


def phase_4(curriculum="policy", right=20, **changes):
    """A record a seed of a run of phase 4."""
    row = "no_curriculum" if curriculum == "main_task" else "mpdistil"
    phases = {"teacher": "t", "kd": "k", "meta_teacher": "m"}
    return [made_up(seed=seed, curriculum=curriculum, answers={row: right}, phases=phases, **changes)
            for seed in SEEDS]


@pytest.mark.parametrize("change, same", [
    ({"set": ["advantage=step_mean"]}, True), ({"flags": flags(policy_learning_rate=0.01)}, True),
    ({"set": ["student_update=each_episode"]}, False), ({"flags": flags(val_dataloader_size=4)}, False),
    ({"set": ["meta_term=attached"]}, False)], ids=str)
def test_equal_answers_and_picks_are_one_computation_where_the_picks_are_all_that_differs(change, same, page):
    """What else reaches the student makes it another one, which may well get the same examples right."""
    code, (found,), text = page(phase_4(), phase_4(**change), more=["--rows", "mpdistil_col_binary"])
    assert code == 0, text
    assert found["MPDistil, collaborative + binary"][-1] == ("same run" if same else "no difference shown")


def test_with_an_attached_state_rewards_reach_the_student(page):
    """So does all that they come from."""
    sides = [phase_4(set=["state_gradient=attached", *more]) for more in ([], ["advantage=step_mean"])]
    code, (found,), text = page(*sides, more=["--rows", "mpdistil_col_binary"])
    assert found["MPDistil, collaborative + binary"][-1] == "no difference shown", text


def test_rows_that_are_one_computation_on_both_sides_are_compared_once(page):
    """Without a curriculum both losses are the same run in `paper`."""
    code, (found,), text = page(phase_4("main_task"), phase_4("main_task", flags=flags(learning_rate=1e-3)),
                                more=["--rows", "main_task"])
    assert code == 0 and "for all 1 comparisons" in text
    assert found["without curriculum, collaborative"][-1] == "no difference shown"
    assert found["without curriculum, competitive"][-1] == "same run as without curriculum, collaborative"


def test_machines_that_differ_are_named(page):
    base, other = side(20), side(30)
    other = [{**record, "environment": {**record["environment"], "gpu": "H100", "git_changes": True}}
             for record in other]
    text = page(base, other)[2]
    assert "## gpu (no; H100); git_changes (no; yes)\n" in text


def test_what_cannot_be_paired_is_refused(page, tmp_path):
    base = side()
    encoder = {**made_up()["encoder"], "nlayers": 6}
    for others, said in ((side(encoder=encoder), "other encoder on each side"),
                         (side(data={"CB/dev": {"examples": EXAMPLES + 1}}), "other data on each side"),
                         (side(seeds=(1, 2)), "no row found that base has"),
                         (side(task="COPA"), "no row found that base has")):
        others = [{**record, "run": f"other/{number}"} for number, record in enumerate(others)]
        code, _, text = page(base, others)
        assert code == 2 and said in text and text.count("\n") == 1
    code, _, text = page(base, base)
    assert code == 0 and "## Nothing that a run says differs" in text
    with pytest.raises(SystemExit):
        compare_runs.main(["--base", str(tmp_path), "--other", str(tmp_path), "--rows", "nothing"])
    assert compare_runs.main(["--base", str(tmp_path / "none"), "--other", str(tmp_path)]) == 2

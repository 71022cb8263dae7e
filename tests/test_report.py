"""The page about a run: what stands on it, that it needs nothing else, that texts are escaped."""
import json
import re

import pytest

import report
from conftest import read_lines


@pytest.fixture
def page(capsys):
    def of(folder):
        assert report.main([str(folder)]) == 0
        assert capsys.readouterr().out.strip().endswith(str(folder / "report.html"))
        return (folder / "report.html").read_text(encoding="utf-8")

    return of


def test_a_page_of_classes(command, page):
    code, folder = command("CB", kd_200=True, undistilled=True, num_episodes=3)
    assert code == 0
    text, result = page(folder), json.loads((folder / "result.json").read_text())
    assert "http" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", "")  # the names of namespaces in SVG alone
    assert not re.search(r"<script|<link|src=", text)
    for row, figures in result["rows"].items():
        dev = figures["dev"]
        counts, share = f"{dev['correct']}/{dev['total']}", f"{100 * dev['accuracy']:.1f}"
        assert f"<td>{row}</td><td>{counts}</td><td>{share}</td>" in text
    assert text.count("<figure>") == 4 and "most frequent class" in text
    assert "The reward of each step, summed" in text
    answers = [[line["label"] for line in read_lines(folder / "predictions" / row / "dev" / "CB.jsonl")]
               for row in ("teacher", "mpdistil")]
    differ = sum(one != other for one, other in zip(*answers))
    assert f"{differ} of {result['rows']['kd']['dev']['total']} dev examples whose answers differ" in text
    assert page(folder) == text


def test_a_page_of_numbers(command, glue, page):
    code, folder = command("STS-B", data_dir=glue, tasks=["STS-B"], quiz_size=4, curriculum="main_task",
                           set=["reward_of=improvement"])
    text = page(folder)
    assert code == 0 and "mean of the labels" in text and "STS-B/quiz 4 of 5 (--quiz_size)" in text
    assert "12 of 12 dev examples whose squared errors differ" in text and "Pearson, %" in text
    assert "What the update of each step adds to the reward, summed over an episode" in text


def test_texts_are_escaped_and_missing_data_are_said(command, data_dir, tmp_path, page):
    data = tmp_path / "data"
    (data / "CB").mkdir(parents=True)
    for path in (data_dir / "CB").iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [{**line, "premise": "<script>alert(1)</script> & co"} for line in lines]
        (data / "CB" / path.name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, folder = command("CB", data_dir=data, tasks=["CB"], learning_rate=3e-3, epochs=3, teacher_epochs=1)
    text = page(folder)
    assert code == 0 and "<script>" not in text
    if "0 of 18 dev examples" not in text:
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in text
    (data / "CB" / "val.jsonl").unlink()
    assert "No texts and no confusion: " in page(folder) and "val.jsonl: no such file" in page(folder)


def test_a_run_that_stopped_early_and_one_that_is_none(command, page, tmp_path, capsys):
    code, folder = command("CB", stop_after="teacher")
    assert code == 0 and "Phase 4" not in page(folder)
    assert report.main([str(tmp_path)]) == 2
    assert "no result.json found; give the folder of a finished run" in capsys.readouterr().err

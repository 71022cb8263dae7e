"""The committed results: their pages come from their records, to the byte (of PNG files: to the pixel), and
the documentation says what they say. The files of results/timing are figures as benchmark.py printed them."""
import importlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from lib.formats import span

import show_timing
from conftest import ROOT, read_lines
from policy_report import effect_of, groups_of
from test_tables import lines_of_differences, row_of, sections

MARK = "# from here on without the runs"
FOLDERS = sorted(path.parent for path in (ROOT / "results").glob("*/commands.sh") if MARK in path.read_text())
TABLES = sorted((ROOT / "results").glob("*/table.md"))
MADE = {".md", ".tex", ".csv", ".html", ".svg", ".png"}


def commands_of(folder):
    """[(script, words)] that commands.sh has below MARK."""
    text = (folder / "commands.sh").read_text().replace("\\\n", " ")
    lists = {f"${{{name}[@]}}": shlex.split(words)
             for name, words in re.findall(r"^(\w+)=\((.*)\)$", text, re.MULTILINE)}
    for line in text.split(MARK)[1].strip().splitlines():
        words = [word for given in shlex.split(line) for word in lists.get(given, [given])]
        place = next(number for number, word in enumerate(words) if word.endswith(".py"))
        yield Path(words[place]).stem, words[place + 1:]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_pages_come_from_the_committed_records(folder, tmp_path, monkeypatch):
    """The commands of commands.sh give the same bytes; of PNG files, which are packed pictures, the same
    pixels."""
    monkeypatch.chdir(ROOT)
    here = tmp_path / folder.name
    shutil.copytree(folder, here, ignore=shutil.ignore_patterns(*(f"*{ending}" for ending in MADE)))
    for script, words in commands_of(folder):
        words = [word.replace("$folder", str(here)) for word in words]
        words = [path for word in words for path in (
            sorted(map(str, here.glob(Path(word).name))) if "*" in word else [word])]
        assert importlib.import_module(script).main(words) == 0, (script, words)
    there, made = ({path.relative_to(where) for path in where.rglob("*") if path.suffix in MADE}
                   for where in (folder, here))
    assert there == made
    for name in sorted(made):
        same = (np.array_equal(imread(here / name), imread(folder / name)) if name.suffix == ".png"
                else (here / name).read_bytes() == (folder / name).read_bytes())
        assert same, name


@pytest.mark.parametrize("name, page", [("bf16-minilm", "TIMING.md"), ("rates-minilm", "RESULTS.md"),
                                        ("open_points-minilm", "RESULTS.md")])
def test_the_documentation_has_the_tables_of_a_page(name, page):
    lines = (ROOT / "results" / name / "page.md").read_text().splitlines()
    text = (ROOT / "docs" / page).read_text()
    tables = [line for line in lines if line.startswith("| ")]
    assert tables and all(line in text for line in tables)


def sentences_on_policies(task):
    """What docs/RESULTS.md says of a task's policies, made from the committed records."""
    path = ROOT / "results" / "open_points-minilm" / "policy.jsonl"
    groups = groups_of([record for record in read_lines(path) if record["task"] == task])

    def p_of(group, figure):
        p_values = [record["learnt"][figure]["above"] for record in group]
        return sum(p <= 0.05 for p in p_values), len(group), span(p_values, "{:.3f}".format)

    def last_of(group):
        return span([f"{record['p_main'][-1]:.2f}" for record in group])

    def adds(group):
        found = [effect_of(record, task) for record in group]
        above = sum(p <= 0.05 and value > 0 for value, _, _, p in found)
        return span([value for value, *_ in found], "{:+.5f}".format), above, len(found)

    published, position, improvement, both = (groups[f"{task}, paper, {name}"] for name in (
        "col, real, rate 0.001", "advantage=step_mean, col, real, rate 0.001",
        "reward_of=improvement, col, real, rate 0.001",
        "advantage=step_mean, reward_of=improvement, col, real, rate 0.01"))
    further, count, p_values = p_of(published, "moved")
    yield (f"As published the policy is not shown to learn on {task}: its logits move further than by chance"
           f" in {further} of {count} runs (p {p_values}), and at the end it picks the main task with"
           f" probability {last_of(published)}.")
    further, count, p_values = p_of(position, "moved")
    yield ("A baseline by the step's position alone (`advantage=step_mean`) does not change that: further"
           f" than by chance in {further} of {count} runs (p {p_values}), the main task at"
           f" {last_of(position)}.")
    values, above, count = adds(improvement)
    toward, _, p_values = p_of(improvement, "to_main")
    yield ("The improvement as reward (`reward_of=improvement`) shows what the level hides: picking the main"
           f" task adds {values} to a step's advantage, more than by chance in {above} of {count} runs, and"
           f" the policy moves toward it in {toward} (p {p_values}), at the published rate to"
           f" {last_of(improvement)}.")
    toward, count, p_values = p_of(both, "to_main")
    ends = sum(record["tasks"][np.argmax(record["last"])] == task for record in both)
    yield (f"With both and the rate 1e-2 (`mpdistil_learning`) it ends on the main task in {ends} of {count}"
           f" runs, at {last_of(both)}, further toward it than by chance in {toward} (p {p_values}): what it"
           " learns is the row without curriculum.")


@pytest.mark.parametrize("task", ["COPA"])
def test_what_is_said_of_policies_is_what_was_found(task):
    text = " ".join((ROOT / "docs" / "RESULTS.md").read_text().split())
    said = list(sentences_on_policies(task))
    assert len(said) == 4 and [sentence for sentence in said if sentence not in text] == []


def test_the_timing_page_has_the_figures_that_were_measured(capsys):
    assert show_timing.main([str(ROOT / "results" / "timing")]) == 0
    page = (ROOT / "docs" / "TIMING.md").read_text()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 80 and all(line in page for line in lines)


def test_the_committed_page_says_what_its_runs_are():
    """They are of one commit, whose files had been changed in most of them; five of its comparisons are
    none."""
    page = (ROOT / "results" / "table_1a-minilm" / "table.md").read_text()
    assert "- Mixed, as --mixed allows: files that differ from their commit in 76 of 90 runs (cb/" in page
    lines = lines_of_differences(page)
    assert sum("same run as" in line[-1] for line in lines.values()) == 2 * (5 - 1)
    assert row_of(page, "without curriculum, competitive")[1] == "76.4 ± 1.5 (same run)"
    assert re.search(r"\| (higher|lower) ", page) is None


def test_the_results_say_what_the_committed_page_says():
    results = (ROOT / "docs" / "RESULTS.md").read_text()
    for path in TABLES:
        page = sections(path.read_text())
        main = re.search(r"(^\|.*\n)+", page["Ours beside the paper's"], re.MULTILINE).group()
        assert main in results, f"the main table of {path.parent.name}"
        for line in page["What the runs say"].strip().splitlines():
            assert line in results, line


def main_cells(text):
    """Cells of the first table of a text, header and lines."""
    lines = re.search(r"(^\|.*\n)+", text, re.MULTILINE).group().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines
            if not re.fullmatch(r"[|:-]+", line)]


def test_the_readme_says_what_the_committed_page_says():
    """Its headline table has the page's rows and some of its columns; its three sentences are beginnings of
    the page's."""
    headline = sections((ROOT / "README.md").read_text())["Result"]
    page = sections((ROOT / "results" / "table_1a-minilm" / "table.md").read_text())
    ours, theirs = main_cells(headline), main_cells(page["Ours beside the paper's"])
    columns = [0, *(theirs[0].index(name) + shift for name in ours[0][1::2] for shift in (0, 1))]
    assert ours == [[row[column] for column in columns] for row in theirs] and len(columns) == 5
    said = re.findall(r"^- (.*(?:\n  .*)*)", headline, re.MULTILINE)
    assert len(said) == 3
    for sentence in (" ".join(text.split()).removesuffix(".") for text in said):
        assert re.search(rf"^- {re.escape(sentence)}[;.]", page["What the runs say"], re.MULTILINE), sentence

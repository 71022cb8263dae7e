"""README and docs: sizes, quickstart blocks, links, and what they and the code say of each other."""
import importlib
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from lib.slurm import OURS

from arguments import Protocol, build_parser, parse_arguments
from baselines import METHODS
from conftest import ROOT, read_lines

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
CODE = [path for pattern in ("*.py", "scripts/**/*", "bookkeeping/**/*", "tests/**/*")
        for path in sorted(ROOT.glob(pattern)) if path.suffix in (".py", ".sh")]
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def by_name(path):
    return str(path.relative_to(ROOT))


def headings(text):
    return re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)


def section(page, heading):
    """What stands below a heading of docs/<page>, up to the next one of its level."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    level, found = re.search(rf"^(#+) {re.escape(heading)}\n(.*)", text, re.MULTILINE | re.DOTALL).groups()
    return re.split(rf"^#{{1,{len(level)}}} ", found, flags=re.MULTILINE)[0]


def code_of(text):
    """Fenced blocks and code spans of a page. A span stands in one line."""
    prose = FENCE.sub("", text)
    assert [line for line in prose.splitlines() if line.count("`") % 2] == []
    return [*FENCE.findall(text), *re.findall(r"`([^`\n]+)`", prose)]


def table_rows(text):
    """Cells of the lines of markdown tables; an escaped | is part of a cell."""
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in text.splitlines() if line.startswith("|")]


# --- the README ---------------------------------------------------------------------------------------------

def test_the_readme_can_be_read_to_its_end():
    assert 9_000 <= README.stat().st_size <= 11_000


@pytest.mark.parametrize("name", ("run", "test"))
def test_quickstart_blocks(name):
    """One fenced block right after the marker, a script that is there."""
    parts = README.read_text(encoding="utf-8").split(f"<!-- quickstart: {name} -->\n")
    assert len(parts) == 2
    block = re.match(r"```bash\n([^`]*)\n```\n\n[^`]", parts[1])
    assert block and block[1] == {"run": "scripts/quickstart.sh", "test": "scripts/test.sh"}[name]
    assert (ROOT / block[1]).is_file()


def test_the_readme_counts_the_choices():
    differ = [field for field in fields(Protocol) if field.metadata["released"] != field.default]
    assert f" {len(differ)} named choices" in README.read_text(encoding="utf-8")


# --- links and flags ----------------------------------------------------------------------------------------

def anchors(path):
    """Anchors of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in headings(path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_relative_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@pytest.fixture(scope="module")
def flags():
    """Every flag of main_superglue.py, of the scripts, of the tests, those that a worked change adds, and
    those of other programs that pages name."""
    declared = re.compile(r'(?:add_argument|addoption|flag)\(\s*"(--\w+)"')
    worked = (ROOT / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {*build_parser()._option_string_actions,
            *re.findall(r'^\+ +flag\("(--\w+)"', worked, re.MULTILINE),
            *OURS, *"--partition --gres --time --signal --cpus-per-task --nonblock --exclude".split(),
            *(flag for path in CODE for flag in declared.findall(path.read_text(encoding="utf-8")))}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_flags_that_are_named_exist(page, flags):
    named = {flag for code in code_of(page.read_text(encoding="utf-8"))
             for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
    assert named <= flags


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_commands_of_a_run_are_parsed(page):
    """Those without variables; `run` is what a page abbreviates the command to."""
    for block in FENCE.findall(page.read_text(encoding="utf-8")):
        for words in re.findall(r"^(?:python main_superglue\.py|run) (--task [^$\n]*)$", block, re.MULTILINE):
            if "--without_states" in words:  # of a worked change, which tests/test_contributing.py runs
                continue
            data = [] if "--data_dir" in words else ["--data_dir", "data"]
            assert parse_arguments([*shlex.split(words), *data])


# --- METHOD.md ----------------------------------------------------------------------------------------------

def numbers_in(text):
    """"1, 3 to 5 and 7" -> 1 3 4 5 7."""
    found = []
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", text):
        found += range(int(first), int(last or first) + 1)
    return found


def citations():
    """(file, "row", "phase" or "section", number or name) of what the code cites of METHOD.md."""
    numbers = r"\d+(?:(?:, | to | and )\d+)*"
    for path in CODE:
        # a citation may go on in the next line
        text = re.sub(r"\s*\n\s*#?\s*", " ", path.read_text(encoding="utf-8"))
        for name, kind, cited in re.findall(rf'METHOD\.md (?:"([^"]+)"|(row|phase)s? ({numbers}))', text):
            for what in [name] if name else numbers_in(cited):
                yield path.name, kind or "section", what


def test_what_the_code_cites_of_the_method_is_there():
    text = (ROOT / "docs" / "METHOD.md").read_text(encoding="utf-8")
    rows = [int(cells[0]) for cells in table_rows(text) if cells[0].isdigit()]
    assert rows == list(range(1, 29))
    there = {*(("row", number) for number in rows), *(("section", heading) for heading in headings(text)),
             *(("phase", int(number)) for number in re.findall(r"^### Phase (\d):", text, re.MULTILINE))}
    assert {("phase", number) for number in range(1, 5)} <= there
    assert {("section", name) for name in (
        "Notation", "Model", "The phases", "GLUE", "The two protocols", "Points that the sources leave open",
        "What is known of the reported numbers")} <= there
    cited = list(citations())
    assert len(cited) > 30 and {kind for _, kind, _ in cited} == {"row", "phase", "section"}
    assert [(file, kind, what) for file, kind, what in cited if (kind, what) not in there] == []


# --- PROTOCOLS.md -------------------------------------------------------------------------------------------

def test_the_choices_are_those_of_the_code():
    """Number, name and both values; and each is read where the page says."""
    rows = [*table_rows(section("PROTOCOLS.md", "The choices")),
            *table_rows(section("PROTOCOLS.md", "The readings"))]
    found = {cells[1].strip("`"): cells for cells in rows if cells[1].startswith("`")}
    assert list(found) == [field.name for field in fields(Protocol)]
    for field in fields(Protocol):
        number, _, paper, released, place = found[field.name]
        assert int(number) == field.metadata["row"]
        for value, cell in zip(field.metadata["values"], (paper, released), strict=True):
            assert cell.startswith(f"`{value}`"), field.name
        module = importlib.import_module(place.strip("`").rpartition(".")[0])
        assert hasattr(module, place.strip("`").rpartition(".")[2]), place
        words = set(re.findall(r"\w+", Path(module.__file__).read_text(encoding="utf-8")))
        assert words & {field.name, *field.metadata["values"]}, place


# --- RUN_FOLDER.md ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task, curriculum", [("WSC", "policy"), ("CB", "main_task"), ("STS-B", "uniform")])
def test_every_file_and_field_of_a_run_is_described(task, curriculum, command, data_dir, glue):
    code, folder = command(task, folder="runs/run", curriculum=curriculum, undistilled=True, kd_200=True,
                           kd_quiz=True, baselines="all" if task == "CB" else None,
                           data_dir=glue if task == "STS-B" else data_dir)
    assert code == 0

    def read(path):
        return json.loads(path.read_text(encoding="utf-8"))

    result, data = read(folder / "result.json"), read(folder / "data.json")
    metrics = read_lines(folder / "metrics.jsonl")
    phase = next((folder.parent / "phases").glob("teacher-*"))
    wanted = {
        "result.json": [result, result["saving"], result["phases"]["kd"],
                        result["rows"].keys() - METHODS.keys(), result["rows"]["kd"]["dev"]],
        "metrics.jsonl": [*metrics, *(line["scores"]["dev"] for line in metrics)],
        "trajectories.jsonl": read_lines(folder / "trajectories.jsonl"),
        "args.json, environment.json, data.json": [
            read(folder / "environment.json"), *(entry for entry in data.values() if isinstance(entry, dict)),
            {name for name, entry in data.items() if isinstance(entry, str)}],
        "The phase store": [read(phase / "phase.json"), read(phase / "phase.json")["depends_on"]]}
    for heading, objects in wanted.items():
        described = set(re.findall(r"\w[\w-]*", " ".join(code_of(section("RUN_FOLDER.md", heading)))))
        assert set().union(*objects) <= described, heading
    for place, heading in ((folder, "The run folder"), (phase, "The phase store")):
        described = " ".join(code_of(section("RUN_FOLDER.md", heading)))
        names = {path.name for path in place.iterdir() if not path.name.startswith(("tokenizer", "vocab"))}
        assert {name for name in names if name not in described} == set(), heading

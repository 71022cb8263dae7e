"""scripts/score.py and scripts/make_submission.py: figures by hand, the same as a run's, what is refused, the
zip's bytes."""
import json
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest

import make_submission
import score
from bookkeeping.files import read_record, write_record
from conftest import ROOT, TASK_NAMES
from metrics import write_predictions
from tasks import TASKS

GIVEN = ("entailment", "contradiction", "contradiction", "neutral")
PREDICTED = ("entailment", "entailment", "contradiction", "neutral")


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def labelled(folder, labels=GIVEN, name="CB/val.jsonl"):
    records = [{"premise": "p", "hypothesis": "h", "idx": idx, "label": label}
               for idx, label in enumerate(labels)]
    return write_lines(folder / name, [{key: value for key, value in record.items() if value is not None}
                                       for record in records])


def predicted(folder, labels=PREDICTED, name="CB.jsonl"):
    return write_lines(folder / name, [{"idx": idx, "label": label} for idx, label in enumerate(labels)])


def score_lines(capsys, predictions, *labels):
    assert score.main(["--predictions", str(predictions), "--labels", *map(str, labels)]) == 0
    return capsys.readouterr().out.splitlines()


def refused(capsys, code, *expected):
    said = capsys.readouterr()
    assert code == 2 and said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1, said
    for words in expected:
        assert str(words) in said.err, (words, said.err)


# --- score.py -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("labels, figures", [
    # Clopper-Pearson for 3 of 4: upper 0.975 ** (1/4), lower the p of 4 p^3 (1 - p) + p^4 = 0.025; F1 (2/3 +
    # 2/3 + 1) / 3
    (PREDICTED, "3/4 | 75.0 | 19.4 to 99.4 | macro-F1 77.8"),
    (GIVEN, "4/4 | 100.0 | 39.8 to 100.0 | macro-F1 100.0"),  # lower 0.025 ** (1/4)
    (("neutral", "neutral", "entailment", "entailment"), "0/4 | 0.0 | 0.0 to 60.2 | macro-F1 0.0"),
])
def test_scores_by_hand(labels, figures, tmp_path, capsys):
    predicted(tmp_path, labels)
    lines = score_lines(capsys, tmp_path, labelled(tmp_path))
    assert lines[2:] == [f"| CB | {figures} | 50.0 |"] and lines[0].count("|") == lines[2].count("|")


def test_order_of_lines_blank_lines_and_other_keys_change_nothing(tmp_path, capsys):
    path = predicted(tmp_path)
    before = score_lines(capsys, tmp_path, labelled(tmp_path))
    more = [{**json.loads(line), "logit": 1} for line in path.read_text().splitlines()]
    write_lines(path, ["", *reversed(more)])
    assert score_lines(capsys, tmp_path, labelled(tmp_path)) == before


def test_the_released_layout_and_text_idx(tmp_path, capsys):
    """Folder in another case; a word index outside of the text, which that layout's protocol never looks
    at."""
    cb = write_lines(tmp_path / "cb" / "dev.tsv",
                     ["id\tpremise\thypothesis\tlabel", 'a-1\t"p\th\tneutral', "7\tp\th\tentailment"])
    wsc = write_lines(tmp_path / "WSC" / "dev.tsv",
                      ["\t".join(("id", *TASKS["WSC"].fields, "label")), "0\tone two\t9\t1\tnone\ttwo\tTrue"])
    write_lines(tmp_path / "CB.jsonl", [{"idx": idx, "label": "entailment"} for idx in (7, "a-1")])
    write_lines(tmp_path / "WSC.jsonl", [{"idx": 0, "label": "True"}])
    lines = score_lines(capsys, tmp_path, cb, wsc)
    assert lines[2].startswith("| CB | 1/2 | 50.0 |")
    assert lines[3] == "| WSC | 1/1 | 100.0 | 2.5 to 100.0 |  | 100.0 |"


def test_files_without_labels_are_named(tmp_path, capsys):
    predicted(tmp_path)
    for name in ("RTE.jsonl", "MultiRC.jsonl"):
        write_lines(tmp_path / name, ["{}"])
    lines = score_lines(capsys, tmp_path, labelled(tmp_path / "data"))
    assert len(lines) == 5 and lines[-1] == "not scored, no labels given: MultiRC.jsonl, RTE.jsonl"


@pytest.mark.parametrize(
    "line, expected",
    [
        ("{", ("CB.jsonl:2", "not JSON")),
        ("[1]", ("CB.jsonl:2", "list found")),
        ('{"idx": 1, "label": "neutral", "label": "entailment"}', ("CB.jsonl:2", "'label' stands twice")),
        ('{"idx": "\\ud83d", "label": "neutral"}', ("CB.jsonl:2", "field 'idx': \\ud83d found")),
        ('{"idx": %s, "label": "neutral"}' % ("9" * 5000), ("CB.jsonl:2", "4300 digits")),
        ('{"target": {"idx": 1}, "label": "neutral"}', ("CB.jsonl:2", '"target", "label"')),
        ('{"idx": 1}', ("CB.jsonl:2", '["idx"]', '"label"')),
        ('{"label": "neutral"}', ("CB.jsonl:2", '["label"]', '"idx"')),
        ('{"idx": 1, "label": "neutral", "more": {"label": "entailment"}}', ("CB.jsonl:2", '"more"')),
        ('{"idx": 1.0, "label": "neutral"}', ("CB.jsonl:2", "idx 1.0", "whole number or text")),
        ('{"idx": true, "label": "neutral"}', ("CB.jsonl:2", "idx true")),
        ('{"idx": 0, "label": "neutral"}', ("CB.jsonl:2", "idx 0 stands already", "CB.jsonl:1")),
        (
            '{"idx": 1, "label": "Neutral"}',
            ("CB.jsonl:2", '"Neutral"', '"entailment", "contradiction", "neutral"'),
        ),
        ('{"idx": 1, "label": 2}', ("CB.jsonl:2", "label 2")),
        ('{"idx": 9, "label": "neutral"}', ("1 missing (1)", "1 unexpected (9)", "val.jsonl")),
        (
            '{"idx": "1", "label": "neutral"}',
            ("1 missing (1)", '1 unexpected ("1"), of which 1 differ only in type'),
        ),
    ],
)
def test_bad_predictions_are_refused(line, expected, tmp_path, capsys):
    lines = predicted(tmp_path).read_text().splitlines()
    write_lines(tmp_path / "CB.jsonl", [lines[0], line, *lines[2:]])
    refused(capsys, score.main(["--predictions", str(tmp_path), "--labels", str(labelled(tmp_path))]),
            *expected)


def test_idx_of_another_split_are_counted(tmp_path, capsys):
    predicted(tmp_path, PREDICTED[:1] * 9)
    refused(capsys, score.main(["--predictions", str(tmp_path), "--labels", str(labelled(tmp_path))]),
            "0 missing, 5 unexpected (4, 5, 6, ...)", "of one split")


@pytest.mark.parametrize("labels, name, expected", [
    ((None,) * 4, "CB/test.jsonl", ("CB/test.jsonl:1", "no label", "val.jsonl")),
    ((*GIVEN[:3], None), "CB/val.jsonl", ("CB/val.jsonl:4", "no label", "3 other")),
    ((*GIVEN[:3], "maybe"), "CB/val.jsonl", ("CB/val.jsonl:4", "'maybe'")),
    (GIVEN, "XNLI/val.jsonl", ("--labels", "XNLI/val.jsonl", "'XNLI'", "BoolQ, CB")),
    (GIVEN, "CB/val.json", ("--labels", ".json found", ".jsonl or .tsv")),
    (GIVEN, "RTE/val.jsonl", ("label 'contradiction'", "RTE/val.jsonl:2"))])
def test_bad_labels_are_refused(labels, name, expected, tmp_path, capsys):
    predicted(tmp_path)
    file = labelled(tmp_path, labels, name)
    refused(capsys, score.main(["--predictions", str(tmp_path), "--labels", str(file)]), *expected)


def test_missing_and_double_files_are_refused(tmp_path, capsys):
    cb, again = labelled(tmp_path), labelled(tmp_path, name="x/cb/val.jsonl")
    flags = ["--predictions", str(predicted(tmp_path / "p").parent), "--labels", str(cb)]
    refused(capsys, score.main([*flags, str(again)]), again, cb, "CB too")
    refused(capsys, score.main([*flags, str(tmp_path / "RTE" / "val.jsonl")]), "RTE/val.jsonl: no such file")
    rte = labelled(tmp_path, ("entailment",) * 4, "RTE/val.jsonl")
    refused(capsys, score.main([*flags, str(rte)]), "p/RTE.jsonl: no such file", rte, "CB.jsonl")
    refused(capsys, score.main(["--predictions", str(tmp_path / "none"), "--labels", str(cb)]),
            "--predictions", "none: no such folder")


def test_a_runs_own_counts_from_any_folder(command, data_dir, tmp_path, capsys, monkeypatch):
    """Once as a command in the labels' folder; and the run's test files, which are not the official ones,
    make no submission."""
    code, folder = command("CB")
    assert code == 0 and capsys.readouterr().out
    for row, figures in json.loads((folder / "result.json").read_text())["rows"].items():
        dev, predictions = figures["dev"], folder / "predictions" / row / "dev"
        line = score_lines(capsys, predictions, data_dir / "CB" / "val.jsonl")[2]
        cells = line.split(" | ")
        assert [cells[1], cells[2], cells[4]] == [
            f"{dev['correct']}/{dev['total']}", f"{100 * dev['accuracy']:.1f}",
            f"macro-F1 {100 * dev['f1']:.1f}"]
    monkeypatch.chdir(data_dir / "CB")
    monkeypatch.setattr(sys, "argv", ["score.py", "--predictions", str(predictions), "--labels", "val.jsonl"])
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_path(str(ROOT / "scripts" / "score.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[2] == line
    refused(capsys, make_submission.main([str(folder), "--output", str(tmp_path / "s.zip")]),
            "test/CB.jsonl: 8 predictions", "expected 250", "official test file in CB/")


# --- make_submission.py -------------------------------------------------------------------------------------

def make_run(folder, name="CB", row="mpdistil", count=None, **result):
    """What a finished run leaves of what the script reads; every answer in turn. Returns the path of its test
    predictions."""
    task, count = TASKS[name], count or TASKS[name].official["test"]
    path = folder / "predictions" / row / "test" / f"{name}.jsonl"
    write_predictions(path, task, range(count), [idx % len(task.answers) for idx in range(count)])
    write_record(folder / "result.json", {
        "task": name, "protocol": "paper", "set": [], "seed": 42, "curriculum": "policy",
        "rows": {"kd": {}, row: {}}, "stopped_after": None, **result})
    return path


def submit(tmp_path, *runs, flags=()):
    return make_submission.main([*map(str, runs), "--output", str(tmp_path / "out.zip"), *flags])


def test_a_submission_of_all_six_tasks(tmp_path, capsys):
    runs = {name: tmp_path / f"run-{name}" for name in TASK_NAMES}
    for name, folder in runs.items():
        make_run(folder, name)
    assert submit(tmp_path, *runs.values()) == 0
    *lines, content, missing = capsys.readouterr().out.splitlines()
    assert lines[1] == f"CB: {runs['CB']}, row mpdistil, seed 42, protocol paper, 250 predictions"
    assert len(lines) == 6
    assert content.endswith("out.zip: BoolQ.jsonl, CB.jsonl, COPA.jsonl, RTE.jsonl, WSC.jsonl, WiC.jsonl")
    assert "no run given" not in missing
    assert all(name in missing for name in ("MultiRC", "ReCoRD", "AX-b", "AX-g"))
    first = {"BoolQ": '"false"', "CB": '"entailment"', "COPA": "0", "RTE": '"entailment"', "WiC": '"false"',
             "WSC": '"False"'}
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == sorted(f"{name}.jsonl" for name in TASK_NAMES)
        for entry in archive.infolist():
            name, lines = entry.filename.removesuffix(".jsonl"), archive.read(entry).decode().splitlines()
            assert lines[0] == f'{{"idx": 0, "label": {first[name]}}}'
            assert [json.loads(line)["idx"] for line in lines] == list(range(TASKS[name].official["test"]))
            assert entry.date_time == (1980, 1, 1, 0, 0, 0) and entry.external_attr >> 16 == 0o644
    assert not list(tmp_path.glob("*.part*"))


def test_the_same_bytes_whatever_the_order_and_the_process(tmp_path, capsys):
    path = make_run(tmp_path / "cb")
    make_run(tmp_path / "wsc", "WSC", row="no_curriculum", curriculum="main_task", set=["dropout=training"])
    assert submit(tmp_path, tmp_path / "cb", tmp_path / "wsc") == 0
    out, before = capsys.readouterr().out, (tmp_path / "out.zip").read_bytes()
    assert "row no_curriculum, seed 42, protocol paper dropout=training, 146" in out
    assert "BoolQ, COPA, RTE, WiC (no run given)" in out
    write_lines(path, reversed(path.read_text().splitlines()))
    command = [sys.executable, str(ROOT / "scripts" / "make_submission.py")]
    done = subprocess.run([*command, "wsc", "cb", "--output", "out.zip"], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0 and (tmp_path / "out.zip").read_bytes() == before, done.stderr


def test_the_row_that_is_asked_for(tmp_path, capsys):
    make_run(tmp_path / "run")
    kd = tmp_path / "run" / "predictions" / "kd" / "test" / "CB.jsonl"
    write_predictions(kd, TASKS["CB"], range(250), [2] * 250)
    assert submit(tmp_path, tmp_path / "run", flags=("--row", "kd")) == 0
    assert "row kd" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.read("CB.jsonl").decode() == kd.read_text()
    refused(capsys, submit(tmp_path, tmp_path / "run", flags=("--row", "teacher")), "--row teacher",
            "expected one of kd, mpdistil")
    make_run(tmp_path / "short", row="kd", stopped_after="kd")
    refused(capsys, submit(tmp_path, tmp_path / "short"), "no row mpdistil", "stopped after kd",
            "--row with one of kd")


@pytest.mark.parametrize("change, expected", [
    (lambda lines: lines[:-1], ("249 predictions found", "expected 250")),
    (lambda lines: [*lines, '{"idx": 250, "label": "neutral"}'], ("251 predictions found",)),
    (lambda lines: [*lines[:-1], lines[0]], ("CB.jsonl:250", "idx 0 stands already", "CB.jsonl:1")),
    (lambda lines: [*lines[:-1], '{"idx": 250, "label": "neutral"}'],
     ("1 missing (249), 1 unexpected (250)", "official")),
    (lambda lines: [line.replace('"idx": 7,', '"idx": "7",') for line in lines], ("1 differ only in type",)),
    (lambda lines: [*lines[:-1], '{"idx": 249, "label": "true"}'],
     ("CB.jsonl:250", 'label "true"', '"neutral"')),
    (lambda lines: [], ("0 predictions found",))])
def test_wrong_rows_idx_and_labels_are_refused(change, expected, tmp_path, capsys):
    path = make_run(tmp_path / "run")
    write_lines(path, change(path.read_text().splitlines()))
    refused(capsys, submit(tmp_path, tmp_path / "run"), path, *expected)
    assert not list(tmp_path.glob("out.zip*"))


def test_runs_that_make_no_submission_are_refused(tmp_path, capsys):
    runs = [tmp_path / "one", tmp_path / "two"]
    paths = [make_run(folder) for folder in runs]
    refused(capsys, submit(tmp_path, *runs), *runs, "both are runs of CB")
    paths[0].unlink()
    refused(capsys, submit(tmp_path, runs[0]), paths[0], "no such file", "official test file in CB/")
    text = (runs[1] / "result.json").read_text()
    (runs[1] / "result.json").write_text(text.replace("42", "43"))
    refused(capsys, submit(tmp_path, runs[1]), "two/result.json", "not what a run wrote")
    (runs[1] / "result.json").unlink()
    refused(capsys, submit(tmp_path, runs[1]), "two: no result.json", "finished run")
    make_run(runs[1])
    refused(capsys, make_submission.main([str(runs[1]), "--output", str(tmp_path / "none" / "x.zip")]),
            "--output", "none/x.zip")
    refused(capsys, make_submission.main([str(runs[1]), "--output", str(tmp_path / "x")]), "--output", ".zip")


# --- predictions to be scored later -------------------------------------------------------------------------

def test_predictions_without_labels_are_kept_small(command, data_dir, tmp_path, capsys):
    """Each once, in the same bytes; unpacked they are scored as the run's own; a zip is added to."""
    import keep_predictions
    _, first = command(folder="cb/first", stop_after="kd", undistilled=True)
    _, other = command(folder="cb/other", stop_after="kd", undistilled=True, kd_200=False, seed=43)
    _, again = command(folder="cb/again", stop_after="kd", undistilled=True)  # shares all phases
    kept = tmp_path / "kept.zip"
    assert keep_predictions.main([str(first), str(again), "--output", str(kept)]) == 0
    assert "3 prediction files, 3 of them new, of 2 finished runs" in capsys.readouterr().out
    before = kept.read_bytes()
    assert keep_predictions.main([str(first), "--output", str(kept)]) == 0 and kept.read_bytes() == before
    assert keep_predictions.main([str(other), "--output", str(kept)]) == 0
    assert "6 prediction files, 3 of them new, of 1 finished runs" in capsys.readouterr().out
    with zipfile.ZipFile(kept) as content:
        content.extractall(tmp_path / "there")
        assert "cb/first/kd/test/CB.jsonl" in content.namelist()
        assert not any("/dev/" in name for name in content.namelist())
    for row in ("teacher", "student", "kd"):
        file = tmp_path / "there" / "cb" / "first" / row / "test" / "CB.jsonl"
        assert file.read_bytes() == (first / "predictions" / row / "test" / "CB.jsonl").read_bytes()
    predicted = [json.loads(line) for line in file.read_text().splitlines()]
    (tmp_path / "labels" / "CB").mkdir(parents=True)
    labels = tmp_path / "labels" / "CB" / "test.jsonl"
    lines = [json.loads(line) for line in (data_dir / "CB" / "test.jsonl").read_text().splitlines()]
    labels.write_text("".join(json.dumps({**line, "label": guess["label"]}) + "\n"
                              for line, guess in zip(lines, predicted, strict=True)))
    assert score.main(["--predictions", str(file.parent), "--labels", str(labels)]) == 0
    assert "| CB | 8/8 | 100.0 |" in capsys.readouterr().out

    file = first / "predictions" / "kd" / "test" / "CB.jsonl"
    file.write_text(file.read_text() + "\n")
    sweeps = [tmp_path / name / "cb" / "first" for name in ("one", "two")]  # two answers of phase 4
    for folder in sweeps:
        shutil.copytree(first, folder)
        result = read_record(folder / "result.json", "")
        write_record(folder / "result.json", {**result, "rows": {"mpdistil": {"dev": {}}}})
        write_lines(folder / "predictions" / "mpdistil" / "test" / "CB.jsonl", [{"by": str(folder)}])
    assert keep_predictions.main([*map(str, sweeps), "--output", str(tmp_path / "both.zip")]) == 2
    assert "has other predictions as cb/first/mpdistil/test/CB.jsonl" in capsys.readouterr().err
    for runs, output, said in (
            (first, kept, "has other predictions as cb/first/kd/test/CB.jsonl than"),
            (labels.parent, kept, "no finished run found, expected folders with a result.json"),
            (first, labels, "not a zip that can be added to")):
        before = output.read_bytes()
        assert keep_predictions.main([str(runs), "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and output.read_bytes() == before

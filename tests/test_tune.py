"""Rates chosen on quiz: the choice, the runs, the record and who uses it."""
import json
import re

import pytest

from lib.rates import choose, describe, paired_interval, read_rates

import make_tables
import show_rates
import sweep
import tune
from bookkeeping.files import read_json, write_record
from conftest import read_lines

# --- the choice ---------------------------------------------------------------------------------------------

def test_a_value_that_is_told_apart_is_chosen():
    choice = choose({1e-5: [0.50, 0.52, 0.51], 1e-4: [0.60, 0.63, 0.62], 1e-3: [0.55, 0.57, 0.56]}, 2e-5, 100)
    assert (choice["best"], choice["next"], choice["choice"]) == (1e-4, 1e-3, 1e-4) and choice["told_apart"]
    assert choice["difference"] == pytest.approx(0.0567, abs=1e-3) and choice["low"] > 0
    assert "told apart" in describe(choice, "learning_rate") and "not told" not in describe(
        choice, "learning_rate")


def test_of_two_that_are_not_told_apart_the_one_nearer_to_the_default_is_chosen():
    scores = {1e-5: [0.4, 0.4, 0.4], 1e-4: [0.60, 0.70, 0.50], 1e-3: [0.61, 0.69, 0.53]}
    choice = choose(scores, 2e-5, 100)
    assert choice["best"] == 1e-3 and choice["choice"] == 1e-4 and not choice["told_apart"]
    assert choice["low"] < 0 < choice["high"] and "not told apart" in describe(choice, "learning_rate")
    assert choose(scores, 1e-2, 100)["choice"] == 1e-3


def test_of_one_division_the_best_is_chosen():
    """Else the default would always win, whatever was measured."""
    choice = choose({2e-5: [0.2], 1e-4: [0.9]}, 2e-5, 100)
    said = describe(choice, "learning_rate")
    assert choice["choice"] == 1e-4 and choice["low"] is None and not choice["told_apart"]
    assert "(one division, no interval): not told apart, so the best one is taken" in said


def test_paired_interval_by_hand():
    mean, low, high = paired_interval([0.0, 0.1, 0.2], 100)
    reach = 4.302653 * 0.1 * (1 / 3 + 1 / 9) ** 0.5
    assert (mean, low, high) == pytest.approx((0.1, 0.1 - reach, 0.1 + reach), abs=1e-6)


def test_divisions_that_agree_by_chance_tell_nothing_apart():
    """Two that differ by as much have no spread; quiz has 25 examples."""
    choice = choose({2e-5: [0.50, 0.60], 1e-4: [0.54, 0.64]}, 2e-5, 25)
    assert choice["choice"] == 2e-5 and not choice["told_apart"]
    reach = 12.706205 * (1 / 6) ** 0.5 / 25 * (1 / 2 + 1 / 9) ** 0.5
    assert (choice["low"], choice["high"]) == pytest.approx((0.04 - reach, 0.04 + reach), abs=1e-6)


def test_a_page_of_records(tmp_path, capsys):
    """Means, spreads and hours by hand; the teachers of the second choice are not counted again."""
    def runs(flag, **scores):
        return [{"flag": flag, "value": float(value), "split_seed": n, "seed": n, "score": score,
                 "seconds": {"teacher": 3600.0, **({"kd": 1800.0} if flag == "learning_rate" else {})}}
                for value, found in scores.items() for n, score in enumerate(found)]

    rates = {"2e-5": [0.5, 0.7], "1e-4": [0.9, 0.8]}
    choice = choose({float(value): found for value, found in rates.items()}, 2e-5, 25)
    write_record(tmp_path / "rates.json", {
        "task": "CB", "encoder": {"teacher": "tiny", "student": "tiny", "nlayers": 3}, "protocol": "paper",
        "set": [], "metric": "accuracy", "quiz": 25, "splits": 2, "flags": {"teacher_learning_rate": 2e-5},
        "choices": {"teacher_learning_rate": choice, "learning_rate": choice},
        "runs": [*runs("teacher_learning_rate", **rates), *runs("learning_rate", **rates)]})
    assert show_rates.main([str(tmp_path / "rates.json")]) == 0
    page = capsys.readouterr().out
    assert "2 divisions into train and quiz; 6.0 hours of training" in page
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()
             if line.startswith("|")]
    assert lines[2:4] == [["--teacher_learning_rate", "2e-05 (chosen)", "60.0", "14.1", "2"],
                          ["--teacher_learning_rate", "0.0001", "85.0", "7.1", "2"]]
    assert f"- {describe(choice, 'learning_rate')}\n" in page and "not told apart" in page
    (tmp_path / "rates.json").write_text("{}")
    assert show_rates.main([str(tmp_path / "rates.json")]) == 2


# --- the command --------------------------------------------------------------------------------------------

@pytest.fixture
def words(encoders, data_dir, tmp_path):
    """A small choice; flags given replace or follow these."""
    def of(*more, **flags):
        settings = {
            "task": "cb", "data_dir": data_dir, "teacher_model": encoders["bert"], "nlayers": 2,
            "rates": "1e-3 1e-2", "split_seeds": 2, "teacher_epochs": 3, "epochs": 3, "max_seq_length": 48,
            "val_dataloader_size": 4, "output_dir": tmp_path / "tune", **flags
        }
        return [word for name, value in settings.items() if value is not None
                for word in (f"--{name}", *str(value).split(" "))] + list(more)
    return of


@pytest.mark.usefixtures("in_process")
def test_rates_are_chosen_on_quiz_and_kept(words, tmp_path, capsys):
    """Printed first, then made, then found finished; every run's score is the mean over the last half of the
    epochs."""
    assert tune.main(words(split_seeds=1)) == 0
    said = capsys.readouterr().out
    assert said.count("main_superglue.py") == 2 and "--teacher_learning_rate is chosen when" in said
    assert tune.main(words("--go", split_seeds=1)) == 0
    said = capsys.readouterr().out
    record = read_json(tmp_path / "tune" / "cb" / "rates.json", "")
    assert (f"use: --teacher_learning_rate {record['flags']['teacher_learning_rate']:g} --learning_rate"
            in said)
    assert (record["task"] == "CB" and record["quiz"] == 6 and record["splits"] == 1
            and len(record["runs"]) == 4)
    for run in record["runs"]:
        folder = tmp_path / "tune" / "cb" / f"{run['flag']}-{run['value']:g}-split{run['split_seed']}"
        args = read_json(folder / "args.json", "")
        assert args["select_on"] == "quiz" and args["seed"] == run["seed"] >= 1001 and args["tasks"] == ["CB"]
        rows = ("teacher",) if run["flag"] == "teacher_learning_rate" else ("student", "kd")
        lines = read_lines(folder / "metrics.jsonl")
        means = [[line["scores"]["quiz"]["accuracy"]
                  for line in lines
                  if line["phase"] == row][1:]
                 for row in rows]
        assert run["score"] == pytest.approx(sum(sum(scores) / 2 for scores in means) / len(means))
    later = [run for run in record["runs"] if run["flag"] == "learning_rate"]
    assert {
        read_json(
            tmp_path / "tune" / "cb" / f"learning_rate-{run['value']:g}-split{run['split_seed']}" /
            "args.json", "")["teacher_learning_rate"] for run in later
    } == {record["flags"]["teacher_learning_rate"]}
    before = (tmp_path / "tune" / "cb" / "rates.json").read_bytes()
    assert tune.main(words(split_seeds=1)) == 0 and "# finished" not in capsys.readouterr().out
    assert (tmp_path / "tune" / "cb" / "rates.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_more_flags_one_at_a_time(words, tmp_path):
    assert tune.main(words("--also", "alpha", "--go", split_seeds=1, teacher_epochs=1, epochs=1)) == 0
    record = read_json(tmp_path / "tune" / "cb" / "rates.json", "")
    assert list(record["flags"]) == ["teacher_learning_rate", "learning_rate", "alpha"]
    assert [value for value, _ in record["choices"]["alpha"]["means"]] == [0.2, 0.5, 0.8]


@pytest.mark.parametrize("more, flags, message", [
    ((), {"rates": "1e-3"}, "argument --rates: one rate found (0.001), expected at least two"),
    ((), {"task": "xnli"}, "'xnli' found"),
    (("--seed", "3"), {}, "--seed: the choice of rates sets it itself"),
    ((), {"rates": "1e-3 -1"}, "'-1' found")])
def test_usage_errors(more, flags, message, words, capsys):
    with pytest.raises(SystemExit) as stop:
        tune.main(words(*more, **flags))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.count("\n") == 1


def test_a_task_without_quiz_is_refused(words, data_dir, tmp_path, capsys):
    folder = tmp_path / "data" / "CB"
    folder.mkdir(parents=True)
    for name in ("train", "val"):
        lines = (data_dir / "CB" / f"{name}.jsonl").read_text().splitlines()[:4]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    assert tune.main(words("--go", data_dir=tmp_path / "data")) == 2
    said = capsys.readouterr().err
    assert "--task CB: no quiz split (4 training examples" in said and said.count("\n") == 1


# --- who uses it --------------------------------------------------------------------------------------------

@pytest.fixture
def record(encoders, tmp_path):
    """A record as tune.py writes it, changed where asked; its path."""
    from bookkeeping.checkpoints import checksum_checkpoint
    sha256 = checksum_checkpoint(encoders["bert"])

    def write(name="rates.json", **changes):
        choice = choose({1e-3: [0.5, 0.6], 1e-2: [0.7, 0.9]}, 2e-5, 6)
        content = {
            "task": "CB", "encoder": {
                "teacher": "bert", "student": "bert", "teacher_sha256": sha256, "student_sha256": sha256,
                "nlayers": 2
            }, "protocol": "paper", "set": [],
            "flags": {"teacher_learning_rate": 1e-3, "learning_rate": 1e-2},
            "choices": {"teacher_learning_rate": choice,
                        "learning_rate": choice}, "splits": 2, "quiz": 6, **changes
        }
        write_record(tmp_path / name, content)
        return tmp_path / name
    return write


def sweep_words(encoders, data_dir, output, *more):
    return [
        "--data_dir",
        str(data_dir), "--tasks", "CB", "--teacher_model",
        str(encoders["bert"]), "--nlayers", "2", "--rows", "kd", "--teacher_epochs", "1", "--epochs", "1",
        "--max_seq_length", "48", "--val_dataloader_size", "4", "--output_dir",
        str(output), *more
    ]


@pytest.mark.usefixtures("in_process")
def test_a_sweep_takes_the_rates_and_the_table_says_so(record, encoders, data_dir, tmp_path, capsys):
    output = tmp_path / "runs"
    assert sweep.main(sweep_words(encoders, data_dir, output, "--rates", str(record()), "--go")) == 0
    args = read_json(next(output.glob("cb/*/args.json")), "")
    assert (args["teacher_learning_rate"], args["learning_rate"]) == (1e-3, 1e-2)
    capsys.readouterr()
    assert make_tables.main([str(output), "--table", "1a", "--mixed"]) == 0
    page = capsys.readouterr().out
    said = re.search(
        r"CB: learning rates 0.001 \(teacher\) and 0.01 \(student\), chosen by the score on quiz .*", page)[0]
    assert "6 examples" in said and "2 divisions" in said and "--learning_rate" in said
    (output / "cb" / "rates.json").unlink()
    assert make_tables.main([str(output), "--table", "1a", "--mixed"]) == 0
    assert "(student), not chosen on quiz." in capsys.readouterr().out


def test_other_readings_are_compared_at_the_same_rates(record, encoders, data_dir, tmp_path, capsys):
    words = sweep_words(encoders, data_dir, tmp_path / "runs", "--rates", str(record()), "--set",
                        "pkd_layers=skip")
    assert sweep.main(words) == 0
    said = capsys.readouterr().out
    assert "--set pkd_layers=skip" in said and " --learning_rate 0.01" in said


@pytest.mark.parametrize(
    "changes, more, message",
    [
        ({"task": "COPA"}, (), "no record of CB found (records of COPA)"),
        (
            {
                "encoder": {
                    "teacher": "other",
                    "student": "other",
                    "teacher_sha256": "0" * 64,
                    "student_sha256": "0" * 64,
                    "nlayers": 2,
                }
            },
            (),
            "chosen for another teacher encoder (other, sha256 0000",
        ),
        ({"protocol": "released"}, (), "chosen with --protocol released"),
        ({}, ("--set", "padding=max_length", "pkd_layers=skip"),
         "chosen with --set [], the sweep has ['padding=max_length']"),
        ({}, ("--learning_rate", "1e-4"), "chooses --learning_rate, which is given as well"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(changes, more, message, record, encoders, data_dir, tmp_path,
                                               capsys):
    words = sweep_words(encoders, data_dir, tmp_path / "runs", "--rates", str(record(**changes)), *more)
    assert sweep.main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_records_that_are_none(record, tmp_path, encoders, data_dir, capsys):
    path = record()
    content = json.loads(path.read_text())
    content["flags"]["learning_rate"] = 1.0
    path.write_text(json.dumps(content))
    assert sweep.main(sweep_words(encoders, data_dir, tmp_path / "runs", "--rates", str(path))) == 2
    assert "its checksum differs" in capsys.readouterr().err
    assert set(read_rates([record("a.json")])) == {"CB"}
    assert sweep.main(sweep_words(encoders, data_dir, tmp_path / "runs", "--rates", str(record("a.json")),
                                  str(record("b.json")))) == 2
    assert "CB stands in another file as well" in capsys.readouterr().err

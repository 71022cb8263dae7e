"""Collect the test predictions of finished runs, one a task, into the .zip that the SuperGLUE or the GLUE
leaderboard takes.

    python scripts/make_submission.py RUN_FOLDER [RUN_FOLDER ...] --output submission.zip
    python scripts/make_submission.py --benchmark glue RUN_FOLDER [RUN_FOLDER ...] --output submission.zip

Number, idx and labels of the predictions are checked against the official test files. The same runs give
the same bytes.
"""
import json
import os
import sys
import zipfile
from pathlib import Path

from lib.commands import exit_code
from lib.predictions import compare_idx

from arguments import OneLineParser
from bookkeeping.errors import InputError
from bookkeeping.files import read_record, sync
from metrics import read_predictions
from tasks import BENCHMARKS, TASKS, tasks_of

NOT_COMPUTED = {"superglue": ("MultiRC, ReCoRD (this project does not compute them)",
                              "AX-b, AX-g (predictions of an RTE model on the diagnostic sets, which this"
                              " project does not compute)"), "glue": ()}
GLUE_FILES = {"MNLI": {"test": "MNLI-m", "test_mismatched": "MNLI-mm", "ax": "AX"}}  # others: as the task


def as_superglue(task, found):
    """The content of a file for SuperGLUE. found: {idx: answer}, in the order of idx."""
    return "".join(json.dumps({"idx": idx, "label": task.rules.labels.write(answer, task)}) + "\n"
                   for idx, answer in found.items())


def as_glue(task, found):
    """The content of a file for GLUE: numbers lie within the labels' range there, with three digits."""
    def spell(answer):
        if task.rules.labels.counts:
            return task.rules.labels.write(answer, task)
        low, high = task.label_range
        return f"{min(max(answer, low), high):.3f}"

    return "index\tprediction\n" + "".join(f"{idx}\t{spell(answer)}\n" for idx, answer in found.items())


def read_test(folder, row, task, split):
    """{idx: answer} of a run's predictions for an official test file, in the order of idx."""
    file, count = folder / "predictions" / row / split / f"{task.name}.jsonl", task.official[split]
    way_out = f"run it with the official {split} file in {task.name}/"
    if not file.is_file():
        raise InputError(f"{file}: no such file, expected {count} predictions for the test set; {way_out}")
    found = read_predictions(file, task)
    if len(found) != count:
        raise InputError(f"{file}: {len(found)} predictions found, expected {count}, as many as the official"
                         f" test set has; {way_out}")
    # the idx of every official test file
    compare_idx(file, found, range(count), f"the official test set, 0 to {count - 1}", way_out)
    # sorted, so that no grader that goes by lines can go wrong
    return {idx: found[idx] for idx in range(count)}


def read_run(folder, row, benchmark):
    """(task, {file of the leaderboard: its content}, what to say of it) of a run; row None: that of its last
    phase."""
    if not (folder / "result.json").is_file():
        raise InputError(f"{folder}: no result.json found, expected the folder of a finished run; give the"
                         " run's command again, it goes on")
    result = read_record(folder / "result.json", "give the folder as the run left it")
    if result["task"] not in tasks_of(benchmark):
        raise InputError(f"{folder}: a run of {result['task']} found, expected one of the tasks of"
                         f" --benchmark {benchmark}: {', '.join(tasks_of(benchmark))}")
    task, last = TASKS[result["task"]], "no_curriculum" if result["curriculum"] == "main_task" else "mpdistil"
    chosen = last if row is None else row
    if chosen not in result["rows"]:
        rows = ", ".join(result["rows"])
        if row is not None:
            raise InputError(f"--row {row}: no such row in {folder}, expected one of {rows}")
        raise InputError(f"{folder}: no row {last} found, it stopped after {result['stopped_after']}; give"
                         f" its command again without --stop_after, or --row with one of {rows}")
    if benchmark == "superglue":
        names, write, ending = {"test": task.name}, as_superglue, "jsonl"
    else:
        names, write, ending = GLUE_FILES.get(task.name, {"test": task.name}), as_glue, "tsv"
    contents, said = {}, []
    for split, name in names.items():
        if split == "ax" and not (folder / "predictions" / chosen / split).is_dir():
            continue  # its file was not beside the data
        found = read_test(folder, chosen, task, split)
        contents[f"{name}.{ending}"] = write(task, found)
        said.append(f"{len(found)} predictions" + f" of {split}" * (len(names) > 1))
    protocol = " ".join([result["protocol"], *result["set"]])
    return task, contents, (f"{task.name}: {folder}, row {chosen}, seed {result['seed']}, protocol"
                            f" {protocol}, {', '.join(said)}")


def write_zip(path, contents):
    """A .zip of {name: text}: the same bytes at any time and on any machine. Written under another name,
    synced, then renamed."""
    part = Path(f"{path}.part{os.getpid()}")
    try:
        # stored: what deflate makes of it differs between versions of zlib
        with zipfile.ZipFile(part, "w") as archive:
            for name in sorted(contents):
                entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                # Unix; without a mode unzip leaves files that nobody may read
                entry.create_system, entry.external_attr = 3, 0o644 << 16
                archive.writestr(entry, contents[name])
        sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def collect(folders, output, row, benchmark):
    """Check the runs, write the .zip, and say what is in it and what a complete submission lacks."""
    if output.suffix != ".zip" or output.is_dir() or not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: expected the name of a .zip file in a folder that exists")
    runs, contents, lines = {}, {}, []
    for folder in folders:
        task, files, line = read_run(folder, row, benchmark)
        if task.name in runs:
            raise InputError(f"{runs[task.name]} and {folder}: both are runs of {task.name}; give one run a"
                             " task")
        runs[task.name], contents = folder, contents | files
        lines.append(line)
    write_zip(output, contents)
    without_run = [name for name in tasks_of(benchmark) if name not in runs]
    missing = ([f"{', '.join(without_run)} (no run given)"] if without_run else [])
    missing += NOT_COMPUTED[benchmark]
    if benchmark == "glue" and "AX.tsv" not in contents:
        missing.append("AX (predictions of an MNLI model on the diagnostic set, which lie in its run where"
                       f" {' or '.join(TASKS['MNLI'].layout.diagnostic)} was in --data_dir)")
    print(*lines, f"{output}: {', '.join(sorted(contents))}",
          f"missing for a complete submission: {'; '.join(missing) or 'nothing'}", sep="\n")


def main(argv=None):
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.zip", help="the .zip to write")
    parser.add_argument("--benchmark", choices=tuple(BENCHMARKS), default="superglue",
                        help="whose leaderboard (default: superglue)")
    parser.add_argument("--row", help="whose predictions, such as kd; without it those of the last phase,"
                                      " mpdistil or no_curriculum")
    args = parser.parse_args(argv)
    return exit_code(collect, args.runs, args.output, args.row, args.benchmark)


if __name__ == "__main__":
    sys.exit(main())

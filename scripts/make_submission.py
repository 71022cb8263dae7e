"""Collect the test predictions of finished runs, one a task, into the .zip that the SuperGLUE leaderboard
takes.

    python scripts/make_submission.py RUN_FOLDER [RUN_FOLDER ...] --output submission.zip

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
from tasks import TASKS

NOT_COMPUTED = ("MultiRC, ReCoRD (this project does not compute them)",
                "AX-b, AX-g (predictions of an RTE model on the diagnostic sets, which this project does not"
                " compute)")


def read_run(folder, row):
    """(task, the file's content for the leaderboard, what to say of it) of a run; row None: that of its
    last phase."""
    if not (folder / "result.json").is_file():
        raise InputError(f"{folder}: no result.json found, expected the folder of a finished run; give the"
                         " run's command again, it goes on")
    result = read_record(folder / "result.json", "give the folder as the run left it")
    if result["task"] not in TASKS:
        raise InputError(f"{folder}: task {result['task']} found, expected one of {', '.join(TASKS)}")
    if TASKS[result["task"]].official is None:
        raise InputError(f"{folder}: {result['task']} is no task of the leaderboard; leave this run out")
    task, last = TASKS[result["task"]], "no_curriculum" if result["curriculum"] == "main_task" else "mpdistil"
    chosen = last if row is None else row
    if chosen not in result["rows"]:
        rows = ", ".join(result["rows"])
        if row is not None:
            raise InputError(f"--row {row}: no such row in {folder}, expected one of {rows}")
        raise InputError(f"{folder}: no row {last} found, it stopped after {result['stopped_after']}; give"
                         f" its command again without --stop_after, or --row with one of {rows}")
    file, count = folder / "predictions" / chosen / "test" / f"{task.name}.jsonl", task.official[2]
    way_out = f"run it with the official {task.name}/test.jsonl"
    if not file.is_file():
        raise InputError(f"{file}: no such file, expected {count} predictions for the test set; {way_out}")
    found = read_predictions(file, task)
    if len(found) != count:
        raise InputError(f"{file}: {len(found)} predictions found, expected {count}, as many as the official"
                         f" test set has; {way_out}")
    # the idx of every official test file
    compare_idx(file, found, range(count), f"the official test set, 0 to {count - 1}", way_out)
    # sorted, so that no grader that goes by lines can go wrong
    lines = [json.dumps({"idx": idx, "label": task.answers[found[idx]]}) + "\n" for idx in range(count)]
    protocol = " ".join([result["protocol"], *result["set"]])
    said = (f"{task.name}: {folder}, row {chosen}, seed {result['seed']}, protocol {protocol}, {count}"
            " predictions")
    return task, "".join(lines), said


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


def collect(folders, output, row):
    """Check the runs, write the .zip, and say what is in it and what a complete submission lacks."""
    if output.suffix != ".zip" or output.is_dir() or not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: expected the name of a .zip file in a folder that exists")
    runs, contents, lines = {}, {}, []
    for folder in folders:
        task, content, line = read_run(folder, row)
        if task.name in runs:
            raise InputError(f"{runs[task.name]} and {folder}: both are runs of {task.name}; give one run a"
                             " task")
        runs[task.name], contents[f"{task.name}.jsonl"] = folder, content
        lines.append(line)
    write_zip(output, contents)
    without_run = [name for name, task in TASKS.items() if task.official and name not in runs]
    missing = ([f"{', '.join(without_run)} (no run given)"] if without_run else []) + list(NOT_COMPUTED)
    print(*lines, f"{output}: {', '.join(sorted(contents))}",
          f"missing for a complete submission: {'; '.join(missing)}", sep="\n")


def main(argv=None):
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.zip", help="the .zip to write")
    parser.add_argument("--row", help="whose predictions, such as kd; without it those of the last phase,"
                                      " mpdistil or no_curriculum")
    args = parser.parse_args(argv)
    return exit_code(collect, args.runs, args.output, args.row)


if __name__ == "__main__":
    sys.exit(main())

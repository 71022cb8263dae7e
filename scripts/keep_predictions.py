"""Keep what finished runs predict for files without labels, small, to be scored once labels are at hand.

    python scripts/keep_predictions.py RUNS... --output test_predictions.zip
    unzip test_predictions.zip -d there
    python scripts/score.py --predictions there/rte/RUN/mpdistil/test --labels RTE/test.jsonl

RUNS are run folders or folders of them. The zip has the prediction files as the runs have them, under
<task>/<run>/<row>/<split>/. A row that runs share stands there once, under the first run that has it. A zip
that is there already is added to. The same runs give the same bytes.
"""
import os
import sys
import zipfile
from pathlib import Path

from lib.commands import exit_code
from lib.run_records import find_runs

from arguments import OneLineParser
from bookkeeping.errors import InputError
from bookkeeping.files import read_record


def files_of(folder):
    """(what was predicted and by what, name in the zip, file) of a finished run's predictions that are not
    scored in its result."""
    result = read_record(folder / "result.json", "give finished runs of main_superglue.py")
    for row, figures in result["rows"].items():
        phase = result["phases"].get(row, {}).get("identity", str(folder.resolve()))  # phase 4's is its own
        for path in sorted((folder / "predictions" / row).glob("*/*.jsonl")):
            split = path.parent.name
            if not figures.get(split):
                where = f"{folder.parent.name}/{folder.name}/{row}/{split}/{path.name}"
                yield (phase, row, split, path.stem), where, path


def read_zip(path):
    """{name: bytes} of a zip; empty where there is none. InputError where it is none."""
    if not path.exists():
        return {}
    try:
        with zipfile.ZipFile(path) as kept:
            return {name: kept.read(name) for name in kept.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"--output {path}: not a zip that can be added to ({error}); remove it, or give"
                         " another name") from None


def keep(args):
    """Write the zip."""
    content, seen, runs = read_zip(args.output), set(), []
    for path in args.runs:
        runs += find_runs(path)[0]
    if not runs:
        raise InputError(f"RUNS {' '.join(map(str, args.runs))}: no finished run found, expected folders with"
                         " a result.json")
    before = len(content)
    for folder in runs:
        for what, name, path in files_of(folder):
            if what in seen:
                continue
            seen.add(what)
            predicted = path.read_bytes()
            if content.setdefault(name, predicted) != predicted:
                raise InputError(f"--output {args.output}: has other predictions as {name} than {path}; give"
                                 " another --output, or the runs other names")
    # what was there stays until the new one is whole
    part = args.output.with_name(f"{args.output.name}.part")
    try:
        with zipfile.ZipFile(part, "w") as kept:
            for name in sorted(content):  # of a fixed date, so that nothing but the content counts
                kept.writestr(zipfile.ZipInfo(name), content[name], zipfile.ZIP_LZMA)
        os.replace(part, args.output)
    finally:
        part.unlink(missing_ok=True)
    print(f"{args.output}: {len(content)} prediction files, {len(content) - before} of them new, of"
          f" {len(runs)} finished runs")


def main(argv=None):
    parser = OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS",
                        help="run folders, or folders of them")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE",
                        help="a .zip, made or added to")
    args = parser.parse_args(argv)
    for path in args.runs:
        if not path.is_dir():
            parser.error(f"argument RUNS: {path}: no such folder")
    return exit_code(keep, args)


if __name__ == "__main__":
    sys.exit(main())

"""Kill a run at random moments, give its command again until it is done, and compare what it left with an
uninterrupted run.

    python scripts/kill_test.py --kills 40 --work DIR --task CB --data_dir D --teacher_model M [flags ...]

Each process is killed (SIGKILL) up to --longest seconds after it has begun to work, at a moment drawn from
--kill_seed; every fifth up to twice that after its start, work or not. A run that is done before all kills
were made is begun again in another folder. Compared are all weight files, predictions, the rows of
result.json, metrics.jsonl and trajectories.jsonl (seconds left out). Exit code 1 if anything differs.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def command_of(folder, flags):
    """Words of the run in a folder."""
    return [sys.executable, str(ROOT / "main_superglue.py"), *flags, "--output_dir", str(folder / "run"),
            "--phase_dir", str(folder / "phases")]


def start(folder, flags, log):
    """The run as a process, its output going to a file."""
    return subprocess.Popen(command_of(folder, flags), stdout=log, stderr=subprocess.STDOUT)


def run_to_the_end(folder, flags):
    with open(folder.with_suffix(".log"), "a", encoding="utf-8") as log:
        code = start(folder, flags, log).wait()
    if code:
        sys.exit(f"error: the command ended with code {code}: {folder.with_suffix('.log')}")


def halves(folder):
    """Files that are not whole yet, with the time of their last change."""
    return {
        (str(path), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
        and (
            ".part" in str(path.relative_to(folder))
            or path.name.startswith("part")
            or (path.name.startswith("state-") and not path.with_suffix(".json").exists())
        )
    }


def kill_once(folder, flags, seconds, from_start):
    """Start the command and kill it some seconds after it has begun to work, or after its start. Returns the
    phase that it was in and whether a file was being written, or None if it was done before."""
    log_file, left = folder.with_suffix(".log"), halves(folder)
    with open(log_file, "a", encoding="utf-8") as log:
        before = log_file.stat().st_size
        process = start(folder, flags, log)
        while not from_start and process.poll() is None and log_file.stat().st_size == before:
            time.sleep(0.01)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
    if code == 0:
        return None
    if code != -signal.SIGKILL:
        sys.exit(f"error: the command ended with code {code}: {log_file}")
    finished = {
        path.parent.name.split("-")[0]
        for path in (folder / "phases").glob("*/phase.json")
        if ".part" not in path.parent.name
    }
    phase = next((name for name in ("teacher", "kd", "meta_teacher") if name not in finished), "mpdistil")
    return "start" if log_file.stat().st_size == before else phase, bool(halves(folder) - left)


def content(folder):
    """{what: content} of everything that must not depend on how often the run was killed."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
             if path.suffix == ".safetensors" or (path.suffix == ".jsonl" and "predictions" in path.parts)}
    for name in ("metrics", "trajectories"):
        lines = (folder / "run" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        found[name] = [
            {key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines
        ]
    result = json.loads((folder / "run" / "result.json").read_text(encoding="utf-8"))
    return {**found, "rows": result["rows"]}


def compare(found, expected):
    """Names of what differs."""
    return [name for name in sorted(found | expected) if found.get(name) != expected.get(name)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=40, help="how often (default: %(default)s)")
    parser.add_argument("--kill_seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument(
        "--longest", type=float, default=4.0, help="seconds that a process works at most before it is killed"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs, new")
    own, flags = parser.parse_known_args()
    if own.work.exists():
        parser.error(f"--work {own.work}: exists already; give a new folder")
    own.work.mkdir(parents=True)
    run_to_the_end(own.work / "whole", flags)
    expected, kills, within, differ, number = content(own.work / "whole"), Counter(), 0, [], 0
    moments = random.Random(own.kill_seed)
    while True:
        folder = own.work / f"killed{number}"
        number += 1
        left = own.kills - sum(kills.values())
        while left > 0:
            from_start = sum(kills.values()) % 5 == 4
            hit = kill_once(
                folder, flags, moments.uniform(0, own.longest * (2 if from_start else 1)), from_start
            )
            if hit is None:
                break
            kills[hit[0]] += 1
            within += hit[1]
            left -= 1
            print(
                f"kill {sum(kills.values())}: in phase"
                f" {hit[0]}{', while a file was being written' if hit[1] else ''}",
                flush=True,
            )
        run_to_the_end(folder, flags)
        found = compare(content(folder), expected)
        differ += found
        print(
            f"{folder.name}: {len(expected)} things compared, {len(found)} differ {' '.join(found)}",
            flush=True,
        )
        if left <= 0:
            break
        if not found:  # else it stays to be looked at
            shutil.rmtree(folder)
    by_phase = ", ".join(f"{phase} {count}" for phase, count in kills.items())
    print(
        f"{sum(kills.values())} kills ({by_phase}; {within} while a file was being written), {number} runs,"
        f" {len(differ)} differences"
    )
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main())

"""What timing.sh measured, as the tables of docs/TIMING.md.

    python scripts/show_timing.py OUT_DIR
"""
import argparse
import re
import sys
from pathlib import Path

from lib import formats
from lib.commands import exit_code

from bookkeeping.errors import InputError
from bookkeeping.files import read_json

WAY_OUT = "give the folder that timing.sh wrote"
PARTS = ("backward", "teacher's encoder", "student's encoder", "optimizer", "clipping", "evaluation",
         "frozen outputs, once")
SIDES = {"naive": "naive", "ours": "ours", "bf16": "ours, bf16"}
PEER_COUNTS = ("examples", "updates", "evaluations", "encoder_rows")


def table(header, lines):
    return "table", ("", header, [list(map(str, line)) for line in lines])


def ranged(spread):
    return f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"


def phase_table(tasks):
    """Seconds of each phase. tasks: {task: the figures of benchmark.py}."""
    return table(
        ["task, phase", "naive, s", "ours, s", "ours in bf16, s", "bare steps, s", "naive / ours",
         "naive / bf16", "our step over the bare one", "tokens/s: naive, ours, bf16"],
        [[f"{task} {phase}", *(f"{entry[f'{side}_s']:.0f}" for side in ("naive", "ours", "bf16", "bare")),
          f"{entry['ratio']:.2f}", f"{entry['naive_s'] / entry['bf16_s']:.2f}",
          ranged(entry["over_bare_spread"]),
          ", ".join(f"{entry['tokens_per_second'][side]:.0f}" for side in SIDES)
          if phase != "meta_teacher" else ""]
         for task, figures in tasks.items() for phase, entry in figures["phases"].items()])


def goal_table(tasks):
    """Whole runs."""
    lines = [("whole run, naive, ours, bf16, s",
              lambda of: ", ".join(f"{of['run'][f'{side}_s']:.0f}" for side in SIDES)),
             ("times as fast as naive", lambda of: f"{of['run']['ratio']:.2f}"),
             ("the same in bf16", lambda of: f"{of['run']['naive_s'] / of['run']['bf16_s']:.2f}"),
             ("column of eleven rows over one naive run",
              lambda of: f"{of['column']['column_over_naive_run']:.2f}"),
             ("two runs of phase 4 side by side, times as fast as one after the other",
              lambda of: f"{of['phases']['mpdistil']['side_by_side']['speedup']:.2f}"),
             ("peak memory, naive, ours, bf16, GiB", lambda of: ", ".join(
                 f"{of['peak_memory_bytes'][side] / 2 ** 30:.2f}" for side in SIDES)),
             ("passes of the teacher's encoder after phase 1, an example",
              lambda of: f"{of['teacher_passes_per_example']:.2f}")]
    return table(["", *tasks], [[name, *map(figure, tasks.values())] for name, figure in lines])


def profile_table(tasks):
    """Where the time of each phase goes, in percent of it."""
    return table(["percent of the phase", *PARTS], [
        [f"{task} {phase}, {name}",
         *(f"{100 * shares[part]:.0f}" if shares.get(part) else "" for part in PARTS)]
        for task, figures in tasks.items() for phase, entry in figures["phases"].items()
        if phase != "meta_teacher"
        for side, name in SIDES.items() for shares in [entry["profile"][side]]])


def method_table(methods):
    """A step of every method to compare with, beside kd's."""
    return table(["method", "a step, ms", "over kd's step", "peak memory, GiB"], [
        [name, *([f"{1000 * entry['step_s']['median']:.0f}", ranged(entry["over_kd"])]
                 if name != "kd" else ["", "1"]), f"{entry['peak_memory_bytes'] / 2 ** 30:.2f}"]
        for name, entry in methods.items()])


def peer_line(name, found, cpu, seconds, form):
    """A line of what a round or a run takes. found, cpu: its figures by either clock."""
    ours = [text for side in (found["fp32"], found["bf16"])
            for text in (f"{side[seconds]:{form}}", f"{side['ratio']:.2f}", f"{side['like_for_like']:.2f}")]
    like = found["bf16"]["peer_like_for_like_s"]
    return [name, f"{found['peer'][seconds]:{form}}", f"{like:{form}}", *ours,
            f"{cpu['bf16']['like_for_like']:.2f}"]


def peer_tables(peer):
    """What a round does on each side, what it takes, and the memory."""
    wall, cpu = peer["wall"], peer["cpu"]
    counted = [[phase, *(", ".join(f"{entry[side][key]:.4g}" for key in PEER_COUNTS)
                         for side in ("peer", "bf16"))] for phase, entry in wall["phases"].items()]
    taken = [peer_line(phase, entry, cpu["phases"][phase], "seconds", ".1f")
             for phase, entry in wall["phases"].items()]
    rounds = "/".join(map(str, peer["extrapolated"].values()))
    taken.append(peer_line(f"run of {rounds}", wall["run"], cpu["run"], "run_s", ".0f"))
    memory = [[f"{peer['peak_memory_bytes'][side] / 2 ** 30:.2f}" for side in ("peer", "fp32", "bf16")]]
    return (table(["round", "package: examples, updates, evaluations, rows through an encoder", "ours"],
                  counted),
            table(["round", "package, s", "for our work, s", "ours in fp32, s", "whole", "like for like",
                   "ours in bf16, s", "whole, bf16", "like for like, bf16", "the same of CPU seconds"],
                  taken),
            table(["peak memory, GiB: package", "ours in fp32", "ours in bf16"], memory))


def hour_table(text):
    """Hours of whole tables. text: the lines of hours.md."""
    hours, place = {}, None
    for line in text.splitlines():
        if heading := re.fullmatch(r"## (.*) in (fp32|bf16)", line):
            place = heading.groups()
        elif found := re.fullmatch(r"# (.*): (?:about ([\d.]+) h|no estimate)", line):
            hours.setdefault((place[0], found[1]), {})[place[1]] = found[2] and float(found[2])
    lines = []
    for name in dict.fromkeys(name for name, _ in hours):
        of_table = {task: found for (there, task), found in hours.items() if there == name}
        known = {task: found for task, found in of_table.items() if None not in found.values()}
        lines += [[name, task, *(f"{found[precision]:.1f}" for precision in ("fp32", "bf16"))]
                  for task, found in known.items()]
        lines.append([name, "all of these", *(f"{sum(found[precision] for found in known.values()):.0f}"
                                              for precision in ("fp32", "bf16"))])
        if missing := [task for task in of_table if task not in known]:
            lines.append([name, f"{', '.join(missing)}: no files", "", ""])
    return table(["", "task", "hours, fp32", "hours, bf16"], lines)


def show(folder):
    """Read and say."""
    tasks = {task: read_json(folder / f"{task}.json", WAY_OUT) for task in ("CB", "COPA")}
    for task, figures in tasks.items():
        if "bf16_s" not in figures.get("run", {}):
            raise InputError(f"{folder / task}.json: no figures in bf16 found, which these tables have;"
                             " measure on a machine that multiplies bfloat16 in hardware")
    page = [phase_table(tasks), goal_table(tasks), profile_table(tasks), method_table(tasks["CB"]["methods"])]
    if (folder / "peer.json").is_file():
        page += peer_tables(read_json(folder / "peer.json", WAY_OUT))
    page.append(hour_table((folder / "hours.md").read_text(encoding="utf-8")))
    print(formats.to_markdown(page), end="")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    return exit_code(show, parser.parse_args(argv).folder)


if __name__ == "__main__":
    sys.exit(main())

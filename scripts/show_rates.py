"""Records of rates that tune.py wrote, as markdown: every value's scores on quiz, and what was chosen.

    python scripts/show_rates.py runs/tune/*/rates.json --output rates.md
"""
import argparse
import statistics
import sys
from pathlib import Path

from lib import formats
from lib.commands import exit_code, put
from lib.rates import describe, read_rates

from metrics import METRIC_NAMES

HEADER = ["flag", "value", "mean on quiz", "sd over divisions", "runs"]


def parts_of(record):
    """What the page says of a record."""
    encoder, choices = record["encoder"], record["choices"]
    # the teachers of later choices are those of the first one
    hours = sum(seconds for run in record["runs"] for phase, seconds in run["seconds"].items()
                if phase != "teacher" or run["flag"] == "teacher_learning_rate") / 3600
    lines = []
    for flag, choice in choices.items():
        for value, mean in choice["means"]:
            scores = [run["score"] for run in record["runs"] if (run["flag"], run["value"]) == (flag, value)]
            spread = f"{100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            mark = " (chosen)" if value == choice["choice"] else ""
            lines.append([f"--{flag}", f"{value:g}{mark}", f"{100 * mean:.1f}", spread, str(len(scores))])
    settings = " ".join([record["protocol"], *record["set"]])
    return [
        ("heading", record["task"]),
        ("text", f"{encoder['teacher']} to {encoder['nlayers']} layers of {encoder['student']}, {settings},"
                 f" {METRIC_NAMES[record['metric']]} on quiz ({record['quiz']} examples), mean over the last"
                 f" half of the epochs; {record['splits']} divisions into train and quiz; {hours:.1f} hours"
                 " of training."),
        ("table", ("", HEADER, lines)),
        ("list", [describe(choice, flag) for flag, choice in choices.items()]),
    ]


def show(args):
    """Read and say."""
    records = read_rates(args.records)
    page = [("heading", "Rates chosen on quiz"),
            *(part for _, record in sorted(records.items()) for part in parts_of(record))]
    put(formats.to_markdown(page), args.output)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("records", nargs="+", type=Path, metavar="RATES", help="rates.json of tune.py")
    parser.add_argument("--output", type=Path, help="file to write to (default: the screen)")
    return exit_code(show, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

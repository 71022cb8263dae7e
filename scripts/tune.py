"""Learning rates for a task and an encoder, chosen by the score on quiz, which phases 1 and 2 never train on.

    python scripts/tune.py --task CB --data_dir data --teacher_model encoders/MiniLM --nlayers 3
    python scripts/tune.py ... --jobs 2 --go

First the teacher's rate, then --learning_rate on the rows `student` and `kd` together, then, one at a time,
what --also names (on `kd` alone). Each value is tried on several divisions of the training split into train
and quiz (--split_seeds), with seeds of their own (1001, 1002, ...), which no table uses; dev is never looked
at. The score of a run is the mean of the task's main metric on quiz over the last half of its epochs: no
epoch is picked. With --go the runs are made, some side by side, and the same line goes on after an
interruption. At the end stand the flags to use and a record, <output_dir>/<task>/rates.json, which `sweep.py
--rates FILE` takes. Flags that are not listed below go to main_superglue.py as they are.
"""
import json
import math
import shlex
import sys
from pathlib import Path

from lib.commands import exit_code
from lib.jobs import Job, absolute, absolute_encoders
from lib.local import Sweep
from lib.rates import RATES_FILE, choose, describe
from lib.run_records import encoder_of

from arguments import PATHS, OneLineParser, build_parser, number, parse_arguments, part_of_the_run, written
from bookkeeping.errors import InputError
from bookkeeping.files import read_json, write_record
from bookkeeping.identity import provenance_of
from data_utils import read_task, split_train_quiz, strata_of
from tasks import find_task

FIRST_SEED = 1001  # of data division and training; tables use 42 and up
SPLITS = ((300, 10), (1000, 5), (5000, 2))  # up to so many training examples, so many divisions; else one
ALSO = {"temperature": (1.0, 2.0, 5.0, 10.0), "alpha": (0.2, 0.5, 0.8), "beta": (10.0, 100.0, 500.0)}
OWN = ("--seed", "--split_seed", "--select_on", "--stop_after", "--undistilled", "--teacher_learning_rate",
       "--learning_rate", "--output_dir", "--phase_dir", "--fresh")  # flags that it sets itself


# --- the runs -----------------------------------------------------------------------------------------------

def stages(args):
    """(flag, values, rows whose scores count, where a run may stop) of each choice, in order."""
    yield "teacher_learning_rate", args.rates, ("teacher",), "teacher"
    yield "learning_rate", args.rates, ("student", "kd"), "kd"
    for name in args.also:
        yield name, list(ALSO[name]), ("kd",), "kd"


def plan(args, more, flag, values, stop, chosen):
    """{value: its Jobs, a division of the data each}. chosen: {flag: value} of the choices before."""
    folder, jobs = Path(args.output_dir).resolve() / args.task.lower(), {}
    for value in values:
        for split in range(args.split_seeds):
            flags = {**chosen, flag: value, "split_seed": FIRST_SEED + split, "seed": FIRST_SEED + split}
            words = [
                "--task", args.task, "--tasks", args.task, "--data_dir", args.data_dir, *more, "--select_on",
                "quiz", "--stop_after", stop, *["--undistilled"] * (flag == "learning_rate")
            ]
            words += [word for name, given in flags.items() for word in (f"--{name}", f"{given:g}")]
            words += [
                "--output_dir",
                str(folder / f"{flag}-{value:g}-split{FIRST_SEED + split}"), "--phase_dir",
                str(folder / "phases")
            ]
            jobs.setdefault(value, []).append(Job(words, parse_arguments(words), kind=flag))
    return jobs


def score_of(job, rows):
    """The score of a finished run: the mean, over `rows` and the last half of their epochs, of the task's
    main metric on quiz."""
    lines = [
        json.loads(line) for line in (job.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    metric = find_task(job.args.task, data_dir=job.args.data_dir).metrics[0]
    scores = []
    for row in rows:
        epochs = [line["scores"]["quiz"][metric] for line in lines if line["phase"] == row]
        last = epochs[len(epochs) // 2:]
        scores.append(sum(last) / len(last))
    return sum(scores) / len(scores)


# --- the record ---------------------------------------------------------------------------------------------

def write_rates(args, choices, made, quiz):
    """The record of all choices. made: [(flag, value, Job, score)]. Returns its path."""
    last = made[-1][2]
    result = last.result
    environment = read_json(last.folder / "environment.json", f"remove {last.folder}")
    settings = {name: value for name, value in part_of_the_run(written(last.args)).items()
                if name not in (*PATHS, *choices, "seed", "split_seed")}
    record = {
        "task": args.task, "encoder": encoder_of(result),
        "protocol": result["protocol"], "set": result["set"],
        "metric": find_task(args.task, data_dir=args.data_dir).metrics[0],
        "flags": {flag: choice["choice"] for flag, choice in choices.items()}, "choices": choices,
        "quiz": quiz, "splits": args.split_seeds, "settings": settings, "runs": [{
            "flag": flag, "value": value, "split_seed": job.args.split_seed, "seed": job.args.seed,
            "score": score, "seconds": job.result["seconds"]
        } for flag, value, job, score in made], "environment": provenance_of(environment)
    }
    path = Path(args.output_dir) / args.task.lower() / RATES_FILE
    write_record(path, record)
    return path


def tune(args, more):
    """Plan, then say or do. Returns the exit code."""
    quiz = check_quiz(args, more)
    chosen, choices, made = {}, {}, []
    defaults = vars(build_parser().parse_args(["--task", args.task, "--data_dir", ""]))
    for flag, values, rows, stop in stages(args):
        jobs = plan(args, more, flag, values, stop, chosen)
        flat = [job for found in jobs.values() for job in found]
        if args.go:
            code = Sweep(flat, args.jobs).run()
            if code:
                return code
        elif not all([job.finished() for job in flat]):
            for job in flat:
                print(f"{'# finished: ' if job.finished() else ''}{shlex.join(job.command)}")
            print(f"# --{flag} is chosen when these {len(flat)} runs are finished; the next runs depend on"
                  " it")
            return 0
        scores = {value: [score_of(job, rows) for job in found] for value, found in jobs.items()}
        made += [(flag, value, job, score) for value, found in jobs.items()
                 for job, score in zip(found, scores[value], strict=True)]
        choices[flag] = choose(scores, defaults[flag], quiz)
        chosen[flag] = choices[flag]["choice"]
        print(describe(choices[flag], flag))
    path = write_rates(args, choices, made, quiz)
    print(f"use: {' '.join(f'--{flag} {value:g}' for flag, value in chosen.items())}\nrecord: {path}")
    return 0


def check_quiz(args, more):
    """Examples of quiz. InputError where there is none to choose by, or only one that no seed divides anew.
    Sets the number of divisions where none was given."""
    task = find_task(args.task, data_dir=args.data_dir)
    limits = parse_arguments(["--task", args.task, "--data_dir", args.data_dir, *more])
    most = limits.quiz_size or math.inf
    found = read_task(task, args.data_dir, ("train", "quiz"))
    if "quiz" in found:
        if (args.split_seeds or 1) > 1:
            raise InputError(
                f"--split_seeds {args.split_seeds}: {args.task} brings its own quiz"
                f" ({found['quiz'][0].where.rsplit(':', 1)[0]}), which no seed divides anew; leave the"
                " flag out")
        args.split_seeds = 1
        return min(len(found["quiz"]), most)
    train = found["train"]
    quiz = split_train_quiz(args.task, [e.idx for e in train], strata_of(task, train), FIRST_SEED)[1]
    if not quiz:
        raise InputError(
            f"--task {args.task}: no quiz split ({len(train)} training examples, of which a tenth would be "
            "quiz); there is nothing to choose by: give the rates yourself")
    used = min(len(train), limits.max_train or math.inf)
    args.split_seeds = args.split_seeds or next((count for size, count in SPLITS if used <= size), 1)
    return min(len(quiz), most)


# --- the command line ---------------------------------------------------------------------------------------

def parse(argv=None):
    """(arguments, flags for main_superglue.py)."""
    parser = OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                           epilog="All other flags go to main_superglue.py.")
    rate = number(float, 0, open_low=True)
    parser.add_argument("--task", required=True, help="as main_superglue.py takes it")
    parser.add_argument("--data_dir", required=True, help="as main_superglue.py takes it")
    parser.add_argument("--rates", nargs="+", type=rate, default=[2e-5, 5e-5, 1e-4, 2e-4], metavar="RATE",
                        help="of the teacher, then of the student (default: 2e-5 5e-5 1e-4 2e-4)")
    parser.add_argument(
        "--also", nargs="+", choices=tuple(ALSO), default=[], metavar="FLAG",
        help="choose these too, one at a time: " +
        "; ".join(f"{name} of {', '.join(f'{value:g}' for value in values)}"
                  for name, values in ALSO.items()))
    parser.add_argument(
        "--split_seeds", type=number(int, 1), metavar="N",
        help=("divisions into train and quiz (default: 10 up to 300 training examples, 5 up to 1000, 2 up to"
              " 5000, else 1)"))
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/tune"),
        help="run folders and the record are made in <output_dir>/<task>/ (default: runs/tune)")
    parser.add_argument("--jobs", type=number(int, 1), default=1, help="runs side by side (default: 1)")
    parser.add_argument("--go", action="store_true", help="run the commands instead of printing them")
    args, more = parser.parse_known_args(argv)
    args.rates, args.also = list(dict.fromkeys(args.rates)), list(dict.fromkeys(args.also))
    if len(args.rates) < 2:
        parser.error(
            f"argument --rates: one rate found ({args.rates[0]:g}), expected at least two to choose from")
    taken = [word for word in more if word.split("=")[0] in OWN]
    if taken:
        parser.error(f"{taken[0]}: the choice of rates sets it itself; leave it out")
    try:
        args.task = find_task(args.task, data_dir=args.data_dir).name
    except InputError as error:
        parser.error(str(error))
    args.data_dir = absolute(args.data_dir)
    return args, absolute_encoders(more)


def main(argv=None):
    return exit_code(tune, *parse(argv))


if __name__ == "__main__":
    sys.exit(main())

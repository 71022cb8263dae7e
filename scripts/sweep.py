"""All runs that rows of the paper's tables need, for tasks x seeds: printed as commands, or run with --go.

    python scripts/sweep.py --data_dir data --tasks CB COPA --seeds 42 43 44 --teacher_model encoders/MiniLM
    python scripts/sweep.py ... --jobs 2 --go

Flags that are not listed below go to main_superglue.py as they are. Per task and seed a first run computes
what the others share (teacher, distilled students, meta-teacher), then come the runs of phase 4. With --go,
runs that are finished are skipped, those that were ended go on, those that failed are listed at the end
with their logs and tried again when the same command is given. A folder that holds another run, or one that
other code made, is an error; data that changed in place are not noticed. SIGINT (Ctrl-C), SIGTERM, SIGUSR1
and SIGHUP are passed on to the runs, which save and end; a second one ends them at once.

With --cluster slurm the sweep is one array job, and the command returns; docs/CLUSTER.md describes it. """
import shlex
import shutil
import sys
from pathlib import Path

import lib

from bookkeeping.signals import hold

if __name__ == "__main__":
    hold()  # a cluster's notice may come while torch is imported

import lib.local
import lib.slurm
from lib.commands import exit_code
from lib.cost import estimate
from lib.jobs import plan, without_flag
from lib.rates import RATES_FILE, read_rates, words_of
from lib.rows import ALIASES, LEARNING_SET, ROWS, find_rows

from arguments import OneLineParser, number, parse_arguments, resolve_protocol
from bookkeeping.errors import InputError
from tasks import find_task, tasks_of

BACKENDS = {"local": lib.local.run, "slurm": lib.slurm.run}  # each run(jobs, options) -> exit code
# flags of main_superglue.py that the sweep sets itself
OWN = ("--task", "--seed", "--use_comp_loss", "--reward_function", "--curriculum", "--stop_after",
       "--baselines", "--output_dir", "--phase_dir", "--fresh",
       *(f"--{row.flag}" for row in ROWS.values() if row.flag))


# --- the command line ---------------------------------------------------------------------------------------

def parse(argv=None):
    """The arguments; those for main_superglue.py are in `more`."""
    parser = OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                           epilog="All other flags go to main_superglue.py.")
    parser.add_argument("--data_dir", required=True, help="as main_superglue.py takes it")
    parser.add_argument("--tasks", nargs="+", default=tasks_of("superglue"), metavar="TASK",
                        help=f"main tasks (default: {' '.join(tasks_of('superglue'))})")
    parser.add_argument("--curriculum_tasks", nargs="+", metavar="TASK",
                        help="main_superglue.py's --tasks: curriculum tasks (default: every task of the main"
                             " task's benchmark found in --data_dir)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], metavar="SEED", help="(default: 42)")
    parser.add_argument("--rows", nargs="+", default=["all"], metavar="ROW",
                        help=f"of {', '.join([*ROWS, *ALIASES])} (default: all)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs"),
                        help="run folders are made in <output_dir>/<task>/, which also holds phases/ and"
                             " logs/; one for each encoder and set of flags (default: runs)")
    parser.add_argument("--jobs", type=number(int, 1), default=1,
                        help="runs side by side, each with its part of the cores; on a cluster: in each"
                             " element (default: 1)")
    parser.add_argument("--go", action="store_true", help="run the commands instead of printing them")
    parser.add_argument("--rates", nargs="+", type=Path, metavar="FILE",
                        help="learning rates chosen on quiz: the rates.json of tune.py, one for each task")
    parser.add_argument("--cluster", choices=tuple(BACKENDS), default="local",
                        help="where the runs run; slurm: as one array job, an element a task and seed"
                             " (default: local)")
    parser.add_argument("--sbatch", metavar="FLAGS",
                        help="flags of sbatch for --cluster slurm, --time among them, such as"
                             " '--partition=gpu --gres=gpu:1 --time=08:00:00'")
    parser.add_argument("--at_once", type=number(int, 1), metavar="N",
                        help="elements that a cluster may run at one time (default: all)")
    parser.add_argument("--setup", metavar="COMMANDS",
                        help="lines of shell that an element begins with, such as 'module load cuda'")
    parser.add_argument("--record", type=Path, metavar="FILE",
                        help="set in the script of --cluster slurm: what became of the element is kept here,"
                             " and after SIGUSR1 its job is put back into the queue")
    parser.add_argument("--estimate_from", nargs="+", type=Path, metavar="RUN",
                        help="also say how long the sweep takes, by the steps of these finished runs of the"
                             " same encoder, or of these files of benchmark.py --json")
    args, more = parser.parse_known_args(argv)
    args.more = more
    if args.cluster == "local":
        for flag in ("sbatch", "at_once", "setup"):
            if getattr(args, flag) is not None:
                parser.error(f"argument --{flag}: {getattr(args, flag)!r} found without --cluster slurm")
    elif args.record:
        parser.error("argument --record: is for the element's own command, which runs with --cluster local")
    elif args.sbatch is None:
        parser.error("argument --sbatch: missing, expected at least a time limit, such as --sbatch"
                     " '--time=08:00:00'")
    taken = [word for word in more if word.split("=")[0] in OWN]
    if taken:
        parser.error(f"{taken[0]}: the sweep sets it itself; leave it out")
    try:
        args.tasks = list(dict.fromkeys(find_task(task, "argument --tasks", args.data_dir).name
                                        for task in args.tasks))
    except InputError as error:
        parser.error(str(error))
    args.named = args.rows
    try:
        args.rows = find_rows(args.rows)
    except ValueError as error:
        parser.error(f"argument --rows: {error}")
    args.seeds = list(dict.fromkeys(args.seeds))
    for path in args.estimate_from or ():
        if not path.is_file() and not (path / "result.json").is_file():
            parser.error(f"argument --estimate_from: {path}: no result.json found, expected the folder of a"
                         " finished run, or a file of benchmark.py --json")
    return args


def leave_out(args, more):
    """Take rows that the protocol cannot have off those that an alias stands for, and say so. A row that is
    named is refused by plan."""
    words = ["--task", args.tasks[0], "--data_dir", args.data_dir, *without_flag(more, "--baseline_set")[0]]
    try:
        resolve_protocol(parse_arguments([*words, "--set", *LEARNING_SET]))
    except InputError as error:
        left = [name for name in args.rows if ROWS[name].learning and name not in args.named]
        if left and not refused(words):
            args.rows = [name for name in args.rows if name not in left]
            print(f"left out: {', '.join(left)}: {error}", file=sys.stderr)


def refused(words):
    """Whether flags contradict each other by themselves."""
    try:
        resolve_protocol(parse_arguments(words))
    except InputError:
        return True
    return False


def sweep(args):
    """Plan, then say or do. Returns the exit code."""
    records = read_rates(args.rates or ())
    more = [*(["--tasks", *args.curriculum_tasks] if args.curriculum_tasks else []), *args.more]
    leave_out(args, more)
    rates = {task: words_of(records, task, more) for task in args.tasks} if args.rates else {}
    jobs = plan(args.tasks, args.seeds, args.rows, args.output_dir, args.data_dir, more, rates)
    if jobs[0].args.select_on == "quiz":
        print("warning: --select_on quiz: make_tables.py takes no such runs, since phases 3 and 4 train on"
              " quiz", file=sys.stderr)
    for line in estimate(jobs, args.estimate_from, args.jobs) if args.estimate_from else ():
        print(line)
    if args.go and args.cluster == "local":
        for task in rates:  # beside its runs, for tables
            folder = Path(args.output_dir) / task.lower()
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(records[task]["file"], folder / RATES_FILE)
        if args.record:
            return lib.slurm.run_cell(jobs, args)
    if args.go or args.cluster != "local":
        return BACKENDS[args.cluster](jobs, args)
    for job in jobs:
        print(f"{'# finished: ' if job.finished() else ''}{shlex.join(job.command)}")
    return 0


def main(argv=None):
    return exit_code(sweep, parse(argv))


if __name__ == "__main__":
    sys.exit(main())

"""The command line of main_superglue.py: every flag, its default, and the checks that need neither data nor models.

Nothing heavy is imported here, so that `--help` and a mistyped flag answer at once.
"""
import argparse
import math
from pathlib import Path

REWARDS = ("binary", "real")
CURRICULA = ("policy", "uniform", "main_task")
PHASES = ("teacher", "kd", "meta_teacher")  # where --stop_after may stop; phase 4 ends the run anyway

# Flags that say where things go or how far to go, not what is computed: a run folder may be continued with others.
NOT_PART_OF_THE_RUN = ("output_dir", "phase_dir", "fresh", "report_to", "stop_after", "save_seconds")


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; exit code 2 as usual."""

    def error(self, message):
        self.exit(2, f"error: {message} (all flags: {self.prog} --help)\n")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of a flag that has one."""

    def _get_help_string(self, action):
        return super()._get_help_string(action) if action.default not in (None, False, []) else action.help


def number(kind, low, high=math.inf, open_low=False, open_high=False):
    """An argparse type: a finite number of `kind` (int or float) from low to high, the ends excluded where said."""
    ends = f"{'more than' if open_low else 'at least'} {low:g}"
    if high != math.inf:
        ends += f" and {'less than' if open_high else 'at most'} {high:g}"

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        inside = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
        if not (math.isfinite(value) and inside):
            raise argparse.ArgumentTypeError(f"{text!r} found, expected {'a whole' if kind is int else 'a'} number {ends}")
        return value
    return parse


COUNT, RATE, SHARE = number(int, 1), number(float, 0, open_low=True), number(float, 0, 1)


def build_parser():
    parser = OneLineParser(
        prog="main_superglue.py", allow_abbrev=False, formatter_class=Help,
        description="MPDistil: teacher, distilled student, meta-teacher and curriculum on one SuperGLUE task.")

    def group(title, *flags):
        section = parser.add_argument_group(title)
        for name, settings in flags:
            section.add_argument(name, **settings)

    group("task and data",
          ("--task", dict(required=True, help="main task: BoolQ, CB, COPA, RTE, WiC or WSC, in any case")),
          ("--data_dir", dict(required=True, help="folder of <Task>/{train,val,test}.jsonl or "
                              "<TASK>/{train,held,dev,test}.tsv, or 'hub' for aps/super_glue")),
          ("--tasks", dict(nargs="+", metavar="TASK", help="curriculum tasks, the policy's actions (default: the main "
                           "task and every other task found in --data_dir)")),
          ("--split_seed", dict(type=number(int, 0), default=42, help="seed of the 9:1 split into train and quiz")),
          ("--max_seq_length", dict(type=number(int, 8), default=128, help="longest input in tokens, special ones included")),
          ("--train_dataloader_size", dict(type=COUNT, default=8, help="batch size on train (phases 1 and 2)")),
          ("--val_dataloader_size", dict(type=COUNT, default=8, help="batch size on quiz (phases 3 and 4); an episode "
                                         "has as many steps as the main task has quiz batches")),
          ("--eval_batch_size", dict(type=COUNT, help="batch size wherever nothing is trained (default: 16 on a CPU, whose caches "
                                   "larger ones overflow, 128 on a GPU)")))
    group("models",
          ("--teacher_model", dict(default="bert-base-uncased", help="pre-trained encoder of the teacher T: folder or hub id")),
          ("--student_model", dict(help="pre-trained encoder that the student S is cut from (default: the teacher's)")),
          ("--nlayers", dict(type=COUNT, default=6, help="n, layers of the student: the first n of --student_model")))
    group("training in general",
          ("--protocol", dict(choices=("paper", "released"), default="paper", help="the method as described, or what the authors' "
                              "released code computes")),
          ("--set", dict(nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="override single choices of the protocol, "
                         "e.g. dropout=until_first_evaluation (docs/PROTOCOLS.md: the choices)")),
          ("--weight_decay", dict(type=number(float, 0), default=0.01, help="AdamW's decay, in `paper` not on biases and LayerNorm")),
          ("--max_grad_norm", dict(type=RATE, default=1.0, help="largest L2 norm of a gradient; longer ones are scaled down")),
          ("--select_on", dict(choices=("dev", "quiz"), default="dev", help="split whose score picks the epoch or episode kept")),
          ("--seed", dict(type=number(int, 0), default=42, help="seed of heads, dropout, batch order and actions")))
    group("phase 1: teacher fine-tuning, CE(T(x), y)",
          ("--teacher_epochs", dict(type=COUNT, default=10, help="passes over train")),
          ("--teacher_learning_rate", dict(type=RATE, default=2e-5, help="AdamW's rate")))
    group("phase 2: distillation, alpha * soft + (1 - alpha) * CE(S(x), y) + beta * pkd",
          ("--epochs", dict(type=COUNT, default=10, help="passes over train")),
          ("--learning_rate", dict(type=RATE, default=3e-5, help="AdamW's rate for the student, in phase 4 too")),
          ("--temperature", dict(type=RATE, default=5.0, help="t, softens both distributions of the soft loss")),
          ("--alpha", dict(type=SHARE, default=0.5, help="alpha, share of the soft loss against CE")),
          ("--beta", dict(type=number(float, 0), default=100.0, help="beta, weight of pkd (match of [CLS] states)")),
          ("--undistilled", dict(action="store_true", help="also train the row 'student': alpha = 0, beta = 0")))
    group("phase 3: meta-teacher T', head only, on quiz",
          ("--meta_epochs", dict(type=COUNT, default=10, help="passes over quiz")),
          ("--meta_learning_rate", dict(type=RATE, default=1e-3, help="AdamW's rate for T' and for the policy pi")),
          ("--use_comp_loss", dict(action="store_true", help="competitive loss CE(T'(h_T), y) - p_T'(y|h_T) + p_T'(y|h_S) "
                                   "instead of the collaborative 0.5 CE(T'(h_T), y) + 0.5 CE(T'(h_S), y)")))
    group("phase 4: curriculum, policy pi(a | state)",
          ("--num_episodes", dict(type=COUNT, default=200, help="episodes, each one pass over the main task's quiz batches")),
          ("--reward_function", dict(choices=REWARDS, default="binary", help="r: examples with p_S(y) > p_T'(y) (binary) or "
                                     "the sum of p_S(y) - p_T'(y) (real), over the quiz size")),
          ("--kd_200", dict(action="store_true", help="also train the control 'kd_200': the distilled student, distilled on for as many "
                            "steps and with as many looks at dev as phase 4 has, best look kept")),
          ("--curriculum", dict(choices=CURRICULA, default="policy", help="who picks the tasks a: the learnt policy pi, chance, "
                                "or always the main task (the row no_curriculum)")))
    group("the run",
          ("--output_dir", dict(type=Path, help="folder of this run (default: runs/<task>/<protocol>-<col|com>-"
                                "<binary|real>-<curriculum>-seed<seed>)")),
          ("--phase_dir", dict(type=Path, help="where finished phases are kept and looked for (default: phases/ beside the "
                               "run folders)")),
          ("--fresh", dict(action="store_true", help="use no phase of other runs: this run's phases stay in its own folder, and "
                           "once it is finished the same command computes them again")),
          ("--save_seconds", dict(type=number(float, 0), default=60.0, help="longest time between two saves of an unfinished phase; it "
                                  "is also saved at ends of epochs and episodes, where that takes less than 1%% of the time")),
          ("--stop_after", dict(choices=PHASES, help="end the run after this phase")),
          ("--device", dict(choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")),
          ("--precision", dict(choices=("fp32", "bf16"), default="fp32", help="of the encoders' arithmetic; weights stay float32")),
          ("--report_to", dict(choices=("none", "tensorboard", "wandb"), default="none", help="also send metrics to a tracker")))
    return parser


def loss_name(args):
    """'col' or 'com', the meta-teacher's loss as the tables name it."""
    return "com" if args.use_comp_loss else "col"


def parse_arguments(argv=None):
    """The resolved arguments; exits with code 2 and one line on a bad flag. Task names are checked against the task
    table and the data later, by data_utils."""
    args = build_parser().parse_args(argv)
    args.student_model = args.student_model or args.teacher_model
    args.set = sorted(set(args.set))
    if args.fresh and args.phase_dir is not None:
        build_parser().error("argument --fresh: found together with --phase_dir; a fresh run keeps its phases in its own folder, so "
                             "leave one of the two out")
    if args.output_dir is None:
        changes = "".join(f"-{change}" for change in args.set)
        name = f"{args.protocol}{changes}-{loss_name(args)}-{args.reward_function}-{args.curriculum}-seed{args.seed}"
        args.output_dir = Path("runs") / args.task.lower() / name
    if args.phase_dir is None:
        args.phase_dir = args.output_dir.parent / "phases"
    if args.fresh:
        args.phase_dir = args.output_dir / "phases"
    return args

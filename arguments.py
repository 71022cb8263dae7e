"""The command line of main_superglue.py: every flag, its default, and the checks that need neither data nor
models.

Nothing heavy is imported here, so that `--help` and a mistyped flag answer at once.
"""
import argparse
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from bookkeeping.errors import InputError

REWARDS = ("binary", "real")
CURRICULA = ("policy", "uniform", "main_task")
# methods to compare with (baselines.py), with their constants as published
HINTON, ANNEALING = {"alpha": 0.5, "temperature": 5.0}, {"share": 2 / 3, "steps": 10}
BASELINES = {
    "hinton_kd": HINTON, "pkd_skip": {**HINTON, "beta": 100.0}, "pkd_last": {**HINTON, "beta": 100.0},
    "alp_kd": {"ce": 0.1, "soft": 0.7, "layers": 0.2, "temperature": 20.0}, "annealing_kd": ANNEALING,
    "continuation_kd": {**ANNEALING, "margin": 1.0}, "takd": HINTON,
    "distilbert": {"soft": 5.0, "ce": 2.0, "cosine": 1.0, "temperature": 2.0},
    "rail_kd": {"ce": 1 / 3, "soft": 1 / 3, "layers": 1 / 3, "temperature": 10.0, "width": 128},
    "dml": {"temperature": 1.0}, "prokt": {"ce": 0.6, "soft": 0.4, "temperature": 1.0},
    "tinybert": {"share": 0.5}, "minilm": {**HINTON, "share": 0.5},
    "metadistil": {**HINTON, "beta": 100.0, "teacher_rate": 1e-5},
    "theseus": {"start": 0.3, "share": 0.5},
}
EXPORTS = ("teacher", "kd", "kd_200", "kd_quiz")
PHASES = ("teacher", "kd", "meta_teacher")  # where --stop_after may stop; phase 4 ends the run anyway

# Flags that say where things go, how far to go or by which way, not what is computed: a run folder may be
# continued with others.
PATHS = ("data_dir", "teacher_model", "student_model")  # of what is read, whose content has a checksum
NOT_PART_OF_THE_RUN = ("output_dir", "phase_dir", "fresh", "report_to", "stop_after", "save_seconds",
                       "gradient_checkpointing")
# of BASELINES, those that --gradient_checkpointing cannot go with, and why
NOT_RECOMPUTED = {"tinybert": "reads attention within layers, which would come twice",
                  "minilm": "reads attention within layers, which would come twice",
                  "metadistil": "tries weights that are gone when its layers are recomputed"}


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; exit code 2 as usual."""

    def error(self, message):
        self.exit(2, f"error: {message} (all flags: {self.prog} --help)\n")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of a flag that has one."""

    def _get_help_string(self, action):
        return super()._get_help_string(action) if action.default not in (None, False, []) else action.help


def number(kind, low, high=math.inf, open_low=False, open_high=False):
    """An argparse type: a finite number of `kind` (int or float) from low to high, the ends excluded where
    said."""
    ends = f"{'more than' if open_low else 'at least'} {low:g}"
    if high != math.inf:
        ends += f" and {'less than' if open_high else 'at most'} {high:g}"

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        above, below = value > low if open_low else value >= low, value < high if open_high else value <= high
        if not (math.isfinite(value) and above and below):
            raise argparse.ArgumentTypeError(
                f"{text!r} found, expected {'a whole' if kind is int else 'a'} number {ends}")
        return value
    return parse


COUNT, RATE, SHARE = number(int, 1), number(float, 0, open_low=True), number(float, 0, 1)


def build_parser():
    parser = OneLineParser(
        prog="main_superglue.py", allow_abbrev=False, formatter_class=Help,
        description="MPDistil: teacher, distilled student, meta-teacher, curriculum on one task of SuperGLUE,"
                    " GLUE or your own.")

    flag = parser.add_argument_group("task and data").add_argument
    flag("--task", required=True,
         help="main task, in any case: BoolQ, CB, COPA, RTE, WiC, WSC; MNLI, MRPC, QNLI, QQP, SST-2, STS-B, "
              "WNLI, CoLA; or one that a task.json in --data_dir describes (docs/TASKS.md)")
    flag("--data_dir", required=True,
         help="folder of <Task>/{train,val,test}.jsonl (SuperGLUE) or <Task>/{train,dev,test}.tsv (GLUE), or "
              "'hub' for aps/super_glue and nyu-mll/glue")
    flag("--tasks", nargs="+", metavar="TASK",
         help="curriculum tasks, the policy's actions (default: the main task and every other task of its "
              "benchmark found in --data_dir)")
    flag("--quiz_size", type=COUNT,
         help="use so many examples of quiz at most, of every task; an episode passes over those of the main "
              "task (default: all)")
    flag("--max_train", type=COUNT,
         help="train on so many examples of train at most, for trials (default: all)")
    flag("--split_seed", type=number(int, 0), default=42, help="seed of the 9:1 split into train and quiz")
    flag("--max_seq_length", type=number(int, 8), default=128,
         help="longest input in tokens, special ones included")
    flag("--train_dataloader_size", type=COUNT, default=8, help="batch size on train (phases 1 and 2)")
    flag("--val_dataloader_size", type=COUNT, default=8,
         help="batch size on quiz (phases 3 and 4); an episode has as many steps as the main task has quiz "
              "batches")
    flag("--eval_batch_size", type=COUNT,
         help="batch size wherever nothing is trained (default: 16 on a CPU, whose caches larger ones "
              "overflow, 128 on a GPU)")
    flag = parser.add_argument_group("models").add_argument
    flag("--teacher_model", default="bert-base-uncased",
         help="pre-trained encoder of the teacher T: folder or hub id")
    flag("--student_model",
         help="pre-trained encoder that the student S is cut from (default: the teacher's)")
    flag("--nlayers", type=COUNT, default=6, help="n, layers of the student: the first n of --student_model")
    flag = parser.add_argument_group("training in general").add_argument
    flag("--protocol", choices=("paper", "released"), default="paper",
         help="the method as described, or what the authors' released code computes")
    flag("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
         help="override single choices of the protocol, e.g. dropout=until_first_evaluation "
              "(docs/PROTOCOLS.md)")
    flag("--head_dropout", type=number(float, 0, 1, open_high=True), default=0.1,
         help="dropout of the task heads, on the pooled output (the encoder's own stands in its "
              "configuration)")
    flag("--weight_decay", type=number(float, 0), default=0.01,
         help="AdamW's decay, in `paper` not on biases and LayerNorm")
    flag("--max_grad_norm", type=RATE, default=1.0,
         help="largest L2 norm of a gradient; longer ones are scaled down")
    flag("--select_on", choices=("dev", "quiz"), default="dev",
         help="split whose score picks the epoch or episode kept; phases 3 and 4 train on quiz, so that "
              "there it favours what is learnt by heart")
    flag("--seed", type=number(int, 0), default=42, help="seed of heads, dropout, batch order and actions")
    flag = parser.add_argument_group("phase 1: teacher fine-tuning, CE(T(x), y)").add_argument
    flag("--teacher_epochs", type=COUNT, default=10, help="passes over train")
    flag("--teacher_learning_rate", type=RATE, default=2e-5, help="AdamW's rate")
    flag = parser.add_argument_group(
        "phase 2: distillation, alpha * soft + (1 - alpha) * CE(S(x), y) + beta * pkd").add_argument
    flag("--epochs", type=COUNT, default=10, help="passes over train")
    flag("--learning_rate", type=RATE, default=3e-5, help="AdamW's rate for the student, in phase 4 too")
    flag("--temperature", type=RATE, default=5.0, help="t, softens both distributions of the soft loss")
    flag("--alpha", type=SHARE, default=0.5, help="alpha, share of the soft loss against CE")
    flag("--beta", type=number(float, 0), default=100.0, help="beta, weight of pkd (match of [CLS] states)")
    flag("--undistilled", action="store_true", help="also train the row 'student': alpha = 0, beta = 0")
    flag = parser.add_argument_group("phase 3: meta-teacher T', head only, on quiz").add_argument
    flag("--meta_epochs", type=COUNT, default=10, help="passes over quiz")
    flag("--meta_learning_rate", type=RATE, default=1e-3, help="AdamW's rate for T'")
    flag("--use_comp_loss", action="store_true",
         help="competitive loss CE(T'(h_T), y) - p_T'(y|h_T) + p_T'(y|h_S) instead of the collaborative 0.5"
              " CE(T'(h_T), y) + 0.5 CE(T'(h_S), y)")
    flag = parser.add_argument_group("phase 4: curriculum, policy pi(a | state)").add_argument
    flag("--num_episodes", type=COUNT, default=200,
         help="episodes, each one pass over the main task's quiz batches")
    flag("--reward_function", choices=REWARDS, default="binary",
         help="r: examples with p_S(y) > p_T'(y) (binary) or the sum of p_S(y) - p_T'(y) (real), over the "
              "quiz size")
    flag("--policy_learning_rate", type=RATE,
         help="AdamW's rate for the policy pi (default: that of --meta_learning_rate)")
    flag("--kd_200", action="store_true",
         help="also train the control 'kd_200': the distilled student, distilled on for as many steps and "
              "with as many looks at dev as phase 4 has, best look kept")
    flag("--kd_quiz", action="store_true",
         help="also train the control 'kd_quiz': as kd_200, but on train and quiz together, whose labels "
              "phase 4 sees too")
    flag("--curriculum", choices=CURRICULA, default="policy",
         help="who picks the tasks a: the learnt policy pi, chance, or always the main task (the row "
              "no_curriculum)")
    flag = parser.add_argument_group("methods to compare with (docs/BASELINES.md)").add_argument
    flag("--baselines", nargs="+", choices=[*BASELINES, "all"], default=[], metavar="METHOD",
         help=f"add rows, distilled from the same teacher: {', '.join(BASELINES)}; all")
    flag("--baseline_set", nargs="+", action="extend", default=[], metavar="METHOD.KEY=VALUE",
         help="another value of a constant of theirs, e.g. hinton_kd.temperature=2")
    flag = parser.add_argument_group("the run").add_argument
    flag("--output_dir", type=Path,
         help="folder of this run (default: "
              "runs/<task>/<protocol>-<col|com>-<binary|real>-<curriculum>-seed<seed>)")
    flag("--phase_dir", type=Path,
         help="where finished phases are kept and looked for (default: phases/ beside the run folders)")
    flag("--fresh", action="store_true",
         help="use no phase of other runs: this run's phases stay in its own folder, and once it is "
              "finished the same command computes them again")
    flag("--save_seconds", type=number(float, 0), default=60.0,
         help="longest time between two saves of an unfinished phase, as far as saving takes less than 2%% "
              "of the time (0: after every step); it is also saved at ends of epochs and episodes, where "
              "that takes less than 1%%")
    flag("--stop_after", choices=PHASES, help="end the run after this phase")
    flag("--export", nargs="+", choices=(*EXPORTS, *BASELINES), default=[], metavar="ROW",
         help="also write these rows to models/<row>, as plain transformers opens them: "
              f"{', '.join(EXPORTS)} or of --baselines (models/student, the last row's, is always written)")
    flag("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    flag("--precision", choices=("fp32", "tf32", "bf16", "auto"), default="fp32",
         help="of the encoders' arithmetic; weights stay float32. tf32: of all products of float32, on GPUs "
              "only; auto: bf16 where the device multiplies it in hardware, else fp32")
    flag("--gradient_checkpointing", action="store_true",
         help="compute the layers of what is trained again on the way back, instead of keeping what they "
              "computed: the same results with less memory in more time (docs/TIMING.md)")
    flag("--nondeterministic", action="store_true",
         help="on a GPU, also use kernels whose results differ a little from run to run")
    flag("--report_to", choices=("none", "tensorboard", "wandb"), default="none",
         help="also send metrics to a tracker")
    return parser


def loss_name(args):
    """'col' or 'com', the meta-teacher's loss as the tables name it."""
    return "com" if args.use_comp_loss else "col"


def parse_arguments(argv=None):
    """The resolved arguments; exits with code 2 and one line on a bad flag. Task names are checked against
    the task table and the data later, by data_utils."""
    args = build_parser().parse_args(argv)
    args.student_model = args.student_model or args.teacher_model
    args.policy_learning_rate = args.policy_learning_rate or args.meta_learning_rate
    args.set, args.baseline_set = sorted(set(args.set)), sorted(set(args.baseline_set))
    args.baselines = [name for name in BASELINES if name in args.baselines or "all" in args.baselines]
    try:
        constants_of(args)
    except InputError as error:
        build_parser().error(str(error))
    if args.fresh and args.phase_dir is not None:
        build_parser().error(
            "argument --fresh: found together with --phase_dir; a fresh run keeps its phases in its own"
            " folder, so leave one of the two out")
    refused = [name for name in args.baselines if args.gradient_checkpointing and name in NOT_RECOMPUTED]
    if refused:
        build_parser().error(
            f"argument --gradient_checkpointing: found together with --baselines {refused[0]}, which"
            f" {NOT_RECOMPUTED[refused[0]]}; leave {', '.join(refused)} or the flag out")
    for row in args.export:
        if row in ("kd_200", "kd_quiz") and not getattr(args, row) or row in BASELINES and (
                row not in args.baselines):
            flag = f"--baselines {row}" if row in BASELINES else f"--{row}"
            build_parser().error(
                f"argument --export: {row} found, which this run does not train; give {flag} too")
    if args.output_dir is None:
        changes = "".join(f"-{change}" for change in args.set)
        name = f"{args.protocol}{changes}-{loss_name(args)}-{args.reward_function}-{args.curriculum}"
        name += f"-seed{args.seed}"
        args.output_dir = Path("runs") / args.task.lower() / name
    if args.phase_dir is None:
        args.phase_dir = args.output_dir.parent / "phases"
    if args.fresh:
        args.phase_dir = args.output_dir / "phases"
    return args


def constants_of(args):
    """{method of --baselines: {constant: value}}, as published but for --baseline_set. InputError where that
    names what is not there or gives a value that cannot be."""
    found = {name: dict(BASELINES[name]) for name in args.baselines}
    for text in args.baseline_set:
        where, _, value = text.partition("=")
        name, _, key = where.partition(".")
        if name not in found or key not in found[name]:
            known = [f"{name}.{key}" for name in found for key in found[name]]
            raise InputError(f"argument --baseline_set: {text!r} found, expected METHOD.KEY=VALUE, METHOD.KEY"
                             f" one of {', '.join(known) or 'none, since --baselines names no method'}")
        kinds = {"steps": COUNT, "width": COUNT, "alpha": SHARE, "temperature": RATE, "teacher_rate": RATE,
                 "start": SHARE, "share": number(float, 0, 1, open_low=True)}
        try:
            found[name][key] = kinds.get(key, number(float, 0))(value)
        except argparse.ArgumentTypeError as error:
            raise InputError(f"argument --baseline_set: {text}: {error}") from None
    return found


def written(args):
    """The flags as JSON holds them."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in sorted(vars(args).items())
    }


def with_defaults(settings):
    """The settings of a run, with the flags that the command did not have yet when it was made."""
    usual = written(build_parser().parse_args(["--task", "", "--data_dir", ""]))
    made = {**usual, **settings}
    made["policy_learning_rate"] = made["policy_learning_rate"] or made["meta_learning_rate"]
    if "protocol_choices" in made:
        made["protocol_choices"] = {**READINGS, **made["protocol_choices"]}
    return made


def part_of_the_run(settings):
    """Those of the settings that decide what is computed."""
    return {name: value for name, value in settings.items() if name not in NOT_PART_OF_THE_RUN}


# --- the protocols: where the paper's description and the authors' released code differ ---------------------
# `paper` is the default of every field, `released` the other value of a choice. A reading is of a point that
# the sources leave open. --protocol picks one, --set NAME=VALUE overrides single choices and readings.
# docs/PROTOCOLS.md says what each means.

def choice(paper, released, row):
    """A field with two values; row: METHOD.md's number of the difference."""
    return field(default=paper, metadata={"values": (paper, released), "released": released, "row": row})


def reading(default, other, row):
    """A field about a point that the sources leave open: two values, the first one in both protocols."""
    return field(default=default, metadata={"values": (default, other), "released": default, "row": row})


@dataclass(frozen=True)
class Protocol:
    """A named choice per difference that matters in code, then the readings; behind each where it is
    read."""
    copa_input: str = choice("both_choices", "first_choice", 1)            # tasks.protocol_task
    wic_input: str = choice("both_sentences", "first_sentence", 2)         # tasks.protocol_task
    wsc_input: str = choice("marked", "span_index", 3)                     # tasks.protocol_task
    cls_segment: str = choice("tokenizer", "one", 4)                       # data_utils.encode_split
    text_case: str = choice("as_is", "lower", 5)                           # data_utils.build_examples
    padding: str = choice("longest", "max_length", 6)                      # data_utils.encode_split
    dropout: str = choice("training", "until_first_evaluation", 8)         # models.set_training
    weight_decay_on: str = choice("matrices", "everything", 9)             # meta_policy.make_optimizer
    phase_order: str = choice("sequential", "alternating", 11)             # main_superglue.Alternation
    student_update: str = choice("each_step", "each_episode", 12)          # curriculum.train_curriculum
    reward_weights: str = choice("after_update", "before_episode", 13)     # curriculum.train_curriculum
    state_gradient: str = choice("detached", "attached", 14)               # curriculum.train_curriculum
    credit: str = choice("same_step", "next_step", 15)                     # curriculum.train_curriculum
    discount_from: str = choice("each_step", "episode_start", 16)          # curriculum.advantages_of
    quiz_batches: str = choice("redrawn", "fixed", 17)                     # curriculum.QuizBatches
    selection: str = choice("main_metric", "f1_or_accuracy", 18)           # meta_policy.Evaluator
    data_order: str = choice("own_generators", "global_generator", 19)     # data_utils.RandomStreams
    zero_grad: str = choice("none", "zeros", 20)                           # meta_policy.apply_gradients
    reward_precision: str = choice("own", "float32", 21)                   # curriculum.train_curriculum
    pkd_layers: str = reading("first", "skip", 22)                         # meta_policy.teacher_layers
    soft_loss: str = reading("probabilities", "logits", 23)                # meta_policy.distillation_loop
    meta_term: str = reading("constant", "attached", 26)                   # curriculum.train_curriculum
    advantage: str = reading("episode_mean", "step_mean", 27)              # curriculum.train_curriculum
    reward_of: str = reading("level", "improvement", 28)                   # curriculum.train_curriculum


PROTOCOLS = {"paper": Protocol(),
             "released": Protocol(**{f.name: f.metadata["released"] for f in fields(Protocol)})}


READINGS = {f.name: f.default for f in fields(Protocol) if f.metadata["released"] == f.default}
# what reward_of=improvement needs (METHOD.md row 28)
OF_IMPROVEMENT = {"reward_weights": "after_update", "student_update": "each_step", "credit": "same_step",
                  "dropout": "training"}


def resolve_protocol(args):
    """The Protocol of --protocol with the NAME=VALUE overrides of --set. InputError where other flags
    contradict it."""
    values = {f.name: f.metadata["values"] for f in fields(Protocol)}
    changes = {}
    for text in args.set:
        key, _, value = text.partition("=")
        if key not in values:
            raise InputError(
                f"--set {text}: {key!r} found, expected NAME=VALUE with NAME one of {', '.join(values)}")
        if value not in values[key]:
            first, second = ("the default", "its other reading") if key in READINGS else ("paper", "released")
            raise InputError(f"--set {text}: {value!r} found, expected {key}={values[key][0]} ({first}) or"
                             f" {key}={values[key][1]} ({second})")
        changes[key] = value
    protocol = replace(PROTOCOLS[args.protocol], **changes)
    if protocol.phase_order == "alternating" and args.meta_epochs != args.epochs:
        raise InputError(
            f"--meta_epochs {args.meta_epochs}, --epochs {args.epochs}: with phase_order=alternating"
            " (--protocol released) phases 2 and 3 take turns, so both need the same number; give both flags"
            " the same value")
    wrong = [f"{name}={getattr(protocol, name)}" for name, value in OF_IMPROVEMENT.items()
             if getattr(protocol, name) != value]
    if protocol.reward_of == "improvement" and wrong:
        needed = " ".join(f"{name}={value}" for name, value in OF_IMPROVEMENT.items())
        raise InputError(f"--set reward_of=improvement: found with {', '.join(wrong)}; the reward is what the"
                         f" update of a step's own action changes, without dropout, which needs {needed}")
    return protocol

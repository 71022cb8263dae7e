"""MPDistil on one task: teacher fine-tuning, distillation, meta-teacher, curriculum.

    python main_superglue.py --task RTE --data_dir ./data/ --reward_function binary
    python main_superglue.py --task RTE --data_dir ./data/ --reward_function binary --use_comp_loss

The run's folder (--output_dir) ends with result.json, predictions and the distilled student. Finished phases
are kept under --phase_dir and reused by runs to which they apply.
"""
import copy
import json
import shlex
import shutil
import sys
from argparse import Namespace
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from arguments import (
    PATHS,
    Protocol,
    constants_of,
    loss_name,
    parse_arguments,
    part_of_the_run,
    resolve_protocol,
)
from bookkeeping.screen import escape_unprintable

if __name__ == "__main__":
    escape_unprintable()
    # before torch and transformers, whose seconds --help and a mistyped flag need not wait for
    parsed = parse_arguments()

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from baselines import (
    METHODS,
    BaselineTraining,
    check_encoders,
    distill_by,
    learn_to_teach,
    learn_together,
    replace_layers,
)
from bookkeeping.checkpoints import Checkpoints, load_config, open_checkpoints
from bookkeeping.errors import InputError, Stopped, TrainingError
from bookkeeping.export import describe_export, names_of_labels, write_export
from bookkeeping.files import check_folder, lock
from bookkeeping.finished import finished_result
from bookkeeping.identity import describe_code, identity_of
from bookkeeping.machine import (
    EVAL_BATCH_SIZES,
    faster_precision,
    keep_freed_memory,
    resolve_device,
    resolve_precision,
    say_needs,
    say_torch_error,
    set_arithmetic,
)
from bookkeeping.phases import Phase, PhaseStore, StoredOutputs
from bookkeeping.probe import describe_probe
from bookkeeping.run_folder import STATE_FOLDER, RunFolder, describe_inputs, say_result
from bookkeeping.signals import stopping_on_signals
from bookkeeping.tracker import open_tracker, was_sent
from curriculum import CurriculumTraining, Policy, train_curriculum
from data_utils import (
    LABELLED,
    RandomStreams,
    check_selection,
    join_splits,
    load_data,
    resolve_settings,
    resolve_tasks,
)
from meta_policy import (
    Distillation,
    Evaluator,
    MetaTraining,
    Training,
    distill_student,
    distillation_loop,
    meta_teacher_loop,
    run_epochs,
    teacher_layers,
    train_meta_teacher,
    train_teacher,
)
from metrics import describe_labels, row_of, spoken, write_predictions
from models import (
    FrozenEncoder,
    Heads,
    JoinedOutputs,
    Model,
    can_checkpoint,
    checkpoint_layers,
    load_encoder,
    load_extra,
    load_heads,
    load_model,
    load_weights,
    predict,
    predict_heads,
    save_heads,
    save_model,
)
from tasks import DESCRIPTION, Task


def run(args):
    """The run's exit code. It is refused, found finished, or computed from where it was ended."""
    args.precision = resolve_precision(args.device, args.precision)
    settings = resolve_settings(args)
    # refuses a folder of another run, before anything is read
    finished_result(args.output_dir, settings, by_content=True)
    inputs = read_inputs(args, settings)
    with locked(args.output_dir):
        finished = finished_result(args.output_dir, settings, inputs.summary, by_content=True)
        if finished and not args.fresh:
            if args.stop_after is None:  # of a run that was ended right after its result
                shutil.rmtree(args.output_dir / STATE_FOLDER, ignore_errors=True)
            print(f"{args.output_dir} holds this run, finished; nothing to do")
            say_result(finished, args.output_dir, print)
            send_finished(inputs, finished)
            return exit_code_of(finished)
        with open_experiment(inputs, again=finished is not None) as lab:
            return four_phases(lab)


def exit_code_of(result):
    """0, or 1 where an export is not what the run made of it: a fault of this project."""
    exports = result.get("exports", {})  # results that are older have none
    return int(any(export["verified"] is False for export in exports.values()))


def four_phases(lab):
    """The phases in order. Each is given what it depends on as an earlier one returned it, so that its
    identity can name it."""
    args = lab.inputs.args
    teacher = fine_tune(lab)
    if args.stop_after == "teacher":
        return lab.finish()

    if args.undistilled:
        train_undistilled(lab)
    student = distill(lab, teacher)
    for method in args.baselines:
        train_baseline(lab, method, teacher)
    if args.stop_after == "kd":
        return lab.finish()

    meta_teacher = teach_meta_teacher(lab, teacher, student)
    if args.kd_200:
        continue_distillation(lab, "kd_200", ["train"], teacher, student, meta_teacher)
    if args.kd_quiz:
        continue_distillation(lab, "kd_quiz", ["train", "quiz"], teacher, student, meta_teacher)
    if args.stop_after == "meta_teacher":
        return lab.finish()

    follow_curriculum(lab, teacher, student, meta_teacher)
    return lab.finish()


# --- the phases ---------------------------------------------------------------------------------------------

@dataclass
class Teacher:
    """Heads and, by example, the frozen encoder's outputs, of a finished phase."""
    heads: Heads
    outputs: FrozenEncoder
    phase: Phase | None = None

    def predict(self, split):
        return predict_heads(self.heads, self.outputs, split)


@dataclass
class Student:
    """A model, of a finished phase."""
    model: Model
    phase: Phase


def fine_tune(lab):
    """Phase 1: the teacher is fine-tuned on train. Its weights are in memory only while it is trained or its
    outputs are computed."""
    args, inputs = lab.inputs.args, lab.inputs
    settings = lab.training(Training, args.teacher_epochs, args.train_dataloader_size,
                            args.teacher_learning_rate)
    reads = lab.reads("train", checkpoint=inputs.checkpoints.teacher_sha256)
    with lab.open("teacher", fine_tune, settings, reads) as phase:
        if not phase.finished:
            model = lab.new_teacher()
            best = train_teacher(model, inputs.data["train"], settings,
                                 **lab.loop(phase, lab.predictor(model)))
            lab.publish(phase, best, model)
            del model
    heads = Heads(inputs.tasks, inputs.checkpoints.hidden_size, args.seed, "teacher", args.head_dropout)
    load_heads(heads.to(lab.device).eval(), phase.folder, [inputs.task.name])
    outputs = lab.stored_outputs(phase, lambda: load_encoder(phase.folder, lab.bf16).to(lab.device))
    read = {split: 0 for split in inputs.answered}
    if args.stop_after != "teacher":
        read |= {"quiz": 0, "train": lab.kept_layers()}
    outputs.prepare(*((inputs.data[split], layers) for split, layers in read.items()))
    teacher = Teacher(heads, outputs, phase)
    lab.add_row("teacher", phase, teacher.predict)
    return teacher


def train_undistilled(lab):
    """The row `student`: phase 2 without a teacher (alpha = 0, beta = 0)."""
    model, settings = lab.new_student(), lab.distillation(alpha=0.0, beta=0.0, temperature=1.0)
    reads = lab.reads("train", checkpoint=lab.inputs.checkpoints.student_sha256)
    with lab.open("student", train_undistilled, settings, reads) as phase:
        if phase.finished:
            load_weights(model, phase.folder, [lab.inputs.task.name])
        else:
            best = distill_student("student", model, None, None, lab.inputs.data["train"], settings,
                                   **lab.loop(phase, lab.predictor(model)))
            lab.publish(phase, best, model)
    lab.add_row("student", phase, lab.predictor(model))


def distill(lab, teacher):
    """Phase 2: the student learns on train from the labels and the teacher."""
    args, inputs = lab.inputs.args, lab.inputs
    model, settings = lab.new_student(), lab.distillation(args.alpha, args.beta, args.temperature)
    reads = lab.reads("train", checkpoint=inputs.checkpoints.student_sha256, teacher=teacher.phase.identity)
    if lab.alternating:
        reads |= lab.reads("quiz", meta_teacher=asdict(lab.meta_training()))
    with lab.open("kd", distill, settings, reads, keep_state=lab.alternating) as phase:
        if phase.finished:
            load_weights(model, phase.folder, [inputs.task.name])
        else:
            if lab.alternating:
                best = lab.alternation(teacher, settings, phase.saver).take("kd", model)
            else:
                best = distill_student("kd", model, teacher.heads, teacher.outputs, inputs.data["train"],
                                       settings, **lab.loop(phase, lab.predictor(model)))
            lab.publish(phase, best, model)
    model.eval()
    lab.add_row("kd", phase, lab.predictor(model))
    return Student(model, phase)


def train_baseline(lab, method, teacher):
    """A row of its own: the student that a method to compare with distils on train, from the teacher or from
    an assistant halfway between both in depth, which it distils first."""
    args, inputs, source, seconds = lab.inputs.args, lab.inputs, teacher, 0.0
    if METHODS[method].assistant:
        nlayers = (inputs.checkpoints.teacher_layers + args.nlayers) // 2
        assistant = lab.new_teacher("assistant", nlayers)
        phase = distil_baseline(lab, f"{method}_assistant", method, assistant, nlayers, teacher)
        seconds = phase.seconds
        source = Teacher(assistant.heads.eval(), lab.stored_outputs(phase, lambda: assistant.encoder), phase)
    student = lab.cut_of_teacher(teacher) if METHODS[method].replaces else lab.new_student()
    phase = distil_baseline(lab, method, method, student, args.nlayers, source)
    lab.add_row(method, phase, lab.predictor(student), before=seconds)


def distil_baseline(lab, name, method, student, nlayers, teacher):
    """The phase `name`: a method distils a student of so many layers. Returns the finished Phase."""
    inputs, settings = lab.inputs, lab.method_training(method, nlayers)
    read = ["train", *["quiz"] * METHODS[method].from_quiz]
    # an assistant is cut from the teacher's checkpoint, and what replaces layers from the teacher itself
    own = inputs.checkpoints.student_sha256 if name == method else inputs.checkpoints.teacher_sha256
    begun_from = {} if METHODS[method].replaces else {"checkpoint": own}
    reads = lab.reads(*read, teacher=teacher.phase.identity, **begun_from)
    with lab.open(name, distil_baseline, settings, reads) as phase:
        if phase.finished:
            load_weights(student, phase.folder, [inputs.task.name])
        else:
            around = lab.loop(phase, lab.predictor(student))
            best = train_by_method(lab, name, student, teacher, settings, around)
            lab.publish(phase, best, student)
    student.eval()
    return phase


def train_by_method(lab, name, student, teacher, settings, around):
    """The loop that a method's student is trained by. around: as Experiment.loop gives it. Returns the
    Best."""
    method, train = METHODS[settings.method], lab.inputs.data["train"]
    if method.teacher_loss:  # the teacher learns too: a copy of it
        return learn_together(name, student, lab.copy_of_teacher(teacher), train, settings, **around)
    if method.from_quiz:
        own, quiz = lab.copy_of_teacher(teacher), lab.inputs.data["quiz"]
        return learn_to_teach(name, student, own, train, quiz, settings, **around)
    if method.replaces:
        return replace_layers(name, student, lab.copy_of_teacher(teacher), train, settings, **around)
    outputs = teacher.outputs
    if method.tokens:  # too much to keep by example: the teacher runs at every step
        outputs = load_encoder(teacher.phase.folder, lab.bf16).to(lab.device)
    return distill_by(name, student, teacher.heads, outputs, train, settings, **around)


def teach_meta_teacher(lab, teacher, student):
    """Phase 3: the meta-teacher, at first a copy of the teacher's heads, learns on quiz from both encoders'
    pooled outputs."""
    args, inputs, names = lab.inputs.args, lab.inputs, [lab.inputs.task.name]
    meta_teacher, settings = Teacher(copy.deepcopy(teacher.heads), teacher.outputs), lab.meta_training()
    reads = lab.reads("quiz", teacher=teacher.phase.identity, kd=student.phase.identity)
    with lab.open("meta_teacher", teach_meta_teacher, settings, reads) as meta_teacher.phase:
        phase, heads = meta_teacher.phase, meta_teacher.heads
        if phase.finished:
            load_heads(heads, phase.folder, names)
        else:
            if lab.alternating:
                kd_settings = lab.distillation(args.alpha, args.beta, args.temperature)
                best = lab.alternation(teacher, kd_settings, student.phase.saver).take("meta_teacher", heads)
            else:
                student_outputs = lab.stored_outputs(student.phase, lambda: student.model.encoder)
                best = train_meta_teacher(heads, teacher.outputs, student_outputs, inputs.data["quiz"],
                                          settings, **lab.loop(phase, meta_teacher.predict))
            with phase.publish(best) as folder:
                save_heads(heads, folder, names)
    student.phase.saver.clear()  # where the phases alternate, it was kept for both
    heads.eval()
    lab.add_row("meta_teacher", phase, meta_teacher.predict)
    return meta_teacher


def continue_distillation(lab, name, splits, teacher, student, meta_teacher):
    """The control `kd_200`: what phase 4's steps and evaluations are worth without phase 4. The distilled
    student goes on with phase 2's loss on train, from the teacher that phase 2 ended with (in `released` the
    meta-teacher): as many steps of as many examples between two evaluations, as many evaluations and updates,
    and the same new beginning (optimizer, dropout) as in phase 4; the best evaluation is kept, as there. And
    `kd_quiz`: the same on train and quiz together, since phase 4 also sees quiz."""
    args, inputs, model = lab.inputs.args, lab.inputs, copy.deepcopy(student.model)
    steps, update = -(-len(inputs.data["quiz"]) // args.val_dataloader_size), inputs.protocol.student_update
    source = meta_teacher if lab.alternating else teacher
    settings = replace(lab.distillation(args.alpha, args.beta, args.temperature), epochs=args.num_episodes,
                       batch_size=args.val_dataloader_size)
    reads = lab.reads(*splits, kd=student.phase.identity, teacher=source.phase.identity, steps=steps,
                      update=update)
    parts = [inputs.data[split] for split in splits]
    with lab.open(name, continue_distillation, settings, reads) as phase:
        if phase.finished:
            load_weights(model, phase.folder, [inputs.task.name])
        else:
            best = distill_student(name, model, source.heads, JoinedOutputs(source.outputs, parts),
                                   join_splits(parts), settings, **lab.loop(phase, lab.predictor(model)),
                                   epoch_steps=steps, update=update)
            lab.publish(phase, best, model)
    lab.add_row(name, phase, lab.predictor(model))


def follow_curriculum(lab, teacher, student, meta_teacher):
    """Phase 4: the policy picks the tasks whose quiz batches train the student further. It is the run's own:
    its state and its result lie in the run's folder."""
    args, inputs, names, model = lab.inputs.args, lab.inputs, list(lab.inputs.quiz), student.model
    policy = Policy(model.state_predictor.in_features, len(names), args.seed).to(lab.device)
    settings = lab.training(CurriculumTraining, args.num_episodes, args.val_dataloader_size,
                            args.learning_rate, policy_learning_rate=args.policy_learning_rate,
                            reward=args.reward_function, curriculum=args.curriculum)
    lab.note_code("mpdistil", follow_curriculum)
    best = train_curriculum(model, meta_teacher.heads, policy, teacher.outputs, inputs.quiz, inputs.task.name,
                            settings, lab.evaluator(lab.predictor(model)), lab.streams("mpdistil"), lab.log,
                            lab.log.saver)
    answers = {split: best.answers.get(split) or lab.answer(lab.predictor(model), inputs.data[split])
               for split in inputs.answered}
    name = "no_curriculum" if args.curriculum == "main_task" else "mpdistil"
    lab.write_row(name, "mpdistil", lab.log.seconds_of_episodes(), answers, {"episode": best.index})
    lab.export("student", name, model)
    save_file({name: value.detach().cpu() for name, value in policy.state_dict().items()},
              lab.log.path / "models" / "policy.safetensors", metadata={"actions": " ".join(names)})


class Alternation:
    """Phases 2 and 3 as the released code runs them: an epoch of each in turn (METHOD.md row 11). The student
    distils from the meta-teacher as the epoch before left it; the meta-teacher reads the student of the same
    epoch. Both phases ask it, whichever of them was found finished: both are as they were computed, from
    their common state, or from the beginning. made: {phase: (module, Best)}."""

    def __init__(self, lab, teacher, kd_settings, saver):
        student, meta_teacher = lab.new_student(), Teacher(copy.deepcopy(teacher.heads), teacher.outputs)
        kd = distillation_loop("kd", student, meta_teacher.heads, teacher.outputs, lab.inputs.data["train"],
                               kd_settings, lab.evaluator(lab.predictor(student)), lab.streams("kd"),
                               lab.log.lines_of("kd"))
        # between an epoch and the next
        moving = FrozenEncoder(student.encoder, lab.eval_batch_size, lab.device)
        meta = meta_teacher_loop(meta_teacher.heads, teacher.outputs, moving, lab.inputs.data["quiz"],
                                 lab.meta_training(), lab.evaluator(meta_teacher.predict),
                                 lab.streams("meta_teacher"), lab.log.lines_of("meta_teacher"),
                                 student_moves=True)
        bests = run_epochs(kd, meta, saver=saver)
        self.made = {"kd": (student, bests[0]), "meta_teacher": (meta_teacher.heads, bests[1])}

    def take(self, name, module):
        """Put what phase `name` made into a module of the same shape. Returns its Best."""
        made, best = self.made[name]
        module.load_state_dict(made.state_dict())
        return best


# --- what the phases share ----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Inputs:
    """What a run reads, checked before anything is written. settings: the resolved flags; data: the main
    task's splits by name; quiz: {curriculum task: its quiz Split}, in the order of the policy's actions."""
    args: Namespace
    settings: dict
    protocol: Protocol
    task: Task
    tasks: list
    checkpoints: Checkpoints
    data: dict
    quiz: dict
    device: torch.device

    @property
    def evaluated(self):
        """Those of data that are scored."""
        return {name: split for name, split in self.data.items()
                if name == self.args.select_on or (name == "dev" and split.labelled)}

    @property
    def answered(self):
        """Names of those of data whose examples every row answers: dev, test and the like."""
        return [name for name in self.data if name not in ("train", "quiz")]

    @property
    def summary(self):
        """{what: checksum or summary} of all that is read."""
        return {**{f"{self.task.name}/{name}": split.summary() for name, split in self.data.items()},
                **{f"{name}/quiz": split.summary() for name, split in self.quiz.items()},
                **{f"{task.name}/{DESCRIPTION}": task.description_sha256
                   for task in self.tasks if task.description},
                "teacher_model": self.checkpoints.teacher_sha256,
                "student_model": self.checkpoints.student_sha256}


def read_inputs(args, settings):
    """The Inputs of a run; InputError where something cannot be used."""
    protocol, (task, tasks) = resolve_protocol(args), resolve_tasks(args)
    device, checkpoints = resolve_device(args.device, args.precision), open_checkpoints(args)
    if args.baselines or args.gradient_checkpointing:
        configs = {"--teacher_model": load_config(checkpoints.teacher, "--teacher_model"),
                   "--student_model": load_config(checkpoints.student, "--student_model")}
        check_encoders(args.baselines, configs)
        check_recomputed(args.gradient_checkpointing, configs)
    data, quiz = load_data(args, task, tasks, checkpoints.tokenizer, protocol)
    check_selection(args.select_on, data)
    return Inputs(args, settings, protocol, task, tasks, checkpoints, data, quiz, device)


def check_recomputed(wanted, configs):
    """InputError if --gradient_checkpointing is `wanted` of a family without it. configs: {flag: config}."""
    for flag, config in configs.items():
        if wanted and not can_checkpoint(config):
            raise InputError(f"--gradient_checkpointing: {flag} has the model type {config.model_type!r}, of"
                             " which transformers recomputes no layer; leave the flag out, or choose an"
                             " encoder of another family")


def locked(output_dir):
    """No other process works in the run's folder."""
    folder = output_dir.resolve()
    check_folder(folder.parent, "--output_dir")
    return lock(folder.with_name(f".{folder.name}.lock"), busy=f"--output_dir {output_dir}: another process "
                "is at work on this run; wait for it, or give another folder")


def identity_of_run(inputs):
    """A hash of all that the run computes from, and of the code; however paths and flags were spelled."""
    settings = {name: value for name, value in part_of_the_run(inputs.settings).items() if name not in PATHS}
    depends = {"settings": settings, "data": inputs.summary, "device": inputs.device.type,
               "fresh": inputs.args.fresh}
    return identity_of(depends, four_phases)[0]


def tracker_of(inputs, identity, again=False):
    """The Tracker of --report_to, for a `with`. identity: that of the run."""
    args = inputs.args
    return open_tracker(args.report_to, args.output_dir, inputs.settings, identity, again)


def send_finished(inputs, result):
    """Send a finished run to --report_to, if that has not all of it yet."""
    folder = inputs.args.output_dir
    if not was_sent(inputs.args.report_to, folder, result):
        with tracker_of(inputs, identity_of_run(inputs)) as tracker:
            tracker.start(print)
            tracker.send_file(folder / "metrics.jsonl")
            tracker.finish(result)


@contextmanager
def open_experiment(inputs, again=False):
    """The Experiment of these inputs, for a `with`. From here on the run writes. again: it was finished, and
    --fresh asks for it anew."""
    args, identity = inputs.args, identity_of_run(inputs)
    drawn, probe = inputs.checkpoints.probe(args, inputs.protocol)
    with tracker_of(inputs, identity, again) as tracker:
        if again:
            for path in (args.phase_dir, args.output_dir / STATE_FOLDER):
                shutil.rmtree(path, ignore_errors=True)
        if not args.fresh:  # else phases lie in the run's own folder
            check_folder(args.phase_dir, "--phase_dir")
        if inputs.device.type == "cpu":
            keep_freed_memory()
        set_arithmetic(inputs.device, args.precision, args.nondeterministic)
        log = RunFolder(args.output_dir, inputs.settings, inputs.summary, identity, args.save_seconds,
                        tracker)
        faster = faster_precision(inputs.device, args.precision)
        for line in (*describe_inputs(inputs, drawn), *describe_probe(probe), *[faster] * bool(faster)):
            log.say(line)
        store = PhaseStore(args.phase_dir, inputs.data, log.new_saver, log.say, log.environment)
        lab = Experiment(inputs, log, store, probe)
        methods = [METHODS[method] for method in args.baselines]
        say_needs(inputs, lab.kept_layers(), lab.eval_batch_size, methods, log.say)
        yield lab


@dataclass
class Experiment:
    """The checked inputs, the run's folder, the store of finished phases, and what the phases share.
    probe: what was tried on the encoders, and found; alternated: where phases 2 and 3 take turns, what they
    made; code: {phase: what its result depends on}; exports: {folder in models/: what became of it}."""
    inputs: Inputs
    log: RunFolder
    store: PhaseStore
    probe: dict = field(default_factory=dict)
    alternated: Alternation | None = None
    code: dict = field(default_factory=dict)
    exports: dict = field(default_factory=dict)

    @property
    def device(self):
        return self.inputs.device

    @property
    def bf16(self):
        return self.inputs.args.precision == "bf16"

    @property
    def eval_batch_size(self):
        return self.inputs.args.eval_batch_size or EVAL_BATCH_SIZES[self.device.type]

    @property
    def alternating(self):
        return self.inputs.protocol.phase_order == "alternating"

    # settings, and what a phase's result depends on

    def training(self, kind, epochs, batch_size, learning_rate, **more):
        """The settings of a phase: a dataclass `kind`, whose fields are all that the phase may read."""
        args, choices = self.inputs.args, asdict(self.inputs.protocol)
        more |= {name: value for name, value in choices.items() if name in kind.__dataclass_fields__}
        return kind(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
                    weight_decay=args.weight_decay, max_grad_norm=args.max_grad_norm,
                    head_dropout=args.head_dropout, seed=args.seed, select_on=args.select_on,
                    eval_batch_size=self.eval_batch_size, device=self.device.type, precision=args.precision,
                    **more)

    def distillation(self, alpha, beta, temperature):
        """The settings of phase 2."""
        args = self.inputs.args
        settings = self.training(Distillation, args.epochs, args.train_dataloader_size, args.learning_rate,
                                 nlayers=args.nlayers, temperature=temperature, alpha=alpha, beta=beta,
                                 compared=self.compared_layers(beta))
        # without a soft loss its form is no part of the phase
        return settings if alpha else replace(settings, soft_loss="none")

    def method_training(self, method, nlayers):
        """The settings of a method to compare with, for a student of so many layers."""
        args, constants = self.inputs.args, constants_of(self.inputs.args)[method]
        # of a teacher that learns too
        teacher_rate = args.teacher_learning_rate if METHODS[method].teacher_learns else 0.0
        return self.training(BaselineTraining, args.epochs, args.train_dataloader_size, args.learning_rate,
                             method=method, nlayers=nlayers, constants=constants,
                             layers=self.layers_of(method),
                             teacher_learning_rate=constants.get("teacher_rate", teacher_rate))

    def compared_layers(self, beta):
        """The teacher's layers that pkd compares; none where it has no weight."""
        inputs = self.inputs
        return teacher_layers(inputs.checkpoints.teacher_layers, inputs.args.nlayers,
                              inputs.protocol.pkd_layers) if beta > 0 else []

    def meta_training(self):
        """The settings of phase 3."""
        args = self.inputs.args
        return self.training(MetaTraining, args.meta_epochs, args.val_dataloader_size,
                             args.meta_learning_rate, loss=loss_name(args))

    def reads(self, *splits, **others):
        """What a phase reads, for its identity: the task, checksums of splits as a model reads them,
        `others`."""
        task, data = self.inputs.task, self.inputs.data
        read = {name: data[name].encoded_checksum() for name in (*splits, *self.inputs.evaluated)}
        described = [task.description_sha256] if task.description else []
        loose = self.inputs.args.nondeterministic and self.device.type == "cuda"
        return {"task": [task.name, task.kind, task.outputs, *task.metrics, *described], **read, **others,
                **({"nondeterministic": True} if loose else {})}

    def open(self, name, function, settings, reads, **more):
        """The Phase `name`, found finished or to be computed. function: the one that assembles it, above."""
        self.note_code(name, function)
        return self.store.open(name, function, settings, reads, self.log.lines_of(name),
                               without=self.not_called(), **more)

    def note_code(self, name, function):
        """Have result.json say what the result of a phase depends on."""
        self.code[name] = describe_code(function, self.not_called())

    def not_called(self):
        """Names of code that this run does not call, though the phases' functions mention it."""
        return () if self.alternating else ("Alternation",)

    def layers_of(self, method):
        """[the student's layers, the teacher's] whose states a method to compare with reads."""
        depth, nlayers = self.inputs.checkpoints.teacher_layers, self.inputs.args.nlayers
        return list(METHODS[method].layers(depth, nlayers))

    def kept_layers(self):
        """How many of the teacher's layers the phases will ask for by example of train."""
        args = self.inputs.args
        asked = [self.compared_layers(args.beta), *(self.layers_of(method)[1] for method in args.baselines
                                                    if not METHODS[method].tokens
                                                    and not METHODS[method].from_quiz)]
        return max((layer for layers in asked for layer in layers), default=0)

    # what the phases work with

    def loop(self, phase, predict_split):
        """What every loop takes besides models, data and settings."""
        return {"evaluator": self.evaluator(predict_split), "streams": self.streams(phase.name),
                "log": phase.log, "saver": phase.saver}

    def evaluator(self, predict_split):
        return Evaluator(predict_split, self.inputs.evaluated, self.inputs.args.select_on,
                         self.inputs.protocol.selection)

    def streams(self, phase):
        return RandomStreams(self.inputs.args.seed, phase, self.inputs.protocol.data_order)

    def predictor(self, model):
        return lambda split: predict(model, split, self.eval_batch_size, self.device)

    def stored_outputs(self, phase, encoder_of):
        return StoredOutputs(phase, encoder_of, self.eval_batch_size, self.device, self.log.say)

    def to_train(self, model):
        """A Model on the device; with --gradient_checkpointing its layers are recomputed in training."""
        model = model.to(self.device)
        return checkpoint_layers(model) if self.inputs.args.gradient_checkpointing else model

    def new_teacher(self, role="teacher", nlayers=None):
        """The pre-trained checkpoint, all layers or the first `nlayers`, with new heads."""
        args, inputs = self.inputs.args, self.inputs
        return self.to_train(load_model(inputs.checkpoints.teacher, inputs.tasks, args.seed, role, nlayers,
                                        self.bf16, args.head_dropout))

    def new_student(self):
        """The first n layers of the pre-trained checkpoint, with new heads."""
        args, inputs = self.inputs.args, self.inputs
        return self.to_train(load_model(inputs.checkpoints.student, inputs.tasks, args.seed, "student",
                                        args.nlayers, self.bf16, args.head_dropout))

    def copy_of_teacher(self, teacher):
        """A Model with the fine-tuned teacher's weights."""
        model = self.new_teacher()
        load_weights(model, teacher.phase.folder, [self.inputs.task.name])
        return model

    def cut_of_teacher(self, teacher):
        """A student that starts as the fine-tuned teacher's first n layers, with its heads."""
        args, inputs = self.inputs.args, self.inputs
        model = load_model(teacher.phase.folder, inputs.tasks, args.seed, "student", args.nlayers, self.bf16,
                           args.head_dropout)
        load_extra(model, teacher.phase.folder, [inputs.task.name])
        return self.to_train(model)

    def alternation(self, teacher, kd_settings, saver):
        """The Alternation, run once."""
        if self.alternated is None:
            self.alternated = Alternation(self, teacher, kd_settings, saver)
        return self.alternated

    # what they leave

    def publish(self, phase, best, model):
        """Keep a model as the artefact of a phase."""
        with phase.publish(best) as folder:
            save_model(model, folder, [self.inputs.task.name], self.inputs.checkpoints.tokenizer)

    def answer(self, predict_split, split):
        """What a model answers to a split: a list."""
        return split.task.rules.answer(predict_split(split)).tolist()

    def add_row(self, name, phase, predict_split, before=0.0):
        """A row from a finished phase: answers to dev, test and the like, scored where labelled. before:
        seconds of a phase before it that is no row."""
        data = self.inputs.data
        answers = {split: phase.answers(data[split], lambda split: self.answer(predict_split, split))
                   for split in self.inputs.answered}
        self.write_row(name, name, before + phase.seconds, answers, {"epoch": phase.best["epoch"]})

    def write_row(self, name, phase, seconds, answers, when):
        """Prediction files and figures of a row. answers: {split: answers}; when: the epoch or episode
        kept."""
        task, data = self.inputs.task, self.inputs.data
        for split, found in answers.items():
            path = self.log.path / "predictions" / name / split / f"{task.name}.jsonl"
            write_predictions(path, task, data[split].idx, found)
        scored = {split: {**row_of(data[split], found), **when} for split, found in answers.items()
                  if split in LABELLED and data[split].labelled}
        self.log.add_row(name, phase, seconds, {"dev": None, **scored})

    def export(self, folder, row, model, encoder=None):
        """models/<folder>: a model of a row as plain transformers opens it. encoder: what it was cut from,
        where that is not --student_model."""
        args, inputs, task = self.inputs.args, self.inputs, self.inputs.task
        where, config, dev = self.log.path / "models" / folder, model.encoder.body.config, self.log.rows[row]
        scored = spoken(dev["dev"]) if dev["dev"] else "not scored, dev has no labels"
        facts = {"task": task.name, "kind": task.kind, "row": row, "inputs": task.inputs_in_words,
                 "labels": names_of_labels(task) if task.rules.labels.counts else None,
                 "description": task.description and json.loads(task.description),
                 "model": type(model.encoder.body).__name__, "layers": config.num_hidden_layers,
                 "encoder": Path(encoder or args.student_model).name,
                 "protocol": args.protocol, "protocol_choices": asdict(inputs.protocol),
                 "loss": loss_name(args), "reward": args.reward_function, "curriculum": args.curriculum,
                 "seed": args.seed, "precision": args.precision, "max_seq_length": args.max_seq_length,
                 "head_dropout": args.head_dropout, "scored": scored,
                 "command": shlex.join(["python", *self.log.environment["command"]]),
                 "commit": self.log.environment["git_commit"]}
        self.exports[folder] = write_export(model, task, inputs.data["dev"], where,
                                            inputs.checkpoints.tokenizer, facts)
        self.log.say(describe_export(where, self.exports[folder]))

    def export_phases(self):
        """The rows of --export, from their artefacts."""
        args, task, phases = self.inputs.args, self.inputs.task, self.store.phases
        for row in [row for row in args.export if row in phases]:
            encoder = load_encoder(phases[row].folder, self.bf16)
            model = Model(encoder, [task], args.seed, row, args.head_dropout)
            load_extra(model, phases[row].folder, [task.name])
            of_teacher = row == "teacher" or row in METHODS and METHODS[row].replaces
            self.export(row, row, model, args.teacher_model if of_teacher else None)

    def finish(self):
        """Write result.json. Returns the exit code."""
        args, inputs = self.inputs.args, self.inputs
        self.export_phases()
        facts = {"task": inputs.task.name, "kind": inputs.task.kind, "metrics": list(inputs.task.metrics),
                 "protocol": args.protocol, "set": args.set,
                 "protocol_choices": asdict(inputs.protocol), "loss": loss_name(args),
                 "reward": args.reward_function, "curriculum": args.curriculum, "seed": args.seed,
                 "teacher_model": args.teacher_model, "student_model": args.student_model,
                 "nlayers": args.nlayers, "select_on": args.select_on,
                 **{f"{name}_labels": describe_labels(split) if split.labelled else None
                    for name, split in inputs.data.items() if name in LABELLED},
                 "data": inputs.summary, "probe": self.probe, "stopped_after": args.stop_after,
                 "code": self.code, "exports": self.exports}
        self.log.finish(facts, self.store.phases)
        return exit_code_of(facts)


def main(args):
    """Run with parsed arguments. Exit codes: 0 done, 1 the run failed, 2 something given cannot be used, 128
    + n ended by signal n."""
    try:
        with stopping_on_signals():
            return run(args)
    except Stopped as stop:
        print(f"error: {stop}", file=sys.stderr)
        return 128 + stop.signum
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        said = say_torch_error(error, args.gradient_checkpointing)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: stopped by a second SIGINT; the same command goes on from the last saved state",
              file=sys.stderr)
        return 130
    except (OSError, SafetensorError) as error:  # the second: how safetensors says that the disk is full
        print(f"error: {error}; what was saved before is whole: mend the cause and give the same command "
              "again", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(parsed))

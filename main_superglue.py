"""MPDistil on one SuperGLUE task: teacher fine-tuning, distillation, meta-teacher, curriculum.

    python main_superglue.py --task RTE --data_dir ./data/ --reward_function binary
    python main_superglue.py --task RTE --data_dir ./data/ --reward_function binary --use_comp_loss

The run's folder (--output_dir) ends with result.json, predictions and the distilled student. Finished phases are kept
under --phase_dir and reused by runs to which they apply.
"""
import copy
import functools
import shutil
import sys
from dataclasses import asdict, replace

from arguments import loss_name, parse_arguments

if __name__ == "__main__":
    parsed = parse_arguments()  # before torch and transformers, whose seconds --help and a mistyped flag need not wait for

from safetensors import SafetensorError  # noqa: E402

from curriculum import CurriculumTraining, Policy, train_curriculum  # noqa: E402
from data_utils import Draws, InputError, check_selection, curriculum_tasks, find_task, load_data, protocol_task  # noqa: E402
from meta_policy import (Distillation, MetaTraining, Selection, Training, TrainingError, alternate_phases, distill_student,  # noqa: E402
                         distillation_epochs, meta_teacher_epochs, train_meta_teacher, train_teacher)
from models import (EVAL_BATCH_SIZES, FrozenEncoder, Heads, keep_freed_memory, load_encoder, load_heads, load_model,  # noqa: E402
                    load_weights, open_checkpoints, predict, predict_heads, resolve_device, save_heads, save_model)
from protocols import resolve_protocol  # noqa: E402
from resume import Stopped, lock, stopping_on_signals  # noqa: E402
from run_folder import (STATE_FOLDER, PhaseStore, RunFolder, StoredOutputs, check_folder, finished_result,  # noqa: E402
                        say_needs, say_result)


def run(args):
    """The four phases in order; returns the exit code."""
    protocol = resolve_protocol(args)
    args.protocol_choices = asdict(protocol)
    setting = Setting(args, protocol)
    with setting.locked():
        finished = finished_result(args, setting.summary)
        if finished and not args.fresh:
            if args.stop_after is None:
                shutil.rmtree(args.output_dir / STATE_FOLDER, ignore_errors=True)  # of a run that was ended right after its result
            print(f"{args.output_dir} holds this run, finished; nothing to do")
            say_result(finished, args.output_dir, print)
            return 0
        setting.open_folders(again=finished is not None)
        return four_phases(setting)


def four_phases(setting):
    """They run, or are found finished, or go on from where they were ended."""
    args = setting.args
    teacher_heads, teacher_outputs, teacher_phase = fine_tune(setting)
    if args.stop_after == "teacher":
        return setting.log.finish(setting.store)

    if args.undistilled:
        train_undistilled(setting)
    pair = Pair(setting, teacher_heads, teacher_outputs)
    kd_phase = distill(setting, pair, teacher_phase)
    if args.stop_after == "kd":
        return setting.log.finish(setting.store)

    meta_teacher_phase = teach_to_teach(setting, pair, teacher_phase, kd_phase)
    if args.kd_200:
        distill_on(setting, pair, kd_phase, meta_teacher_phase if pair.alternating else teacher_phase)
    if args.stop_after == "meta_teacher":
        return setting.log.finish(setting.store)

    follow_curriculum(setting, pair)
    return setting.log.finish(setting.store)


class Setting:
    """What all phases share: the checked inputs, the run's folder and the store of finished phases."""

    def __init__(self, args, protocol):
        self.args, self.protocol = args, protocol
        self.task = protocol_task(find_task(args.task), protocol)
        self.tasks = [protocol_task(task, protocol) for task in curriculum_tasks(args.tasks, self.task, args.data_dir)]
        args.task, args.tasks = self.task.name, [task.name for task in self.tasks]
        finished_result(args)  # refuses a folder of another run, before anything is read
        self.device, self.bf16 = resolve_device(args.device, args.precision), args.precision == "bf16"
        self.eval_batch_size = args.eval_batch_size or EVAL_BATCH_SIZES[self.device.type]
        if self.device.type == "cpu":
            keep_freed_memory()
        self.checkpoints = open_checkpoints(args)
        self.data, self.quiz = load_data(args, self.task, self.tasks, self.checkpoints.tokenizer, protocol)
        check_selection(args.select_on, self.data)
        self.looked_at = {name: split for name, split in self.data.items()
                          if name == args.select_on or (name == "dev" and split.labelled)}
        self.summary = {**{f"{self.task.name}/{name}": split.summary() for name, split in self.data.items()},
                        **{f"{name}/quiz": split.summary() for name, split in self.quiz.items()},
                        "teacher_model": self.checkpoints.teacher_sha256, "student_model": self.checkpoints.student_sha256}

    def locked(self):
        """No other process works in the run's folder."""
        folder = self.args.output_dir.resolve()
        check_folder(folder.parent, "--output_dir")
        return lock(folder.with_name(f".{folder.name}.lock"), busy=f"--output_dir {self.args.output_dir}: another process is at work on "
                    "this run; wait for it, or give another folder")

    def open_folders(self, again):
        """From here on the run writes. again: it was finished, and --fresh asks for it anew."""
        args = self.args
        drawn = self.checkpoints.check_weights(args.nlayers)
        if again:
            for path in (args.phase_dir, args.output_dir / STATE_FOLDER):
                shutil.rmtree(path, ignore_errors=True)
        if not args.fresh:  # else phases lie in the run's own folder
            check_folder(args.phase_dir, "--phase_dir")
        self.log = RunFolder(args, self.device, self.task, self.data, self.quiz, self.checkpoints, drawn, self.summary)
        self.store = PhaseStore(args.phase_dir, self.log)
        say_needs(args, self.checkpoints, self.data["train"], self.device, self.log.say)

    def training(self, kind, epochs, batch_size, learning_rate, **more):
        """The settings of a phase: a dataclass `kind`, whose fields are all that the phase may read."""
        args = self.args
        more |= {name: value for name, value in args.protocol_choices.items() if name in kind.__dataclass_fields__}
        return kind(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, weight_decay=args.weight_decay,
                    max_grad_norm=args.max_grad_norm, seed=args.seed, select_on=args.select_on, eval_batch_size=self.eval_batch_size,
                    device=self.device.type, precision=args.precision, **more)

    def inputs(self, *splits, **others):
        """What a phase reads, for its identity: checksums of splits as a model reads them, and `others`."""
        return {**{name: self.data[name].encoded_checksum() for name in (*splits, *self.looked_at)}, **others}

    def selection(self, predict_split):
        return Selection(predict_split, self.looked_at, self.args.select_on, self.protocol.selection)

    def draws(self, phase):
        return Draws(self.args.seed, phase, self.protocol.data_order)

    def predictor(self, model):
        return lambda split: predict(model, split, self.eval_batch_size, self.device)

    def stored_outputs(self, phase, encoder_of):
        return StoredOutputs(phase, encoder_of, self.eval_batch_size, self.device, self.log.say)

    def new_teacher(self):
        """The pre-trained checkpoint, with new heads."""
        return load_model(self.checkpoints.teacher, self.tasks, self.args.seed, "teacher", bf16=self.bf16).to(self.device)

    def new_student(self):
        """The first n layers of the pre-trained checkpoint, with new heads."""
        return load_model(self.checkpoints.student, self.tasks, self.args.seed, "student", self.args.nlayers, self.bf16).to(self.device)

    def distillation(self, alpha, beta, temperature):
        args = self.args
        return self.training(Distillation, args.epochs, args.train_dataloader_size, args.learning_rate, nlayers=args.nlayers,
                             temperature=temperature, alpha=alpha, beta=beta)

    def save(self, model, folder):
        save_model(model, folder, [self.task.name], self.checkpoints.tokenizer)

    def student_phase(self, name, student, settings, inputs, compute, keep_state=False):
        """A phase that trains a whole student, and its row."""
        phase = self.store.run(name, settings, inputs, compute=compute, keep_state=keep_state, save=functools.partial(self.save, student),
                               load=lambda folder: load_weights(student, folder, [self.task.name]))
        student.eval()
        self.log.add_row(name, self.store, phase, self.predictor(student))
        return phase


class Pair:
    """What phases 2 to 4 move: the student, and the meta-teacher, which starts as a copy of the teacher's heads. The
    teacher's encoder never changes after phase 1 and is asked for outputs by example."""

    def __init__(self, setting, teacher_heads, teacher_outputs):
        args = setting.args
        self.teacher_heads, self.teacher_outputs = teacher_heads, teacher_outputs
        self.student, self.meta_teacher = setting.new_student(), copy.deepcopy(teacher_heads)
        self.kd_settings = setting.distillation(args.alpha, args.beta, args.temperature)
        self.meta_settings = setting.training(MetaTraining, args.meta_epochs, args.val_dataloader_size, args.meta_learning_rate,
                                              loss=loss_name(args))
        self.setting, self.alternating, self.bests = setting, setting.protocol.phase_order == "alternating", None

    def predict_meta_teacher(self, split):
        return predict_heads(self.meta_teacher, self.teacher_outputs, split)

    def alternated(self, saver):
        """Both Bests where phases 2 and 3 alternate, whichever of them was found finished: as they were computed, from their
        common state, or from the beginning."""
        if self.bests is not None:
            return self.bests
        setting = self.setting
        self.student.load_state_dict(setting.new_student().state_dict())
        self.meta_teacher.load_state_dict(self.teacher_heads.state_dict())
        kd = distillation_epochs("kd", self.student, self.meta_teacher, self.teacher_outputs, setting.data["train"], self.kd_settings,
                                 setting.selection(setting.predictor(self.student)), setting.draws("kd"), setting.log)
        moving = FrozenEncoder(self.student.encoder, setting.eval_batch_size, setting.device)  # between an epoch and the next
        meta_teacher = meta_teacher_epochs(self.meta_teacher, self.teacher_outputs, moving, setting.data["quiz"],
                                           self.meta_settings, setting.selection(self.predict_meta_teacher),
                                           setting.draws("meta_teacher"), setting.log, student_moves=True)
        self.bests = alternate_phases(kd, meta_teacher, setting.log, saver)
        return self.bests


def fine_tune(setting):
    """Phase 1: the teacher is fine-tuned on train. Returns its heads, its encoder's outputs by example, and the finished phase.
    Its weights are in memory only while it is trained or its outputs are computed."""
    args, data = setting.args, setting.data
    settings = setting.training(Training, args.teacher_epochs, args.train_dataloader_size, args.teacher_learning_rate)
    teacher = functools.cache(setting.new_teacher)
    phase = setting.store.run(
        "teacher", settings, setting.inputs("train", checkpoint=setting.checkpoints.teacher_sha256),
        compute=lambda saver: train_teacher(teacher(), data["train"], settings, setting.selection(setting.predictor(teacher())),
                                            setting.draws("teacher"), setting.log, saver),
        save=lambda folder: setting.save(teacher(), folder), load=lambda folder: None)
    teacher.cache_clear()
    heads = Heads(setting.tasks, setting.checkpoints.hidden_size, args.seed, "teacher").to(setting.device).eval()
    load_heads(heads, phase.folder, [setting.task.name])
    outputs = setting.stored_outputs(phase, lambda: load_encoder(phase.folder, setting.bf16).to(setting.device))
    read = {split: 0 for split in ("dev", "test") if split in data}
    if args.stop_after != "teacher":
        read |= {"quiz": 0, "train": args.nlayers - 1 if args.beta > 0 else 0}
    outputs.prepare(*((data[split], layers) for split, layers in read.items()))
    setting.log.add_row("teacher", setting.store, phase, lambda split: predict_heads(heads, outputs, split))
    return heads, outputs, phase


def train_undistilled(setting):
    """The row `student`: phase 2 without a teacher (alpha = 0, beta = 0)."""
    student, settings = setting.new_student(), setting.distillation(alpha=0.0, beta=0.0, temperature=1.0)
    setting.student_phase(
        "student", student, settings, setting.inputs("train", checkpoint=setting.checkpoints.student_sha256),
        compute=lambda saver: distill_student("student", student, None, None, setting.data["train"], settings,
                                              setting.selection(setting.predictor(student)), setting.draws("student"), setting.log, saver))


def distill(setting, pair, teacher_phase):
    """Phase 2: the student learns on train from the labels and the teacher. Returns the finished phase."""
    inputs = setting.inputs("train", checkpoint=setting.checkpoints.student_sha256, teacher=teacher_phase.identity)
    if pair.alternating:
        inputs |= setting.inputs("quiz", meta_teacher=asdict(pair.meta_settings))
        return setting.student_phase("kd", pair.student, pair.kd_settings, inputs, keep_state=True,
                                     compute=lambda saver: pair.alternated(saver)[0])
    return setting.student_phase(
        "kd", pair.student, pair.kd_settings, inputs,
        compute=lambda saver: distill_student("kd", pair.student, pair.teacher_heads, pair.teacher_outputs, setting.data["train"],
                                              pair.kd_settings, setting.selection(setting.predictor(pair.student)), setting.draws("kd"),
                                              setting.log, saver))


def teach_to_teach(setting, pair, teacher_phase, kd_phase):
    """Phase 3: the meta-teacher's head learns on quiz from both encoders' pooled outputs. Returns the finished phase."""
    names, student_outputs = [setting.task.name], setting.stored_outputs(kd_phase, lambda: pair.student.encoder)
    common = setting.store.saver(kd_phase.folder)  # of both phases, where they alternate
    phase = setting.store.run(
        "meta_teacher", pair.meta_settings, setting.inputs("quiz", teacher=teacher_phase.identity, kd=kd_phase.identity),
        save=lambda folder: save_heads(pair.meta_teacher, folder, names),
        load=lambda folder: load_heads(pair.meta_teacher, folder, names),
        compute=lambda saver: pair.alternated(common)[1] if pair.alternating else train_meta_teacher(
            pair.meta_teacher, pair.teacher_outputs, student_outputs, setting.data["quiz"], pair.meta_settings,
            setting.selection(pair.predict_meta_teacher), setting.draws("meta_teacher"), setting.log, saver))
    common.clear()
    pair.meta_teacher.eval()
    setting.log.add_row("meta_teacher", setting.store, phase, pair.predict_meta_teacher)
    return phase


def distill_on(setting, pair, kd_phase, teacher_phase):
    """The control `kd_200`: what phase 4's steps and looks at dev are worth without phase 4. The distilled student goes on with phase
    2's loss on train, from the teacher that phase 2 ended with (in `released` the meta-teacher): as many steps between two looks, as many
    looks and updates, and the same new beginning (optimizer, dropout) as in phase 4; the best look is kept, as there."""
    args, student = setting.args, copy.deepcopy(pair.student)
    steps = -(-len(setting.data["quiz"]) // args.val_dataloader_size)
    heads = pair.meta_teacher if pair.alternating else pair.teacher_heads
    settings = replace(pair.kd_settings, epochs=args.num_episodes)
    setting.student_phase(
        "kd_200", student, settings, setting.inputs("train", kd=kd_phase.identity, teacher=teacher_phase.identity, steps=steps,
                                                  update=setting.protocol.student_update),
        compute=lambda saver: distill_student("kd_200", student, heads, pair.teacher_outputs, setting.data["train"], settings,
                                              setting.selection(setting.predictor(student)), setting.draws("kd_200"), setting.log, saver,
                                              epoch_steps=steps, update=setting.protocol.student_update))


def follow_curriculum(setting, pair):
    """Phase 4: the policy picks the tasks whose quiz batches train the student further."""
    args, names = setting.args, list(setting.quiz)
    policy = Policy(pair.student.state_predictor.in_features, len(names), args.seed).to(setting.device)
    settings = setting.training(CurriculumTraining, args.num_episodes, args.val_dataloader_size, args.learning_rate,
                                policy_learning_rate=args.meta_learning_rate, reward=args.reward_function, curriculum=args.curriculum)
    best = train_curriculum(pair.student, pair.meta_teacher, policy, pair.teacher_outputs, setting.quiz, setting.task.name, settings,
                            setting.selection(setting.predictor(pair.student)), setting.draws("mpdistil"), setting.log, setting.log.saver)
    setting.log.save_student(pair.student, policy, names, setting.checkpoints.tokenizer)
    setting.log.add_final_row(best, setting.predictor(pair.student))


def main(args):
    """Run with parsed arguments. Exit codes: 0 done, 1 the run failed, 2 something given cannot be used, 128 + n ended by signal n."""
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
    except KeyboardInterrupt:
        print("error: stopped by a second SIGINT; the same command goes on from the last saved state", file=sys.stderr)
        return 130
    except (OSError, SafetensorError) as error:  # the second: how safetensors says that the disk is full
        print(f"error: {error}; what was saved before is whole: mend the cause and give the same command again", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(parsed))

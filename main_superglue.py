"""MPDistil on one SuperGLUE task: teacher fine-tuning, distillation, meta-teacher, curriculum.

    python main_superglue.py --task RTE --data_dir ./data/ --reward_function binary
    python main_superglue.py --task RTE --data_dir ./data/ --reward_function binary --use_comp_loss

The run's folder (--output_dir) ends with result.json, predictions and the distilled student. Finished phases are kept
under --phase_dir and reused by runs to which they apply.
"""
import copy
import sys

from arguments import loss_name, parse_arguments


def run(args):
    """Check everything, run the four phases in order, write result.json; returns the exit code."""
    # Imported here: torch and transformers take seconds that --help and a mistyped flag need not wait for.
    from curriculum import CurriculumTraining, Policy, train_curriculum
    from data_utils import check_selection, curriculum_tasks, find_task, load_data
    from meta_policy import Distillation, MetaTraining, Selection, Training, distill_student, train_meta_teacher, train_teacher
    from models import (FrozenEncoder, load_heads, load_model, load_weights, open_checkpoints, predict, predict_heads, resolve_device,
                        save_heads, save_model)
    from run_folder import PhaseStore, RunFolder, finished_result, say_result

    finished = finished_result(args)
    if finished:
        print(f"{args.output_dir} holds this run, finished; nothing to do")
        say_result(finished, args.output_dir, print)
        return 0
    task = find_task(args.task)
    tasks = curriculum_tasks(args.tasks, task, args.data_dir)
    names, bf16 = [task.name for task in tasks], args.precision == "bf16"
    device = resolve_device(args.device, args.precision)
    checkpoints = open_checkpoints(args)
    data, quiz = load_data(args, task, tasks, checkpoints.tokenizer)
    check_selection(args.select_on, data)

    log = RunFolder(args, task, data, quiz, checkpoints)
    store = PhaseStore(args.phase_dir, log)
    looked_at = {name: data[name] for name in ("dev", "quiz") if name == args.select_on or (name == "dev" and data["dev"].labelled)}

    def settings(kind, epochs, batch_size, learning_rate, **more):
        return kind(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, weight_decay=args.weight_decay,
                    max_grad_norm=args.max_grad_norm, seed=args.seed, select_on=args.select_on, eval_batch_size=args.eval_batch_size,
                    device=device.type, precision=args.precision, **more)

    def checksums(*splits):
        return {"max_seq_length": args.max_seq_length, **{name: data[name].checksum for name in (*splits, *looked_at)}}

    def selection(predict_split):
        return Selection(predict_split, looked_at, args.select_on)

    def model_parts(model):
        return {"save": lambda folder: save_model(model, folder, [task.name], checkpoints.tokenizer),
                "load": lambda folder: load_weights(model, folder, [task.name])}

    def predictor(model):
        return lambda split: predict(model, split, args.eval_batch_size, device)

    # Phase 1: the teacher is fine-tuned on train. Its encoder never changes again.
    teacher = load_model(checkpoints.teacher, tasks, args.seed, "teacher", bf16=bf16).to(device)
    teacher_settings = settings(Training, args.teacher_epochs, args.train_dataloader_size, args.teacher_learning_rate)
    teacher_phase = store.run(
        "teacher", teacher_settings, {"checkpoint": checkpoints.teacher_sha256, **checksums("train")}, teacher, **model_parts(teacher),
        compute=lambda: train_teacher(teacher, data["train"], teacher_settings, selection(predictor(teacher)), log))
    log.add_row("teacher", store, teacher_phase, predictor(teacher))
    teacher_outputs = FrozenEncoder(teacher.encoder, args.eval_batch_size, device)
    if args.stop_after == "teacher":
        return log.finish(store)

    # Phase 2: the student is distilled on train; without the teacher too if its row is asked for.
    def student_phase(phase, alpha, beta, heads, outputs, inputs):
        student = load_model(checkpoints.student, tasks, args.seed, "student", args.nlayers, bf16).to(device)
        student_settings = settings(Distillation, args.epochs, args.train_dataloader_size, args.learning_rate, nlayers=args.nlayers,
                                    temperature=args.temperature, alpha=alpha, beta=beta)
        done = store.run(
            phase, student_settings, {"checkpoint": checkpoints.student_sha256, **inputs, **checksums("train")}, student,
            **model_parts(student), compute=lambda: distill_student(phase, student, heads, outputs, data["train"], student_settings,
                                                                    selection(predictor(student)), log))
        log.add_row(phase, store, done, predictor(student))
        return student, done

    if args.undistilled:
        student_phase("student", 0.0, 0.0, None, None, {})
    student, kd_phase = student_phase("kd", args.alpha, args.beta, teacher.heads, teacher_outputs, {"teacher": teacher_phase.identity})
    if args.stop_after == "kd":
        return log.finish(store)

    # Phase 3: the meta-teacher, a copy of the teacher's heads, learns on quiz from both encoders' pooled outputs.
    meta_teacher = copy.deepcopy(teacher.heads)
    meta_settings = settings(MetaTraining, args.meta_epochs, args.val_dataloader_size, args.meta_learning_rate, loss=loss_name(args))
    student_outputs = FrozenEncoder(student.encoder, args.eval_batch_size, device)

    def predict_meta_teacher(split):
        return predict_heads(meta_teacher, teacher_outputs, split)

    meta_phase = store.run(
        "meta_teacher", meta_settings, {"teacher": teacher_phase.identity, "kd": kd_phase.identity, **checksums("quiz")}, meta_teacher,
        save=lambda folder: save_heads(meta_teacher, folder, [task.name]),
        load=lambda folder: load_heads(meta_teacher, folder, [task.name]),
        compute=lambda: train_meta_teacher(meta_teacher, teacher_outputs, student_outputs, data["quiz"], meta_settings,
                                           selection(predict_meta_teacher), log))
    log.add_row("meta_teacher", store, meta_phase, predict_meta_teacher)
    if args.stop_after == "meta_teacher":
        return log.finish(store)

    # Phase 4: the policy picks the tasks whose quiz batches train the student further.
    policy = Policy(student.state_predictor.in_features, len(names), args.seed).to(device)
    curriculum_settings = settings(CurriculumTraining, args.num_episodes, args.val_dataloader_size, args.learning_rate,
                                   policy_learning_rate=args.meta_learning_rate, reward=args.reward_function, curriculum=args.curriculum)
    with log.timed("mpdistil"):
        best = train_curriculum(student, meta_teacher, policy, teacher_outputs, quiz, task.name, curriculum_settings,
                                selection(predictor(student)), log)
    log.save_student(student, policy, names, checkpoints.tokenizer)
    log.add_final_row(best, predictor(student))
    return log.finish(store)


def main(argv=None):
    """Run with these arguments. Exit codes: 0 done, 1 the run failed, 2 something given cannot be used."""
    args = parse_arguments(argv)
    from data_utils import InputError
    from meta_policy import TrainingError
    try:
        return run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

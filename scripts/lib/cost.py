"""How long a sweep takes: in all, by the steps of finished runs, and what is left of it."""
import argparse
import statistics

from arguments import constants_of, loss_name, resolve_protocol, with_defaults
from bookkeeping.errors import InputError
from bookkeeping.files import read_json, read_record
from data_utils import resolve_settings

LIKE_KD = ("student", "kd_200", "kd_quiz")  # which benchmark.py does not measure, and whose steps are kd's


def spoken(seconds):
    """A length of time as one reads it."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def expected_seconds(jobs):
    """A function job -> seconds, from the finished jobs of its kind, of its task if there are any; None
    without any."""
    known = {}
    for job in jobs:
        if job.result:
            for key in ((job.kind, job.args.task.lower()), job.kind):
                known.setdefault(key, []).append(job.seconds())
    means = {key: statistics.mean(values) for key, values in known.items()}
    return lambda job: means.get((job.kind, job.args.task.lower()), means.get(job.kind))


def read_facts(args):
    """What the amount of work depends on: tokens of each split of the main task as the encoder reads them,
    mean tokens of a quiz example over the curriculum's tasks, examples of train and quiz, layers of the
    teacher."""
    from bookkeeping.checkpoints import (
        load_config,  # here: transformers takes seconds, and only an estimate needs it
    )
    from main_superglue import read_inputs
    inputs = read_inputs(args, resolve_settings(args))
    per_example = {name: len(split.input_ids) / len(split) for name, split in inputs.quiz.items()}
    return {
        "tokens": {name: len(split.input_ids) for name, split in inputs.data.items()},
        "train": len(inputs.data["train"]), "quiz": len(inputs.data["quiz"]),
        "main_example": per_example[inputs.task.name],
        "curriculum_example": statistics.mean(per_example.values()),
        "encoder": inputs.checkpoints.teacher_sha256,
        "layers": load_config(inputs.checkpoints.teacher, "--teacher_model").num_hidden_layers,
    }


def work_of(args, facts):
    """{phase: tokens x layers that go through an encoder forward}, a training step counted three times:
    forward, and twice that backward; of methods to compare with, as Baseline.passes counts them. What is
    computed once per example from frozen encoders is left out (at most one pass of the teacher)."""
    from baselines import METHODS  # here: torch takes seconds, and only an estimate needs it

    tokens, train, quiz = facts["tokens"], facts["train"], facts["quiz"]
    steps = -(-quiz // args.val_dataloader_size)
    example = facts["main_example"] if args.curriculum == "main_task" else facts["curriculum_example"]

    def epochs(count, layers):
        return count * layers * (3 * tokens["train"] + tokens["dev"])

    def method(name, constants):
        ours, theirs = METHODS[name].passes(constants)
        halfway = (facts["layers"] + args.nlayers) // 2
        return (args.epochs * (tokens["train"] * (ours * args.nlayers + theirs * facts["layers"])
                               + tokens["dev"] * args.nlayers)
                + (epochs(args.epochs, halfway) if METHODS[name].assistant else 0))

    def episodes(tokens_of_steps):
        return args.num_episodes * args.nlayers * (3 * tokens_of_steps + tokens["dev"])

    return {
        "teacher": epochs(args.teacher_epochs, facts["layers"]),
        "kd": epochs(args.epochs, args.nlayers),
        "student": epochs(args.epochs, args.nlayers),
        **{name: method(name, constants) for name, constants in constants_of(args).items()},
        "kd_200": episodes(steps * args.val_dataloader_size * tokens["train"] / train),
        "kd_quiz": episodes(steps * args.val_dataloader_size
                            * (tokens["train"] + tokens["quiz"]) / (train + quiz)),
        # the reward goes over quiz once an episode, an improvement twice
        "mpdistil": episodes(quiz * example) + args.num_episodes * args.nlayers * tokens["quiz"] * (
            1 + (resolve_protocol(args).reward_of == "improvement")),
    }


def of_run(folder, precision):
    """(what a finished run was asked for, its encoder's sha256, {phase: its seconds}). InputError unless it
    has this precision."""
    result = read_record(folder / "result.json", "give the folders of finished runs")
    settings = with_defaults(read_json(folder / "args.json", "give the folders of finished runs"))
    if settings["precision"] != precision:
        raise InputError(f"--estimate_from: {folder}: --precision {settings['precision']} found, expected"
                         f" {precision}, which the sweep has; give runs in that one")
    return settings, result["data"]["teacher_model"], result["seconds"]


def of_benchmark(path, precision):
    """The same of the figures of benchmark.py, in this precision, but for the sha256, which they lack."""
    figures = read_json(path, "give the file that benchmark.py --json wrote")
    settings, phases = figures.get("settings"), figures.get("phases")
    if not settings or not phases or "over_bare" not in phases.get("kd", {}):
        raise InputError(f"--estimate_from: {path}: no figures of phases found, expected the file that"
                         " benchmark.py --json wrote without --peer")
    side = "ours" if settings["precision"] == precision else precision
    if f"{side}_s" not in phases["kd"]:
        raise InputError(f"--estimate_from: {path}: measured in {settings['precision']}, expected --precision"
                         f" {precision}, which the sweep has; measure it in that one")
    return with_defaults(settings), None, {phase: phases[phase][f"{side}_s"] for phase in
                                           ("teacher", "kd", "mpdistil")}


def measured_rates(paths, precision):
    """({phase: median seconds per unit of work_of} of finished runs and of benchmarks, sha256 of their
    encoder). precision: that they must have."""
    rates, encoders, known = {}, set(), {}
    for path in paths:
        settings, encoder, seconds = (of_benchmark if path.is_file() else of_run)(path, precision)
        args = argparse.Namespace(**settings)
        key = (args.task, args.teacher_model, args.data_dir, args.max_seq_length, args.quiz_size,
               args.max_train, *args.tasks)
        if key not in known:
            known[key] = read_facts(args)
        encoders.add(encoder or known[key]["encoder"])
        for phase, work in work_of(args, known[key]).items():
            if phase in seconds:
                rates.setdefault(phase, []).append(seconds[phase] / work)
        for phase in LIKE_KD if path.is_file() else ():
            rates.setdefault(phase, []).append(rates["kd"][-1])
    if len(encoders) != 1:
        raise InputError(f"--estimate_from: runs with {len(encoders)} different encoders found, expected one")
    return {phase: statistics.median(values) for phase, values in rates.items()}, encoders.pop()


def phases_of(job):
    """(key, phase) of each phase of a job; jobs whose phases have one key share it. Phase 3 takes no time
    to speak of."""
    args, task = job.args, job.args.task
    phases = ["teacher"]
    if args.stop_after != "teacher":
        phases += ["kd", *["student"] * args.undistilled, *args.baselines]
    if args.stop_after not in ("teacher", "kd"):
        phases += [name for name in ("kd_200", "kd_quiz") if getattr(args, name)]
    # a distilled student is another one with each loss, where phases alternate
    alternating = resolve_protocol(args).phase_order == "alternating"
    for phase in phases:
        yield (task, args.seed, phase, loss_name(args) * (alternating and phase != "teacher")), phase
    if args.stop_after is None:
        yield job, "mpdistil"


def estimate(jobs, paths, side_by_side):
    """Lines that say how long the jobs take, per task, by the steps of finished runs or of a benchmark. A
    task whose files cannot be read has none, and the reason; InputError where no task has one."""
    rates, encoder = measured_rates(paths, jobs[0].args.precision)
    facts, seconds, without, computed = {}, {}, {}, set()
    for job in jobs:
        task = job.args.task
        if task not in facts and task not in without:
            try:
                facts[task], seconds[task] = read_facts(job.args), 0.0
            except InputError as error:
                without[task] = error
        if task in without:
            continue
        if facts[task]["encoder"] != encoder:
            raise InputError(f"--estimate_from: measured with another encoder than --teacher_model "
                             f"{job.args.teacher_model}; give runs of the same")
        work = work_of(job.args, facts[task])
        phases = [phase for key, phase in phases_of(job) if key not in computed]
        missing = [phase for phase in phases if phase not in rates]
        if missing:
            raise InputError(f"--estimate_from: no run there that has {', '.join(missing)}")
        computed.update(key for key, _ in phases_of(job))
        seconds[task] += sum(rates[phase] * work[phase] for phase in phases)
    if not seconds:
        raise next(iter(without.values()))
    for task in dict.fromkeys(job.args.task for job in jobs):
        yield (f"# {task}: no estimate: {without[task]}" if task in without
               else f"# {task}: about {seconds[task] / 3600:.1f} h")
    hours, count = sum(seconds.values()) / 3600, sum(job.args.task in seconds for job in jobs)
    yield (f"# {count} runs: about {hours:.1f} h in all, {hours / side_by_side:.1f} h with --jobs"
           f" {side_by_side} where {side_by_side} processes are each as fast as those measured"
           f" ({', '.join(sorted(rates))}); start-up not counted")

"""Change one thing of the method at a time and see that a check notices.

    python tests/mutations.py [CASE_FOLDER ...]     default: the traces in tests/golden

Each mutation edits a copy of the project and names the check that has to notice: the replay of traces
(replay.py), which knows the protocol `released` and the functions, or a case of test_reference.py, which
knows `paper` and how the command line wires it. Printed is the first figure out of tolerance. Exit code 1 if
any mutation goes unnoticed.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT, WORKERS = Path(__file__).parents[1], 2
REPLAY = (  # what is changed, file, text found there exactly once, text put in its place
    ("PKD matches teacher layers 2..n", "models.py", "states[:layers].transpose",
     "states[1:layers + 1].transpose"),
    ("PKD matches layers in another order", "meta_policy.py", "pkd_loss(states[:-1], ",
     "pkd_loss(states[:-1].roll(1, 0), "),
    ("PKD without normalisation", "meta_policy.py",
     "F.mse_loss(F.normalize(student_states, dim=-1), F.normalize(teacher_states, dim=-1))",
     "F.mse_loss(student_states, teacher_states)"),
    ("temperature not squared", "tasks.py", "temperature ** 2 * F.mse", "temperature * F.mse"),
    ("alpha and 1 - alpha of another share", "meta_policy.py", "alpha * soft + (1 - alpha) * ce",
     "soft + (1 - alpha) * ce"),
    ("KD teacher is the fine-tuned teacher's head", "tests/replay.py",
     '"kd", student, meta_teacher, teacher_outputs', '"kd", student, teacher.heads, teacher_outputs'),
    ("sign of the competitive term", "meta_policy.py", "+ rules.agreement(outputs_student, labels).mean()",
     "- rules.agreement(outputs_student, labels).mean()"),
    ("collaborative loss weighs the student more", "meta_policy.py",
     "0.5 * rules.loss(outputs_student, labels)", "0.6 * rules.loss(outputs_student, labels)"),
    ("meta-teacher reads the student of an epoch before", "meta_policy.py",
     "before=student_outputs.forget if student_moves else", "before=(lambda: None) if student_moves else"),
    ("sign of the reward", "curriculum.py", "return (p_student - p_meta_teacher).to",
     "return (p_meta_teacher - p_student).to"),
    ("ties win", "curriculum.py", "(p_student > p_meta_teacher)", "(p_student >= p_meta_teacher - 1e-3)"),
    ("discount 0.95", "curriculum.py", "DISCOUNT = 0.99", "DISCOUNT = 0.95"),
    ("discount from each step", "curriculum.py", "discounted_returns(rewards, discount, discount_from)",
     "discounted_returns(rewards, discount)"),
    ("no baseline", "curriculum.py", "return returns - torch.from_numpy(",
     "return returns - 0 * torch.from_numpy("),
    ("returns summed up in float64", "curriculum.py", "following = rewards[step] + discount * following",
     "following = rewards[step].double() + discount * following"),
    ("rewards not rounded to float32", "curriculum.py", 'settings.reward_precision == "float32"',
     'settings.reward_precision == "half"'),
    ("sign of the policy loss", "curriculum.py", "return -(advantages * log_probabilities)",
     "return (advantages * log_probabilities)"),
    ("student's loss without its own probability", "curriculum.py", "return ce - p_student.mean() +",
     "return ce +"),
    ("clipping only once an episode", "curriculum.py", "backward(loss, student, settings.max_grad_norm)",
     "backward(loss, student, 1e9)"),
    ("gradients not clipped", "meta_policy.py", "clip_grad_norm_(module.parameters(), max_grad_norm)",
     "clip_grad_norm_(module.parameters(), 1e9)"),
    ("state detached", "curriculum.py", "fixed_state(student, episode.begun)",
     "fixed_state(student, episode.begun).detach()"),
    ("decay not on biases and LayerNorm", "meta_policy.py", 'settings.weight_decay_on == "matrices" and',
     'settings.weight_decay_on != "" and'),
    ("zero_grad the other way", "meta_policy.py", 'set_to_none=settings.zero_grad == "none"',
     'set_to_none=settings.zero_grad != "none"'),
    ("gradients forgotten before the step", "meta_policy.py", "optimizer.step()",
     'optimizer.zero_grad(set_to_none=settings.zero_grad == "none"), optimizer.step()'),
    ("student updated at every step", "curriculum.py", 'if settings.student_update == "each_step" and', "if"),
    ("rewards with the weights before the first episode", "curriculum.py", "episode.p_before = main_rules",
     "episode.p_before = episode.p_before if episode.p_before is not None else main_rules"),
    ("action used in its own step", "arguments.py", 'choice("same_step", "next_step", 15)',
     'choice("same_step", "same_step", 15)'),
    ("selection by accuracy instead of F1", "meta_policy.py",
     'if self.rule == "f1_or_accuracy" else []', 'if self.rule == "" else []'),
    ("last instead of first best kept", "metrics.py", "if not value > self.score:",
     "if not value >= self.score:"),
    ("student from the last epoch", "metrics.py", "module.load_state_dict(self.weights)", "pass"),
    ("dropout on in training", "models.py", 'if dropout == "training":', "if True:"),
    ("padding attended to", "models.py",
     "mask = batch.attention_mask\n", "mask = torch.ones_like(batch.attention_mask)\n"),
)
REFERENCE = {  # case of test_reference.py: mutations as above
    "dropout": (
        ("reward before the update", "curriculum.py",
         "                if settings.student_update == \"each_step\" and finite:\n"
         "                    apply_gradients(learner.optimizer, settings)\n", "",
         "                if not finite:\n                    break",
         "                if settings.student_update == \"each_step\" and finite:\n"
         "                    apply_gradients(learner.optimizer, settings)\n"
         "                if not finite:\n                    break"),
        ("reward with dropout on", "curriculum.py", '"training":\n        student.eval()',
         '"training":\n        student.train()'),
        ("state times 0", "curriculum.py", "student.encoder.pooler_weight).detach()",
         "student.encoder.pooler_weight).detach() * 0"),
        ("phases 2 to 4 read the pre-trained teacher", "main_superglue.py", "load_encoder(phase.folder, ",
         "load_encoder(inputs.checkpoints.teacher, "),
        ("the policy's rate is the student's", "main_superglue.py",
         "policy_learning_rate=args.policy_learning_rate", "policy_learning_rate=args.learning_rate"),
        ("the meta-teacher starts from new heads", "main_superglue.py",
         "Teacher(copy.deepcopy(teacher.heads), teacher.outputs), lab.meta",
         "Teacher(Heads(inputs.tasks, inputs.checkpoints.hidden_size, args.seed, 'teacher'), "
         "teacher.outputs), lab.meta"),
        ("the teacher's rate is the student's", "main_superglue.py", "args.teacher_learning_rate)",
         "args.learning_rate)"),
        ("another task than the chosen one trains", "curriculum.py", "name = names[episode.used[-1]]",
         "name = names[episode.used[-1] - 1]"),
        ("the meta-teacher learns on train", "main_superglue.py", 'student_outputs, inputs.data["quiz"]',
         'student_outputs, inputs.data["train"]'),
        ("the student is cut from the fine-tuned teacher", "main_superglue.py",
         "load_model(inputs.checkpoints.student, ", 'load_model(next(args.phase_dir.glob("teacher-*")), '),
        ("L_S reads T' on h_T", "curriculum.py",
         "p_meta_teacher = rules.agreement(meta_teacher(name, pooled), batch.labels)",
         "p_meta_teacher = (p_teacher[torch.from_numpy(taken)] if name == main_task else\n"
         "                                      rules.agreement(meta_teacher(name, pooled), batch.labels))"),
        ("L_S reads T' on h_S without dropout", "curriculum.py", "meta_teacher(name, pooled)",
         "meta_teacher(name, student.eval().encoder(batch)[0])"),
        ("T' has dropout in phase 4", "curriculum.py", "meta_teacher.eval()(main_task",
         "meta_teacher.train()(main_task"),
        ("a phase found finished leaves the student as it was", "main_superglue.py",
         "load_weights(model, phase.folder, [inputs.task.name])\n        else:\n"
         "            if lab.alternating:",
         "pass\n        else:\n            if lab.alternating:"),
        ("the teacher's head has dropout in phase 2", "meta_policy.py", "teacher_heads.eval()(",
         "teacher_heads.train()("),
        ("frozen encoders have dropout", "models.py", "        self.encoder.eval()\n",
         "        self.encoder.train()\n"),
        ("evaluation with dropout on", "models.py", "(prepare or model.eval)()",
         "(prepare or model.train)()"),
        ("dropout has one seed in all phases", "data_utils.py", 'derive_seed(seed, phase, "dropout")',
         'derive_seed(seed, "dropout")'),
        ("orders have the seed of another phase", "data_utils.py",
         "seeded_generator(self.seed, self.phase, *purpose)", 'seeded_generator(self.seed, "kd", *purpose)'),
        ("the reward is always over the first batch", "curriculum.py",
         "places = to_device(indices, device)", "indices = episode.order[0]\n"
         "                places = to_device(indices, device)"),
        ("the reward over the size of the batch", "curriculum.py", "quiz_size=len(main_quiz)",
         "quiz_size=len(indices)"),
        ("phase 4 reads the teacher's head, not T'", "main_superglue.py",
         "train_curriculum(model, meta_teacher.heads", "train_curriculum(model, teacher.heads"),
        ("the state is read from another weight", "curriculum.py", "student.encoder.pooler_weight).detach()",
         "student.encoder.body.encoder.layer[0].attention.output.dense.weight).detach()"),
        ("the policy learns from the last state alone", "curriculum.py", "log_pi(seen) for seen in states",
         "log_pi(states[-1]) for seen in states"),
        ("advantages of the steps in reverse", "curriculum.py",
         "range(len(episode.credited)), episode.credited]",
         "range(len(episode.credited)), episode.credited[::-1]]"),
        ("returns discounted from the episode's start", "curriculum.py",
         'if discount_from == "episode_start":\n        rewards', "if True:\n        rewards"),
        ("quiz batches composed once", "curriculum.py", 'if kind == "fixed" else None', "if True else None"),
        ("the student is updated once an episode", "curriculum.py", '"each_step" and finite',
         '"each_step" and len(episode.used) == len(episode.order)'),
        ("the undistilled student keeps alpha", "main_superglue.py", "distillation(alpha=0.0",
         "distillation(alpha=lab.inputs.args.alpha"),
        ("kd_200 starts from a new student", "main_superglue.py", "lab.inputs, copy.deepcopy(student.model)",
         "lab.inputs, lab.new_student()"),
        ("kd_200 looks after whole passes", "main_superglue.py", "epoch_steps=steps", "epoch_steps=None"),
        ("train and quiz are divided by another seed", "data_utils.py", "(split_seed, task_name, number)",
         "(0, task_name, number)"),
        ("the student's heads are drawn as the teacher's", "main_superglue.py",
         'checkpoints.student, inputs.tasks, args.seed, "student"',
         'checkpoints.student, inputs.tasks, args.seed, "teacher"'),
    ),
    "quiz selects": (
        ("dev selects where quiz should", "main_superglue.py",
         "self.inputs.evaluated, self.inputs.args.select_on", 'self.inputs.evaluated, "dev"'),
        ("the policy's gradient is not clipped", "curriculum.py",
         "backward(loss, policy, settings.max_grad_norm)", "backward(loss, policy, 1e9)"),
        ("biases and LayerNorms decay too", "meta_policy.py", '"matrices" and parameter.ndim <= 1',
         '"matrices" and parameter.ndim < 1'),
        ("phase 4 goes on with phase 2's optimizer", "meta_policy.py", "    return torch.optim.AdamW(",
         "    if hasattr(module, 'kept'):\n        return module.kept\n    module.kept = torch.optim.AdamW(",
         "lr=learning_rate, fused=True)\n", "lr=learning_rate, fused=True)\n    return module.kept\n"),
        ("COPA without its question", "tasks.py",
         """f"{record['premise']} {questions[record['question']]}\"""",
         """record["premise"]"""),
    ),
    "regression": (
        ("the distance as the loss", "tasks.py", "return F.mse_loss(outputs.squeeze(-1), labels)",
         "return F.l1_loss(outputs.squeeze(-1), labels)"),
        ("the agreement of numbers squared", "tasks.py", "-(labels - outputs.squeeze(-1)).abs()",
         "-(labels - outputs.squeeze(-1)).square()"),
        ("numbers softened by the temperature", "tasks.py", "F.mse_loss(student_outputs, teacher_outputs)",
         "temperature ** 2 * F.mse_loss(student_outputs, teacher_outputs)"),
        ("scores stratified by their whole part", "tasks.py", "(high - low) + 0.5)", "(high - low))"),
        ("the rank correlation selects", "tasks.py", 'metrics=("pearson", "spearman"), label_range',
         'metrics=("spearman", "pearson"), label_range'),
        ("one text read twice", "tasks.py", "[(str(record[field]), None)]",
         "[(str(record[field]), str(record[field]))]"),
        ("errors of examples not squared", "tasks.py", "np.asarray(labels, dtype=float)) ** 2",
         "np.asarray(labels, dtype=float)) ** 4"),
    ),
    "readings": (
        ("skip compares the first layers", "meta_policy.py", "[number * depth // nlayers if", "[number if"),
        ("skip counts the embeddings", "models.py", "states[number - 1] for number in numbers",
         "states[number - 2] for number in numbers"),
        ("the soft loss of probabilities for logits", "meta_policy.py",
         'if settings.soft_loss == "probabilities":', "if True:"),
        ("the meta-teacher's term is always constant", "curriculum.py", 'settings.meta_term == "attached"',
         "False"),
        ("the baseline is that of the episode before alone", "curriculum.py",
         "before + (returns - before) / self.episodes", "returns"),
        ("the baseline knows its own episode", "curriculum.py",
         "advantages = step_advantages(returns, baseline.mean)\n                baseline.include(returns)",
         "baseline.include(returns)\n                advantages = step_advantages(returns, baseline.mean)"),
        ("no baseline in the first episode", "curriculum.py", "torch.zeros_like(returns) if baseline is None",
         "returns if baseline is None"),
        ("the improvement against the episode's mean", "curriculum.py",
         'if settings.advantage == "episode_mean":', "if True:"),
        ("the level is the reward", "curriculum.py", "if p_before is not None:", "if False:"),
        ("the improvement is that of the first batch", "curriculum.py",
         "p_before = p_student_of(indices) if", "p_before = p_student_of(episode.order[0]) if"),
        ("the policy has the meta-teacher's rate", "main_superglue.py",
         "policy_learning_rate=args.policy_learning_rate", "policy_learning_rate=args.meta_learning_rate"),
    ),
    "two encoders": (
        ("the student is cut from the teacher's checkpoint", "main_superglue.py",
         "load_model(inputs.checkpoints.student, ", "load_model(inputs.checkpoints.teacher, "),
        ("the temperature is the default", "main_superglue.py", "temperature=temperature", "temperature=5.0"),
        ("alpha is the default", "main_superglue.py", "alpha=alpha", "alpha=0.5"),
        ("beta is the default", "main_superglue.py", "beta=beta", "beta=100.0"),
        ("WSC's marks exchanged", "tasks.py", '(("1", "*"), ("2", "#"))', '(("1", "#"), ("2", "*"))'),
    ),
}


# of the methods to compare with: noticed by the hand-worked numbers of tests/test_baselines.py
BASELINES = (
    ("hinton_kd: both shares exchanged", "baselines.py", 'return {"loss": (1 - constants["alpha"]) * ce',
     'return {"loss": constants["alpha"] * ce'),
    ("hinton_kd: no T^2", "tasks.py", "return temperature ** 2 * F.kl_div", "return F.kl_div"),
    ("hinton_kd: the divergence turned round", "tasks.py",
     "F.kl_div((student_logits / temperature).log_softmax(-1),\n"
     "                                       (teacher_logits / temperature).log_softmax(-1),",
     "F.kl_div((teacher_logits / temperature).log_softmax(-1),\n"
     "                                       (student_logits / temperature).log_softmax(-1),"),
    ("pkd: states as long as they are", "baselines.py",
     "F.normalize(student_states, dim=-1) - F.normalize(teacher_states, dim=-1)",
     "student_states - teacher_states"),
    ("pkd: the mean over hidden", "baselines.py", "difference.square().sum(-1).mean()",
     "difference.square().mean()"),
    ("pkd_skip: the first layers", "baselines.py", 'teacher_layers(depth, nlayers, "skip")',
     'teacher_layers(depth, nlayers, "first")'),
    ("pkd_last: a layer too early", "baselines.py", "range(depth - nlayers + 1, depth)",
     "range(depth - nlayers, depth - 1)"),
    ("alp_kd: weights over the student's layers", "baselines.py", "teacher_states).softmax(-1)",
     "teacher_states).softmax(1)"),
    ("alp_kd: the mean over layers", "baselines.py", "mean((1, 2)).sum()", "mean()"),
    ("annealing_kd: f counts from 0", "baselines.py", "min(steps, 1 + int(", "min(steps, int("),
    ("annealing_kd: the teacher's logits whole", "baselines.py",
     "soft = F.mse_loss(student.logits, factor * teacher.logits)\n",
     "soft = F.mse_loss(student.logits, teacher.logits)\n"),
    ("continuation_kd: a margin that stays", "baselines.py", '- constants["margin"] * factor)',
     '- constants["margin"])'),
    ("distilbert: padding counts", "baselines.py", "teacher_states, dim=-1), mask)",
     "teacher_states, dim=-1), torch.ones_like(mask))"),
    ("distilbert: T of KD", "arguments.py", '"cosine": 1.0, "temperature": 2.0',
     '"cosine": 1.0, "temperature": 5.0'),
    ("rail_kd: the mean over all tokens", "baselines.py", "(states * weights).sum(-2) / weights.sum(-2)",
     "states.mean(-2)"),
    ("rail_kd: projections as long as they are", "baselines.py",
     'ours = F.normalize(learnt["student"](token_mean(student.states, student.mask)), dim=-1)',
     'ours = learnt["student"](token_mean(student.states, student.mask))'),
    ("rail_kd: layers drawn once", "baselines.py", '"rail_kd", "layers", epoch', '"rail_kd", "layers", 0'),
    ("dml: the divergence turned round", "baselines.py",
     "rules.loss(teacher.logits, labels) + rules.divergence(student.logits, teacher.logits,",
     "rules.loss(teacher.logits, labels) + rules.divergence(teacher.logits, student.logits,"),
    ("prokt: both shares exchanged", "arguments.py", '"prokt": {"ce": 0.6, "soft": 0.4',
     '"prokt": {"ce": 0.4, "soft": 0.6'),
    ("metadistil: a step upwards", "baselines.py", "value - rate * gradient", "value + rate * gradient"),
    ("metadistil: first order", "baselines.py", "create_graph=True, allow_unused", "allow_unused"),
    ("tinybert: padding counts", "baselines.py",
     "places = student.mask[:, None, :, None] * student.mask[:, None, None, :]",
     "places = torch.ones_like(student.mask[:, None, :, None] * student.mask[:, None, None, :])"),
    ("tinybert: without the embeddings", "baselines.py",
     "list(range(nlayers + 1)), block_ends(depth, nlayers)",
     "list(range(nlayers + 1)), [depth // nlayers, *block_ends(depth, nlayers)[1:]]"),
    ("minilm: the divergence turned round", "baselines.py", "(theirs.exp() * (theirs - ours))",
     "(ours.exp() * (ours - theirs))"),
    ("minilm: padding is a key", "baselines.py", "blocked = (mask[:, None, None, :] == 0)",
     "blocked = (mask[:, None, None, :] == 7)"),
    ("theseus: r from 0", "baselines.py", 'constants["start"] + (1 - constants["start"]) *', "1 *"),
    ("theseus: a teacher's layer too late", "baselines.py", "teacher_layers[ends[number]:ends[number + 1]]",
     "teacher_layers[ends[number] + 1:ends[number + 1] + 1]"),
    ("theseus: the other way round", "baselines.py", "number + 1] if own else",
     "number + 1] if not own else"),
    ("continuation_kd: psi up to 1", "baselines.py", "else 0.5 * done", "else 1.0 * done"),
)


class Stopped(Exception):
    """A check could not be made. The message says what stopped it."""


def copy_with(folder, file, *pairs):
    """A copy of the project with texts of a file replaced, each found there once: old, new, old, new, ..."""
    folder.mkdir()
    (folder / "sample_data").symlink_to(ROOT / "sample_data")
    for path in (*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py"), ROOT / "pyproject.toml"):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    text = (folder / file).read_text()
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        if text.count(old) != 1:
            raise Stopped(f"{file}: {text.count(old)} places found for {old!r}, expected one")
        text = text.replace(old, new)
    (folder / file).write_text(text)


def python(folder, *words, **variables):
    return subprocess.run([sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **variables})


def replayed(folder, traces):
    """The first figure out of tolerance in the replay of any trace, or None."""
    script = ("import sys; from replay import Replay\n"
              "print('\\n'.join(str(Replay(trace).run().first) for trace in sys.argv[1:]))")
    done = python(folder / "tests", "-c", script, *traces, PYTHONPATH=str(folder))
    if done.returncode:
        raise Stopped(f"the replay stopped instead of comparing: {done.stderr.strip().splitlines()[-1]}")
    return next((line for line in done.stdout.splitlines() if line != "None"), None)


def by_hand(folder):
    """The first hand-worked number of the methods to compare with that is another one, or None."""
    done = python(folder, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_baselines.py", "-k",
                  "by_hand")
    said = next((line for line in done.stdout.splitlines() if line.startswith("E ")), "")
    if done.returncode and not said:
        raise Stopped(f"the tests stopped instead of comparing: {done.stderr or done.stdout}")
    return said.strip("E ") if done.returncode else None


def held(folder, case):
    """The first figure out of tolerance in a case of test_reference.py, or None."""
    done = python(folder, "-m", "pytest", "-p", "no:cacheprovider",
                  f"tests/test_reference.py::test_every_figure[{case}]")
    said = next((line for line in done.stdout.splitlines() if line.startswith("E ")), "")
    if done.returncode and "AssertionError: " not in said:
        raise Stopped(f"the run stopped instead of being compared: {said or done.stderr or done.stdout}")
    return said.split("AssertionError: ")[1] if done.returncode else None


def main(traces):
    def look(numbered):
        number, (check, what, file, *pairs) = numbered
        folder = Path(work) / str(number)
        copy_with(folder, file, *pairs)
        found = (replayed(folder, traces) if check == "replay" else
                 by_hand(folder) if check == "baselines" else held(folder, check))
        shutil.rmtree(folder)
        return check, what, found, bool(found) == bool(pairs)

    checks = {"replay": REPLAY, "baselines": BASELINES, **REFERENCE}
    jobs = [(check, *mutation) for check, mutations in checks.items()
            for mutation in (("nothing (control)", "models.py"), *mutations)]
    right = True
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(WORKERS) as pool:
        try:
            for check, what, found, as_expected in pool.map(look, enumerate(jobs)):
                print(f"{check:<12}  {what:<52}  {found or 'no difference'}", flush=True)
                right &= as_expected
        except Stopped as stop:
            pool.shutdown(cancel_futures=True)
            sys.exit(str(stop))
    return int(not right)


if __name__ == "__main__":
    golden = sorted(path.parent for path in (ROOT / "tests" / "golden").glob("*/case.json"))
    sys.exit(main([Path(trace).resolve() for trace in sys.argv[1:]] or golden))

"""Change one thing of the method at a time and see that the replay of a trace notices.

    python tests/mutations.py [CASE_FOLDER ...]     default: the cases in tests/golden

Each mutation edits a copy of the project's files, replays the cases with it and prints which figure was out
of tolerance first, in the order in which they are computed. Exit code 1 if any mutation goes unnoticed.
"""
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MUTATIONS = (  # what is changed, file, text found there exactly once, text put in its place
    ("PKD matches teacher layers 2..n", "models.py", "states[:layers].transpose",
     "states[1:layers + 1].transpose"),
    ("PKD matches layers in another order", "meta_policy.py", "pkd_loss(states, ",
     "pkd_loss(states.roll(1, 0), "),
    ("PKD without normalisation", "meta_policy.py",
     "F.mse_loss(F.normalize(student_states, dim=-1), F.normalize(teacher_states, dim=-1))",
     "F.mse_loss(student_states, teacher_states)"),
    ("temperature not squared", "tasks.py", "temperature ** 2 * F.mse", "temperature * F.mse"),
    ("alpha and 1 - alpha of another share", "meta_policy.py", "alpha * soft + (1 - alpha) * ce",
     "soft + (1 - alpha) * ce"),
    ("KD teacher is the fine-tuned teacher's head", "replay.py",
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
    ("rewards with the weights before the first episode", "curriculum.py", "episode.p_before = rules",
     "episode.p_before = episode.p_before if episode.p_before is not None else rules"),
    ("action used in its own step", "arguments.py", 'choice("same_step", "next_step", 15)',
     'choice("same_step", "same_step", 15)'),
    ("selection by accuracy instead of F1", "meta_policy.py",
     'self.rule == "f1_or_accuracy" and "f1" in metrics', 'self.rule == ""'),
    ("last instead of first best kept", "metrics.py", "if not value > self.score:",
     "if not value >= self.score:"),
    ("student from the last epoch", "metrics.py", "module.load_state_dict(self.weights)", "pass"),
    ("dropout on in training", "models.py", 'if dropout == "training":', "if True:"),
    ("padding attended to", "models.py", "attention_mask=batch.attention_mask",
     "attention_mask=torch.ones_like(batch.attention_mask)"),
)


def first_difference(folder, cases):
    """What a copy of the project says of the cases: the first figure out of tolerance of each, or None."""
    script = ("import sys; from replay import Replay\n"
              "print('\\n'.join(str(Replay(case).run().first) for case in sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", script, *map(str, cases)], cwd=folder, capture_output=True,
                          text=True)
    if done.returncode:
        sys.exit(f"the replay stopped instead of comparing: {done.stderr.strip().splitlines()[-1]}")
    return [None if line == "None" else line for line in done.stdout.splitlines()]


def main(cases):
    unnoticed = 0
    with tempfile.TemporaryDirectory() as work:
        for what, file, old, new in ((("nothing (control)", "models.py", "", ""),) + MUTATIONS):
            folder = Path(work) / "project"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(ROOT / "bookkeeping", folder / "bookkeeping",
                            ignore=shutil.ignore_patterns("__pycache__"))
            for path in (*ROOT.glob("*.py"), ROOT / "tests" / "replay.py"):
                shutil.copy(path, folder)
            text = (folder / file).read_text()
            if old and text.count(old) != 1:
                sys.exit(f"{file}: {text.count(old)} places found for mutation {what!r}, expected one")
            (folder / file).write_text(text.replace(old, new) if old else text)
            found = [difference for difference in first_difference(folder, cases) if difference]
            unnoticed += not found if old else bool(found)
            print(f"{what:<52} {found[0] if found else 'no difference'}", flush=True)
    return int(unnoticed > 0)


if __name__ == "__main__":
    golden = sorted(path.parent for path in (ROOT / "tests" / "golden").glob("*/case.json"))
    sys.exit(main([Path(case).resolve() for case in sys.argv[1:]] or golden))

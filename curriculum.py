"""Phase 4: the curriculum policy, its rewards and advantages, the student's loss, and the REINFORCE loop."""
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from data_utils import derive_seed, seeded_generator, shuffled_batches
from meta_policy import Training, make_optimizer, mean_figures, true_class_probability, update
from metrics import Best
from models import init_linear

DISCOUNT = 0.99  # METHOD.md row 16


class Policy(nn.Module):
    """pi(a | state) = softmax(Linear(hidden, tasks)(state)) (METHOD.md "Model")."""

    def __init__(self, hidden_size, tasks, seed):
        super().__init__()
        self.linear = nn.Linear(hidden_size, tasks)
        init_linear(self.linear, seeded_generator(seed, "policy"))

    def forward(self, state):
        """state: (1, hidden) -> log pi(. | state): (tasks)."""
        return self.linear(state).log_softmax(-1).squeeze(0)


# --- equations -----------------------------------------------------------------------------------------------------------

def curriculum_state(state_predictor, pooler_weight):
    """state_predictor(pooler.dense.weight) of the student, (hidden, hidden) -> (1, hidden) (METHOD.md "Model")."""
    return state_predictor(pooler_weight).reshape(1, -1)


def student_loss(ce, p_student, p_meta_teacher):
    """L_S = CE(S_a(x), y) - mean p_S(y|x) + mean p_T'(y|h_S(x)) (METHOD.md phase 4); the last term is a constant for the
    student. ce: scalar; p_student, p_meta_teacher: (batch)."""
    return ce - p_student.mean() + p_meta_teacher.detach().mean()


def binary_reward(p_student, p_meta_teacher, quiz_size):
    """Number of examples with p_S(y) > p_T'(y), over the size of the quiz set (METHOD.md phase 4). Both: (batch) -> scalar."""
    return (p_student > p_meta_teacher).sum() / quiz_size


def real_reward(p_student, p_meta_teacher, quiz_size):
    """Sum of p_S(y) - p_T'(y), over the size of the quiz set (METHOD.md phase 4). Both: (batch) -> scalar."""
    return (p_student - p_meta_teacher).sum() / quiz_size


REWARDS = {"binary": binary_reward, "real": real_reward}


def discounted_returns(rewards, discount=DISCOUNT):
    """G_t = sum over k >= t of discount^(k - t) r_k (METHOD.md row 16). (steps) -> (steps)."""
    returns, following = torch.zeros_like(rewards), rewards.new_zeros(())
    for step in range(len(rewards) - 1, -1, -1):
        following = rewards[step] + discount * following
        returns[step] = following
    return returns


def advantages_of(rewards, discount=DISCOUNT):
    """G_t minus the episode's mean (METHOD.md row 16). (steps) -> (steps)."""
    returns = discounted_returns(rewards, discount)
    return returns - returns.mean()


def policy_loss(advantages, log_probabilities):
    """- mean over steps of advantage * log pi(action | state) (METHOD.md phase 4). Both: (steps) -> scalar."""
    return -(advantages * log_probabilities).mean()


def entropy(log_probabilities):
    """Of a distribution, in nats. (tasks) -> scalar."""
    return -(log_probabilities.exp() * log_probabilities).sum()


# --- the loop ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class CurriculumTraining(Training):
    """Settings of phase 4; epochs are its episodes, learning_rate the student's."""
    policy_learning_rate: float
    reward: str
    curriculum: str


class QuizDraws:
    """Quiz batches of every curriculum task, drawn afresh each episode (METHOD.md row 17): the k-th choice of a task gets
    the k-th batch of a shuffled pass, and a new pass when that is used up."""

    def __init__(self, quiz, batch_size, seed):
        self.quiz, self.batch_size, self.left = quiz, batch_size, {}
        self.generators = {name: seeded_generator(seed, "mpdistil", "quiz", name) for name in quiz}

    def new_episode(self):
        self.left = {}

    def next(self, name):
        """Indices into the quiz split of task `name`."""
        if not self.left.get(name):
            self.left[name] = shuffled_batches(len(self.quiz[name]), self.batch_size, self.generators[name])[::-1]
        return self.left[name].pop()


def train_curriculum(student, meta_teacher, policy, teacher_outputs, quiz, main_task, settings, selection, log):
    """Phase 4. quiz: {curriculum task: its quiz Split}, in the order of the policy's actions. Reads the frozen teacher's
    pooled outputs by example; leaves the best episode's weights in student and the last ones in policy. Returns the Best.

    A step: an action picks a task, one of its quiz batches trains the student, and the reward is taken on a quiz batch of
    the main task after that update (METHOD.md rows 12 to 15).
    """
    device, names, main_quiz = torch.device(settings.device), list(quiz), quiz[main_task]
    student_optimizer = make_optimizer(student, settings.learning_rate, settings.weight_decay)
    policy_optimizer = make_optimizer(policy, settings.policy_learning_rate, settings.weight_decay)
    draws = QuizDraws(quiz, settings.batch_size, settings.seed)
    order = seeded_generator(settings.seed, "mpdistil", "order")
    actions = seeded_generator(settings.seed, "mpdistil", "actions")
    torch.manual_seed(derive_seed(settings.seed, "mpdistil", "dropout"))
    meta_teacher.eval()
    with torch.no_grad():  # p_T'(y|x) of the main quiz: T' and its encoder no longer change
        logits = meta_teacher(main_task, teacher_outputs.outputs(main_quiz)[0])
        p_teacher = true_class_probability(logits, main_quiz.labels.to(device))
    uniform = torch.full((len(names),), 1 / len(names)).log().to(device)
    best = Best()

    def train_step(name):
        """Train the student on a quiz batch of the chosen task."""
        batch = quiz[name].batch(draws.next(name), device)
        student.train()
        logits, pooled = student(name, batch)
        ce, p_student = F.cross_entropy(logits, batch.labels), true_class_probability(logits, batch.labels)
        with torch.no_grad():
            p_meta_teacher = true_class_probability(meta_teacher(name, pooled), batch.labels)
        loss = student_loss(ce, p_student, p_meta_teacher)
        norm = update(loss, student, student_optimizer, settings.max_grad_norm)
        return {"loss": loss, "ce": ce, "p_student": p_student.mean(), "p_meta_teacher": p_meta_teacher.mean(), "gradient_norm": norm}

    @torch.no_grad()
    def reward_of(indices):
        """The student against the meta-teacher on a quiz batch of the main task."""
        batch = main_quiz.batch(indices, device)
        student.eval()
        p_student = true_class_probability(student(main_task, batch)[0], batch.labels)
        return REWARDS[settings.reward](p_student, p_teacher[torch.from_numpy(indices).to(device)], len(main_quiz))

    def choose():
        """(action, log pi(. | state)) as --curriculum says; only the policy's own choices carry a gradient."""
        if settings.curriculum != "policy":
            log_pi = uniform
        else:
            log_pi = policy(curriculum_state(student.state_predictor, student.encoder.pooler_weight).detach())
        if settings.curriculum == "main_task":
            return names.index(main_task), log_pi
        return int(torch.multinomial(log_pi.detach().exp().cpu(), 1, generator=actions)), log_pi

    with log.progress("mpdistil", settings.epochs) as bar:
        for episode in range(1, settings.epochs + 1):
            start, steps, chosen, log_pis, rewards = time.perf_counter(), [], [], [], []
            draws.new_episode()
            for indices in shuffled_batches(len(main_quiz), settings.batch_size, order):
                action, log_pi = choose()
                steps.append(train_step(names[action]))
                rewards.append(reward_of(indices))
                chosen.append(action)
                log_pis.append(log_pi)
            rewards, log_pis = torch.stack(rewards), torch.stack(log_pis)                       # (steps), (steps, tasks)
            advantages = advantages_of(rewards)
            loss = policy_loss(advantages, log_pis[range(len(chosen)), chosen])
            policy_figures = {"policy_loss": loss.detach()}
            if settings.curriculum == "policy":
                policy_figures["policy_gradient_norm"] = update(loss, policy, policy_optimizer, settings.max_grad_norm)
            where = f"phase mpdistil, episode {episode}"
            figures = mean_figures(steps, where, settings.learning_rate)
            figures |= mean_figures([policy_figures], where, settings.policy_learning_rate)
            scores = selection.scores()
            improved = best.offer(selection.main(scores), episode, scores, student)
            log_pis = log_pis.detach()
            reward = rewards.sum().item()
            bar.update()
            bar.set_postfix(loss=f"{figures['loss']:.4f}", reward=f"{reward:.3f}", score=f"{selection.main(scores):.4f}",
                            best=f"{best.score:.4f}")
            log.event(phase="mpdistil", episode=episode, **figures, reward=reward,
                      entropy=torch.stack([entropy(row) for row in log_pis]).mean().item(), learning_rate=settings.learning_rate,
                      scores=scores, best=improved, seconds=time.perf_counter() - start)
            log.trajectory(episode=episode, actions=[names[action] for action in chosen], rewards=rewards.tolist(),
                           advantages=advantages.tolist(), probabilities=log_pis.exp().tolist())
    best.restore(student)
    student.eval()
    return best

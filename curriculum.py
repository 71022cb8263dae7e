"""Phase 4: the curriculum policy, its rewards and advantages, the student's loss, and the REINFORCE loop."""
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data_utils import cut_order, seeded_generator
from meta_policy import (Training, TrainingError, apply_gradients, backward, check_weights, checked_means, detached, figure_table,
                         finish_best, is_finite, make_optimizer, mean_figures, true_class_probability, weights_are_finite)
from models import init_linear, predict, set_training
from resume import NoSaver, prefixed, random_tensors, restore_random, restore_training, training_tensors, under

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


def binary_reward(p_student, p_meta_teacher, quiz_size, dtype=None):
    """Number of examples with p_S(y) > p_T'(y), over the size of the quiz set (METHOD.md phase 4). Both: (batch) -> scalar
    of `dtype` (default: theirs)."""
    return (p_student > p_meta_teacher).to(dtype or p_student.dtype).sum() / quiz_size


def real_reward(p_student, p_meta_teacher, quiz_size, dtype=None):
    """Sum of p_S(y) - p_T'(y), over the size of the quiz set (METHOD.md phase 4). Both: (batch) -> scalar. dtype: the
    differences are rounded to it first (row 21)."""
    return (p_student - p_meta_teacher).to(dtype or p_student.dtype).sum() / quiz_size


REWARDS = {"binary": binary_reward, "real": real_reward}


def discounted_returns(rewards, discount=DISCOUNT, discount_from="each_step"):
    """(steps) -> (steps). From each step: G_t = sum over k >= t of discount^(k - t) r_k. From the episode's start: sum over
    k >= t of discount^k r_k (METHOD.md row 16)."""
    if discount_from == "episode_start":
        rewards = torch.stack([reward * discount ** step for step, reward in enumerate(rewards)])
        discount = 1.0
    returns, following = torch.zeros_like(rewards), rewards.new_zeros(())
    for step in range(len(rewards) - 1, -1, -1):  # not torch.cumsum, which adds float32 up in float64 on a CPU (row 21)
        following = rewards[step] + discount * following
        returns[step] = following
    return returns


def advantages_of(rewards, discount=DISCOUNT, discount_from="each_step"):
    """Discounted returns minus the episode's mean (METHOD.md row 16). (steps) -> (steps)."""
    returns = discounted_returns(rewards, discount, discount_from)
    if discount_from == "episode_start":  # in NumPy's order of adding: float32 rounds another way in torch's (row 21)
        return returns - torch.from_numpy(np.asarray(returns.cpu().numpy().mean())).to(returns)
    return returns - returns.mean()


def policy_loss(advantages, log_probabilities):
    """- mean over steps of advantage * log pi(action | state) (METHOD.md phase 4). Both: (steps) -> scalar."""
    return -(advantages * log_probabilities).mean()


def entropy(log_probabilities):
    """Of a distribution, in nats. (tasks) -> scalar."""
    return torch.special.entr(log_probabilities.exp()).sum()


# --- the loop ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class CurriculumTraining(Training):
    """Settings of phase 4; epochs are its episodes, learning_rate the student's. From student_update on they are the protocol's."""
    policy_learning_rate: float
    reward: str
    curriculum: str
    student_update: str
    reward_weights: str
    state_gradient: str
    credit: str
    discount_from: str
    quiz_batches: str
    reward_precision: str


class QuizBatches:
    """Quiz batches of every curriculum task (METHOD.md row 17). "redrawn": the k-th choice of a task in an episode gets the
    k-th batch of a shuffled pass, a new pass when that is used up. "fixed": batches are composed once and one of them is
    picked at each choice."""

    def __init__(self, quiz, batch_size, kind, draws):
        self.quiz, self.batch_size, self.draws, self.left = quiz, batch_size, draws, {}
        self.fixed = {name: self.a_pass(name) for name in quiz} if kind == "fixed" else None

    def a_pass(self, name):
        return self.draws.batches(len(self.quiz[name]), self.batch_size, "quiz", name)

    def new_episode(self):
        self.left = {}

    def state(self):
        """What load_state makes the same again from."""
        return {name: {task: [batch.tolist() for batch in batches] for task, batches in (kept or {}).items()}
                for name, kept in (("left", self.left), ("fixed", self.fixed))}

    def load_state(self, values):
        """Take over what state gave."""
        def arrays(kept):
            return {task: [np.asarray(batch, dtype=np.int64) for batch in batches] for task, batches in kept.items()}
        self.left, self.fixed = arrays(values["left"]), arrays(values["fixed"]) or None

    def next(self, name):
        """Indices into the quiz split of task `name`."""
        if self.fixed:
            return self.fixed[name][self.draws.pick(len(self.fixed[name]), "pick")]
        if not self.left.get(name):
            self.left[name] = self.a_pass(name)[::-1]
        return self.left[name].pop()


class Curriculum:
    """Phase 4's moving parts: what one step of an episode does to the student, and what it earns."""

    def __init__(self, student, meta_teacher, policy, teacher_outputs, quiz, main_task, settings, draws):
        self.student, self.meta_teacher, self.policy, self.settings, self.draws = student, meta_teacher.eval(), policy, settings, draws
        self.quiz, self.main_task, self.main_quiz, self.names = quiz, main_task, quiz[main_task], list(quiz)
        self.device = torch.device(settings.device)
        # what phase 2 left (row 20: zeros) would move weights here, but only where phase 2 was not found finished
        student.zero_grad(set_to_none=True)
        self.student_optimizer = make_optimizer(student, settings.learning_rate, settings)
        self.policy_optimizer = make_optimizer(policy, settings.policy_learning_rate, settings)
        self.batches = QuizBatches(quiz, settings.batch_size, settings.quiz_batches, draws)
        self.labels = self.main_quiz.labels.to(self.device)
        with torch.no_grad():  # p_T'(y|x) of the main quiz: T' and its encoder no longer change
            logits = meta_teacher(main_task, teacher_outputs.outputs(self.main_quiz)[0])
            self.p_teacher = true_class_probability(logits, self.labels)
        self.episode, self.order = 0, None                  # episodes finished; the main task's batches in the one under way
        self.p_before, self.begun, self.state_now = None, {}, None  # what that one fixed at its start
        self.upcoming, self.seconds = None, 0.0
        self.used, self.credited, self.trained, self.states, self.rewards, self.figures = [], [], [], [], [], []

    def prepare_reward(self):
        """Put the student into the mode in which rewards are taken: no dropout, but in the released code the heads' is on
        until the student is first evaluated, as in training (METHOD.md row 8)."""
        if self.settings.dropout == "training":
            self.student.eval()
        else:
            set_training(self.student, self.settings.dropout, self.evaluated)

    @property
    def evaluated(self):
        """Whether phase 4 has evaluated the student yet."""
        return self.episode > 0

    def begin_episode(self):
        """What an episode fixes at its start: its order; and the state and the rewards' weights where the protocol says so."""
        self.batches.new_episode()
        self.used, self.credited, self.trained, self.states, self.rewards, self.figures = [], [], [], [], [], []
        if self.settings.state_gradient == "attached":
            predictor = self.student.state_predictor
            self.fix_state({"weight": predictor.weight, "bias": predictor.bias, "pooler": self.student.encoder.pooler_weight})
        if self.settings.reward_weights == "before_episode":
            logits = predict(self.student, self.main_quiz, self.settings.eval_batch_size, self.device, self.prepare_reward).to(self.device)
            self.p_before = true_class_probability(logits, self.labels)
        self.upcoming = self.first_action() if self.settings.credit == "next_step" else None
        self.order = self.draws.batches(len(self.main_quiz), self.settings.batch_size, "order")

    def fix_state(self, values):
        """The state of the whole episode, from copies with these values, so that steps within the episode may change the weights
        before the policy loss goes backward to them."""
        predictor = self.student.state_predictor
        copies = {"weight": predictor.weight.clone(), "bias": predictor.bias.clone(), "pooler": self.student.encoder.pooler_weight.clone()}
        for name, value in values.items():
            copies[name].data.copy_(value.detach())
        self.begun = {name: copy.detach() for name, copy in copies.items()}
        self.state_now = curriculum_state(lambda x: F.linear(x, copies["weight"], copies["bias"]), copies["pooler"])

    def state_of_student(self):
        """The state that the policy sees at this step: (1, hidden)."""
        if self.settings.state_gradient == "attached":
            return self.state_now
        return curriculum_state(self.student.state_predictor, self.student.encoder.pooler_weight).detach()

    def log_pi(self, state):
        """log pi(. | state): (tasks). Without a policy: uniform, or all on the main task."""
        if self.settings.curriculum == "uniform":
            return torch.full((len(self.names),), 1 / len(self.names), device=self.device).log()
        if self.settings.curriculum == "main_task":
            return torch.tensor([float(name == self.main_task) for name in self.names], device=self.device).log()
        return self.policy(state)

    def choose(self):
        """An action as --curriculum says, from the state as it is now, which is kept for the policy's loss."""
        self.states.append(self.state_of_student() if self.settings.curriculum == "policy" else torch.zeros(1, 0))
        if self.settings.curriculum == "main_task":
            return self.names.index(self.main_task)
        with torch.no_grad():
            return self.draws.action(self.log_pi(self.states[-1]).exp())

    def first_action(self):
        """The episode's first action where actions act one step later: by chance alone (METHOD.md row 15)."""
        if self.settings.curriculum == "main_task":
            return self.names.index(self.main_task)
        return self.draws.pick(len(self.names), "first_action")

    def train_student(self, name):
        """Train the student on a quiz batch of the chosen task (METHOD.md row 12). Returns the step's figures."""
        indices = self.batches.next(name)
        batch = self.quiz[name].batch(indices, self.device)
        set_training(self.student, self.settings.dropout, self.evaluated)
        logits, pooled = self.student(name, batch)
        ce, p_student = F.cross_entropy(logits, batch.labels), true_class_probability(logits, batch.labels)
        with torch.no_grad():
            p_meta_teacher = true_class_probability(self.meta_teacher(name, pooled), batch.labels)
        loss = student_loss(ce, p_student, p_meta_teacher)
        figures = {"loss": loss, "ce": ce, "p_student": p_student.mean(), "p_meta_teacher": p_meta_teacher.mean(),
                   "gradient_norm": backward(loss, self.student, self.settings.max_grad_norm)}
        self.trained.append(indices.tolist())
        if self.settings.student_update == "each_step" and is_finite(figures):
            apply_gradients(self.student_optimizer, self.settings)
        return figures

    @torch.no_grad()
    def reward(self, indices):
        """The student against the meta-teacher on a quiz batch of the main task (METHOD.md rows 13 and 21)."""
        places = torch.from_numpy(indices).to(self.device)
        if self.settings.reward_weights == "before_episode":
            p_student = self.p_before[places]
        else:
            self.prepare_reward()
            batch = self.main_quiz.batch(indices, self.device)
            p_student = true_class_probability(self.student(self.main_task, batch)[0], batch.labels)
        dtype = torch.float32 if self.settings.reward_precision == "float32" else None
        return REWARDS[self.settings.reward](p_student, self.p_teacher[places], len(self.main_quiz), dtype)

    def take_step(self):
        """One step. An action picks a task, one of its quiz batches trains the student, and the reward is taken on a quiz batch
        of the main task. credit "same_step": the action is drawn, used and credited in one step; "next_step": the action drawn
        at a step is credited with that step's reward and used at the next one (METHOD.md row 15)."""
        if self.settings.credit == "same_step":
            self.credited.append(self.choose())
            self.used.append(self.credited[-1])
            self.figures.append(detached(self.train_student(self.names[self.used[-1]])))
        else:
            self.used.append(self.upcoming)
            self.figures.append(detached(self.train_student(self.names[self.used[-1]])))
            self.upcoming = self.choose()
            self.credited.append(self.upcoming)
        self.rewards.append(self.reward(self.order[len(self.rewards)]))

    def end_episode(self):
        """Update the policy, and the student with what is still waiting for it. Returns advantages (steps), log pi (steps,
        tasks) and the policy's figures."""
        log_pis = torch.stack([self.log_pi(state) for state in self.states])
        advantages = advantages_of(torch.stack(self.rewards), discount_from=self.settings.discount_from)
        loss = policy_loss(advantages, log_pis[range(len(self.credited)), self.credited])
        figures = {"policy_loss": loss.detach()}
        if self.settings.curriculum == "policy":
            figures["policy_gradient_norm"] = backward(loss, self.policy, self.settings.max_grad_norm)
            apply_gradients(self.policy_optimizer, self.settings)
        if self.settings.student_update == "each_episode" or self.settings.state_gradient == "attached":
            apply_gradients(self.student_optimizer, self.settings)
        self.episode, self.order, self.seconds = self.episode + 1, None, 0.0
        return advantages, log_pis.detach(), figures

    def checked(self):
        """Mean figures of the episode so far; TrainingError if one of them, or a weight of the student after its last step, is not
        finite."""
        def examples(step):
            return self.quiz[self.names[self.used[step]]], self.trained[step]

        where, rate = f"phase mpdistil, episode {self.episode + 1}", self.settings.learning_rate
        means = checked_means(self.figures, where, rate, examples)
        check_weights(self.student, len(self.figures) - 1, where, rate, examples)
        return means

    def check_update(self):
        """TrainingError if the update at the end of the episode left weights of student or policy that are not finite."""
        for name, module in (("student", self.student), ("policy", self.policy)):
            if not weights_are_finite(module):
                rates = f"{self.settings.learning_rate:g} (student), {self.settings.policy_learning_rate:g} (policy)"
                raise TrainingError(f"phase mpdistil, episode {self.episode}: weights of the {name} are not finite after the update at its "
                                    f"end, at learning rates {rates}; the last saved state, from before it, is kept: lower them and use "
                                    "another --output_dir")

    def state(self):
        """(tensors, values) from which load_state goes on at the same step. Only of finite figures and weights."""
        tensors = {**prefixed("student", training_tensors(self.student, self.student_optimizer)),
                   **prefixed("policy", training_tensors(self.policy, self.policy_optimizer)), **prefixed("draws", self.draws.state())}
        values = {"episode": self.episode, "batches": self.batches.state(), "seconds": self.seconds}
        if self.order is not None:
            self.checked()
            tensors |= {"order": torch.from_numpy(np.concatenate(self.order)), "figures": figure_table(self.figures),
                        "rewards": torch.stack(self.rewards), **prefixed("begun", self.begun)}
            if self.p_before is not None:
                tensors["p_before"] = self.p_before
            if self.settings.state_gradient == "detached":
                tensors["states"] = torch.stack(self.states)
            values |= {"used": self.used, "credited": self.credited, "upcoming": self.upcoming, "trained": self.trained,
                       "figures": list(self.figures[0])}
        return tensors, values

    def load_state(self, tensors, values):
        """Take over what state gave."""
        restore_training(self.student, self.student_optimizer, under("student", tensors))
        restore_training(self.policy, self.policy_optimizer, under("policy", tensors))
        self.draws.load_state(under("draws", tensors))
        self.episode, self.seconds = values["episode"], values["seconds"]
        self.batches.load_state(values["batches"])
        if "order" in tensors:
            self.order = cut_order(tensors["order"].numpy(), self.settings.batch_size)
            self.figures = [dict(zip(values["figures"], row)) for row in tensors["figures"].to(self.device)]
            self.rewards = list(tensors["rewards"].to(self.device))
            self.p_before = tensors["p_before"].to(self.device) if "p_before" in tensors else None
            self.used, self.credited, self.upcoming = values["used"], values["credited"], values["upcoming"]
            self.trained = values["trained"]
            if self.settings.state_gradient == "attached":
                self.fix_state({name: value.to(self.device) for name, value in under("begun", tensors).items()})
                self.states = [self.state_now] * len(self.credited)
            else:
                self.states = [state.to(self.device).clone() for state in tensors["states"]]


def train_curriculum(student, meta_teacher, policy, teacher_outputs, quiz, main_task, settings, selection, draws, log, saver=None):
    """Phase 4. quiz: {curriculum task: its quiz Split}, in the order of the policy's actions. Reads the frozen teacher's
    pooled outputs by example; leaves the best episode's weights in student and the last ones in policy. Goes on from the
    saver's state, if there is one. Returns the Best.
    """
    parts = Curriculum(student, meta_teacher, policy, teacher_outputs, quiz, main_task, settings, draws)
    best, saver = selection.best(), saver or NoSaver()

    def collect():
        (tensors, values), (best_tensors, best_values) = parts.state(), best.state()
        return ({**prefixed("parts", tensors), **prefixed("best", best_tensors), **random_tensors()},
                {"parts": values, "best": best_values, "log": log.position()})

    saved = saver.load()
    if saved:
        tensors, values = saved
        parts.load_state(under("parts", tensors), values["parts"])
        best.load_state(under("best", tensors), values["best"])
        restore_random(tensors)
    with log.progress("mpdistil", settings.epochs) as bar:
        if saved:
            bar.update(parts.episode)
        while parts.episode < settings.epochs:
            start, episode = time.perf_counter() - parts.seconds, parts.episode + 1
            if parts.order is None:
                parts.begin_episode()
            while len(parts.rewards) < len(parts.order):
                parts.take_step()
                if not is_finite(parts.figures[-1]):
                    break
                parts.seconds = time.perf_counter() - start
                saver.consider(collect)
            figures = parts.checked()
            advantages, log_pis, policy_figures = parts.end_episode()
            parts.check_update()
            figures |= mean_figures([policy_figures], f"phase mpdistil, episode {episode}, policy", settings.policy_learning_rate)
            scores = selection.scores()
            chosen, rewards = selection.main(scores), torch.stack(parts.rewards)
            improved = best.offer(chosen, episode, scores, student, selection.answers)
            reward = rewards.sum().item()
            bar.update()
            bar.set_postfix(loss=f"{figures['loss']:.4f}", reward=f"{reward:.3f}", score=f"{chosen:.4f}", best=f"{best.score:.4f}")
            log.event(phase="mpdistil", episode=episode, **figures, reward=reward,
                      entropy=torch.stack([entropy(row) for row in log_pis]).mean().item(), learning_rate=settings.learning_rate,
                      scores=scores, best=improved, seconds=time.perf_counter() - start)
            log.trajectory(episode=episode, actions=[parts.names[action] for action in parts.used],
                           credited=[parts.names[action] for action in parts.credited], rewards=rewards.tolist(),
                           advantages=advantages.tolist(), probabilities=log_pis.exp().tolist())
            saver.consider(collect, at_end=True)
    finish_best(best, student, "mpdistil")
    return best

"""Phase 4: the curriculum policy, its rewards and advantages, the student's loss, and the REINFORCE loop."""
import functools
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bookkeeping.errors import TrainingError
from bookkeeping.states import GlobalGenerators, Meter, NoSaver, Trained, weights_are_finite
from data_utils import fetch, seeded_generator, to_device
from meta_policy import Training, apply_gradients, backward, finish_best, make_optimizer
from models import init_linear, predict, set_training

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


# --- equations ----------------------------------------------------------------------------------------------

def curriculum_state(state_predictor, pooler_weight):
    """state_predictor(pooler.dense.weight) of the student, (hidden, hidden) -> (1, hidden) (METHOD.md
    "Model")."""
    return state_predictor(pooler_weight).reshape(1, -1)


def student_loss(ce, p_student, p_meta_teacher):
    """L_S = CE(S_a(x), y) - mean p_S(y|x) + mean p_T'(y|h_S(x)) (METHOD.md phase 4). ce: scalar; p_student,
    p_meta_teacher: (batch). Whether the last term has a gradient is row 26."""
    return ce - p_student.mean() + p_meta_teacher.mean()


def binary_reward(p_student, p_meta_teacher, quiz_size, dtype=None):
    """Number of examples with p_S(y) > p_T'(y), over the size of the quiz set (METHOD.md phase 4). Both:
    (batch) -> scalar of `dtype` (default: theirs)."""
    return (p_student > p_meta_teacher).to(dtype or p_student.dtype).sum() / quiz_size


def real_reward(p_student, p_meta_teacher, quiz_size, dtype=None):
    """Sum of p_S(y) - p_T'(y), over the size of the quiz set (METHOD.md phase 4). Both: (batch) -> scalar.
    dtype: the differences are rounded to it first (row 21)."""
    return (p_student - p_meta_teacher).to(dtype or p_student.dtype).sum() / quiz_size


REWARDS = {"binary": binary_reward, "real": real_reward}


def discounted_returns(rewards, discount=DISCOUNT, discount_from="each_step"):
    """(steps) -> (steps). From each step: G_t = sum over k >= t of discount^(k - t) r_k. From the episode's
    start: sum over k >= t of discount^k r_k (METHOD.md row 16)."""
    if discount_from == "episode_start":
        rewards = torch.stack([reward * discount ** step for step, reward in enumerate(rewards)])
        discount = 1.0
    returns, following = torch.zeros_like(rewards), rewards.new_zeros(())
    # not torch.cumsum, which adds float32 up in float64 on a CPU (row 21)
    for step in range(len(rewards) - 1, -1, -1):
        following = rewards[step] + discount * following
        returns[step] = following
    return returns


def advantages_of(rewards, discount=DISCOUNT, discount_from="each_step"):
    """Discounted returns minus the episode's mean (METHOD.md row 16). (steps) -> (steps)."""
    returns = discounted_returns(rewards, discount, discount_from)
    # in NumPy's order of adding: float32 rounds another way in torch's (row 21)
    if discount_from == "episode_start":
        return returns - torch.from_numpy(np.asarray(returns.cpu().numpy().mean())).to(returns)
    return returns - returns.mean()


def step_advantages(returns, baseline):
    """Returns minus a baseline that depends on the step's position alone: the running mean of the returns at
    that position over the episodes before (METHOD.md row 27). Such a baseline depends on no action of the
    episode, so that the gradient's expectation stays what it is (Sutton and Barto, 2nd edition, section
    13.4); it takes off what a return owes to the number of steps that are left. returns: (steps); baseline:
    (steps), or None in the first episode, which has nothing to be compared with: 0. -> (steps)."""
    return torch.zeros_like(returns) if baseline is None else returns - baseline


def policy_loss(advantages, log_probabilities):
    """- mean over steps of advantage * log pi(action | state) (METHOD.md phase 4). Both: (steps) ->
    scalar."""
    return -(advantages * log_probabilities).mean()


def entropy(log_probabilities):
    """Of a distribution, in nats. (tasks) -> scalar."""
    return torch.special.entr(log_probabilities.exp()).sum()


# --- what the loop works with -------------------------------------------------------------------------------

@dataclass(frozen=True)
class CurriculumTraining(Training):
    """Settings of phase 4; epochs are its episodes, learning_rate the student's. From student_update on they
    are the protocol's."""
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
    meta_term: str
    advantage: str
    reward_of: str


@dataclass
class Episode:
    """The episode under way, all that its rest and its end depend on.

    number: from 1; order: the main task's quiz batches, a step each, None before it begins. Of the steps so
    far: used, the actions whose task trained the student; credited, those that the step's reward is credited
    to; states (1, hidden) that they were drawn from; rewards. upcoming: the action of the next step, where it
    is drawn a step before. What the rewards compare, of the main quiz (examples): p_teacher, p_T'(y|x); and
    p_before, p_S(y|x), where they are of the weights from before the episode. begun: what the state of the
    whole episode is read from, where it is fixed at its start. gradient_norm: of what was applied at its end.
    """
    number: int = 1
    order: list | None = None
    used: list = field(default_factory=list)
    credited: list = field(default_factory=list)
    states: list = field(default_factory=list)
    rewards: list = field(default_factory=list)
    upcoming: int | None = None
    p_teacher: torch.Tensor | None = None
    p_before: torch.Tensor | None = None
    begun: dict | None = None
    gradient_norm: torch.Tensor | None = None
    seconds: float = 0.0


@dataclass
class StepBaseline:
    """Running mean of the returns at each step of an episode, (steps), over the episodes so far."""
    episodes: int = 0
    mean: torch.Tensor | None = None

    def include(self, returns):
        self.episodes += 1
        before = torch.zeros_like(returns) if self.mean is None else self.mean
        self.mean = before + (returns - before) / self.episodes


class QuizBatches:
    """Quiz batches of every curriculum task (METHOD.md row 17). "redrawn": the k-th choice of a task in an
    episode gets the k-th batch of a shuffled pass, a new pass when that is used up. "fixed": batches are
    composed once and one of them is picked at each choice."""

    def __init__(self, quiz, batch_size, kind, streams):
        self.quiz, self.batch_size, self.streams, self.left = quiz, batch_size, streams, {}
        self.fixed = {name: self.a_pass(name) for name in quiz} if kind == "fixed" else None

    def a_pass(self, name):
        return self.streams.batches(len(self.quiz[name]), self.batch_size, "quiz", name)

    def new_episode(self):
        self.left = {}

    def next(self, name):
        """Indices into the quiz split of task `name`."""
        if self.fixed:
            return self.fixed[name][self.streams.pick(len(self.fixed[name]), "pick")]
        if not self.left.get(name):
            self.left[name] = self.a_pass(name)[::-1]
        return self.left[name].pop()

    def state_dict(self):
        return {"left": self.left, "fixed": self.fixed}

    def load_state_dict(self, state):
        self.left, self.fixed = state["left"], state["fixed"]


def constant_policy(probabilities):
    """A function state -> log pi(. | state), the same whatever the state. probabilities: (tasks)."""
    return lambda state: probabilities.log()


def values_of_state(student):
    """Copies of the weights that the curriculum's state is read from."""
    predictor = student.state_predictor
    weights = {"weight": predictor.weight, "bias": predictor.bias, "pooler": student.encoder.pooler_weight}
    return {name: value.detach().clone() for name, value in weights.items()}


def fixed_state(student, values):
    """The state of a whole episode, (1, hidden), with a gradient to the student (METHOD.md row 14). It is
    read from copies that hold `values`, so that steps within the episode may change the weights before the
    policy loss goes backward to them."""
    predictor = student.state_predictor
    copies = {"weight": predictor.weight.clone(), "bias": predictor.bias.clone(),
              "pooler": student.encoder.pooler_weight.clone()}
    for name, value in values.items():
        copies[name].data.copy_(value)
    return curriculum_state(lambda x: F.linear(x, copies["weight"], copies["bias"]), copies["pooler"])


def shortest(tensor):
    """A tensor's values as a list of the shortest decimals that give them back. (1, n) -> n numbers."""
    return tensor.cpu().numpy().ravel().astype(str).astype(float).tolist()


def gradient_norm(module):
    """L2 norm of all gradients that wait for a step."""
    gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
    return torch.stack([gradient.norm() for gradient in gradients]).norm()


def set_rewarding(student, dropout, evaluated):
    """No dropout while rewards are taken; in the released code the heads' is on until the student is first
    evaluated, as in training (METHOD.md row 8)."""
    if dropout == "training":
        student.eval()
    else:
        set_training(student, dropout, evaluated)


def check_update(number, figures, updated):
    """TrainingError if the update at the end of episode `number` has figures, or left weights, that are not
    finite. updated: {name: Trained}."""
    wrong = [f"{name} is {value.item()}" for name, value in figures.items() if not value.isfinite()]
    wrong += [f"weights of the {name} are not finite" for name, part in updated.items()
              if not weights_are_finite(part.module)]
    if wrong:
        rates = ", ".join(f"{part.optimizer.param_groups[0]['lr']:g} ({name})"
                          for name, part in updated.items())
        raise TrainingError(f"phase mpdistil, episode {number}: {wrong[0]} after the update at its end, at "
                            f"learning rates {rates}; the last saved state, from before it, is kept: lower "
                            "them and use another --output_dir")


# --- the loop -----------------------------------------------------------------------------------------------

def train_curriculum(student, meta_teacher, policy, teacher_outputs, quiz, main_task, settings, evaluator,
                     streams, log, saver=None):
    """Phase 4. quiz: {curriculum task: its quiz Split}, in the order of the policy's actions. Reads the
    frozen teacher's pooled outputs by example; leaves the best episode's weights in student and the last ones
    in policy. Goes on from the saver's state, if there is one. Returns the Best.

    A step: an action picks a task, one of its quiz batches trains the student, and the reward is taken on a
    quiz batch of the main task. credit "same_step": the action is drawn, used and credited in one step;
    "next_step": the action drawn at a step is credited with that step's reward and used at the next one
    (METHOD.md row 15).
    """
    device, names, saver = torch.device(settings.device), list(quiz), saver or NoSaver()
    main_quiz, main_rules, main_action = quiz[main_task], quiz[main_task].task.rules, names.index(main_task)
    log_pi = {"policy": policy,
              "uniform": constant_policy(torch.full((len(names),), 1 / len(names), device=device)),
              "main_task": constant_policy(torch.eye(len(names), device=device)[main_action])
              }[settings.curriculum]
    labels = main_quiz.labels.to(device)
    with torch.no_grad():  # p_T'(y|x) of the main quiz: T' and its encoder no longer change
        outputs = meta_teacher.eval()(main_task, teacher_outputs.outputs(main_quiz)[0])
        p_teacher = main_rules.agreement(outputs, labels)
    # what phase 2 left (row 20: zeros) would move weights here, but only where phase 2 was not found finished
    student.zero_grad(set_to_none=True)
    learner = Trained(student, make_optimizer(student, settings.learning_rate, settings))
    decider = Trained(policy, make_optimizer(policy, settings.policy_learning_rate, settings))
    batches = QuizBatches(quiz, settings.batch_size, settings.quiz_batches, streams)
    best, episode, meter = evaluator.best(), Episode(p_teacher=p_teacher), Meter(student)
    baseline = StepBaseline()
    state = {"student": learner, "policy": decider, "streams": streams, "random": GlobalGenerators(),
             "batches": batches, "best": best, "episode": episode, "baseline": baseline, "meter": meter,
             "log": log}
    saver.restore(state, device)

    def p_student_of(indices):
        """p_S(y|x) of a batch of the main quiz, by the weights as they are now, for the reward."""
        rewarding()
        batch = main_quiz.batch(indices, device)
        with torch.no_grad():
            return main_rules.agreement(student(main_task, batch)[0], batch.labels)

    def look():
        """What an action is drawn from: the curriculum's state as it is now, and the policy's probabilities,
        fetched from the device."""
        seen = torch.zeros(1, 0)
        if settings.curriculum == "policy":
            seen = state_of_episode if settings.state_gradient == "attached" else curriculum_state(
                student.state_predictor, student.encoder.pooler_weight).detach()
        if settings.curriculum == "main_task":
            return seen, None
        with torch.no_grad():
            return seen.detach(), fetch(log_pi(seen).exp())

    def choose(looked):
        """An action; the state that it is drawn from is kept for the policy's loss."""
        seen, probabilities = looked
        episode.states.append(seen)
        if settings.curriculum == "main_task":
            return main_action
        chances = probabilities()
        if not chances.isfinite().all():
            meter.means()  # says where; on a GPU nobody has asked before
        return streams.action(chances)

    with log.progress("mpdistil", settings.epochs) as bar:
        bar.update(episode.number - 1)
        while episode.number <= settings.epochs:
            start, evaluated = time.perf_counter() - episode.seconds, episode.number > 1
            rewarding = functools.partial(set_rewarding, student, settings.dropout, evaluated)
            if episode.order is None:  # what an episode fixes at its start
                batches.new_episode()
                episode.used, episode.credited, episode.states, episode.rewards = [], [], [], []
                if settings.state_gradient == "attached":
                    episode.begun = values_of_state(student)
                if settings.reward_weights == "before_episode":
                    outputs = predict(student, main_quiz, settings.eval_batch_size, device, rewarding)
                    episode.p_before = main_rules.agreement(outputs.to(device), labels)
                if settings.credit == "next_step":  # the first action: by chance alone, and never credited
                    episode.upcoming = main_action if settings.curriculum == "main_task" else streams.pick(
                        len(names), "first_action")
                episode.order = streams.batches(len(main_quiz), settings.batch_size, "order")
                meter.begin(f"phase mpdistil, episode {episode.number}", settings.learning_rate)
            if settings.state_gradient == "attached":
                state_of_episode = fixed_state(student, episode.begun)
            looked = None

            for indices in episode.order[len(episode.rewards):]:
                if settings.credit == "same_step":
                    episode.credited.append(choose(looked or look()))
                    episode.used.append(episode.credited[-1])
                else:
                    episode.used.append(episode.upcoming)

                p_before = p_student_of(indices) if settings.reward_of == "improvement" else None

                # the student learns from a quiz batch of the chosen task (row 12)
                name = names[episode.used[-1]]
                taken, rules = batches.next(name), quiz[name].task.rules
                batch = quiz[name].batch(taken, device)
                set_training(student, settings.dropout, evaluated)
                outputs, pooled = student(name, batch)
                ce, p_student = rules.loss(outputs, batch.labels), rules.agreement(outputs, batch.labels)
                with torch.set_grad_enabled(settings.meta_term == "attached"):  # row 26
                    p_meta_teacher = rules.agreement(meta_teacher(name, pooled), batch.labels)
                loss = student_loss(ce, p_student, p_meta_teacher)
                figures = {"loss": loss, "ce": ce, "p_student": p_student.mean(),
                           "p_meta_teacher": p_meta_teacher.mean(),
                           "gradient_norm": backward(loss, student, settings.max_grad_norm)}
                finite = meter.add(figures, quiz[name], taken)
                if settings.student_update == "each_step" and finite:
                    apply_gradients(learner.optimizer, settings)

                looked = look()  # here, so that the next action arrives while the reward is computed
                if settings.credit == "next_step":
                    episode.upcoming = choose(looked)
                    episode.credited.append(episode.upcoming)

                # the student against the meta-teacher on a quiz batch of the main task (rows 13 and 21)
                places = to_device(indices, device)
                if settings.reward_weights == "before_episode":
                    p_student = episode.p_before[places]
                else:
                    p_student = p_student_of(indices)
                dtype = torch.float32 if settings.reward_precision == "float32" else None
                reward_of = functools.partial(REWARDS[settings.reward], quiz_size=len(main_quiz), dtype=dtype)
                reward = reward_of(p_student, episode.p_teacher[places])
                if p_before is not None:  # row 28: what the step changed
                    reward = reward - reward_of(p_before, episode.p_teacher[places])
                episode.rewards.append(reward)
                if not finite:
                    break  # meter.means() says what and where
                episode.seconds = time.perf_counter() - start
                saver.consider(state)

            # the policy learns from the episode, and the student from what is still waiting for it
            figures, rewards = meter.means(), torch.stack(episode.rewards)
            states = episode.states
            if settings.state_gradient == "attached" and settings.curriculum == "policy":
                states = [state_of_episode] * len(states)
            log_pis = torch.stack([log_pi(seen) for seen in states])
            if settings.advantage == "episode_mean":
                advantages = advantages_of(rewards, discount_from=settings.discount_from)
            else:
                returns = discounted_returns(rewards, discount_from=settings.discount_from)
                advantages = step_advantages(returns, baseline.mean)
                baseline.include(returns)
            loss = policy_loss(advantages, log_pis[range(len(episode.credited)), episode.credited])
            updates = {"policy_loss": loss.detach()}
            if settings.curriculum == "policy":
                updates["policy_gradient_norm"] = backward(loss, policy, settings.max_grad_norm)
                apply_gradients(decider.optimizer, settings)
            if settings.student_update == "each_episode" or settings.state_gradient == "attached":
                episode.gradient_norm = gradient_norm(student)
                apply_gradients(learner.optimizer, settings)
            check_update(episode.number, updates, {"student": learner, "policy": decider})

            scores, log_pis, reward = evaluator.scores(), log_pis.detach(), rewards.sum().item()
            score = evaluator.main(scores)
            improved = best.offer(score, episode.number, scores, student, evaluator.answers)
            bar.update()
            bar.set_postfix(reward=f"{reward:.3f}", score=f"{score:.4f}", best=f"{best.score:.4f}")
            log.event(phase="mpdistil", episode=episode.number, **figures,
                      **{name: value.item() for name, value in updates.items()}, reward=reward,
                      entropy=torch.stack([entropy(row) for row in log_pis]).mean().item(),
                      learning_rate=settings.learning_rate, scores=scores, best=improved,
                      seconds=time.perf_counter() - start)
            seen = {"state": shortest(episode.states[0])} if settings.curriculum == "policy" else {}
            log.trajectory(episode=episode.number, actions=[names[action] for action in episode.used],
                           credited=[names[action] for action in episode.credited], rewards=rewards.tolist(),
                           advantages=advantages.tolist(), probabilities=log_pis.exp().tolist(), **seen)
            episode.number, episode.order, episode.seconds = episode.number + 1, None, 0.0
            saver.consider(state, at_end=True)
    finish_best(best, student, "mpdistil")
    return best

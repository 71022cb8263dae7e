"""What a curriculum policy learnt: pure functions of a run's trajectories, and the replay of its updates.

Shapes: an episode has `steps` steps; advantages (episodes, steps); credited (episodes, steps), the action
that each step's reward is credited to, by number; states (episodes, hidden), the curriculum's state at an
episode's first step, which hardly moves within the episode; log_pis (episodes, tasks), log pi at that state.
"""
from types import SimpleNamespace

import numpy as np
import torch
from scipy.stats import t

from curriculum import Policy, policy_loss
from meta_policy import apply_gradients, backward, make_optimizer

BLOCK = 20  # episodes


def movement(first, last):
    """Root mean square over tasks of what the logits moved. Logits are known up to a constant, so that both
    are centred. (tasks), (tasks) log probabilities -> float."""
    moved = (np.asarray(last) - np.mean(last)) - (np.asarray(first) - np.mean(first))
    return float(np.sqrt(np.mean(moved ** 2)))


def replay(states, advantages, tasks, settings, credited=None, generator=None):
    """Train the run's policy again, from its first weights, on its own states and advantages.

    credited: the run's actions, so that the replay is the run's own training; None: at every step an action
    is drawn from the replay's own policy, so that the advantages say nothing of actions. settings: seed,
    policy_learning_rate, weight_decay, weight_decay_on, zero_grad, max_grad_norm. Returns log_pis
    (episodes + 1, tasks): before each episode and after the last one, at that episode's state.
    """
    states = torch.as_tensor(np.asarray(states), dtype=torch.float32)
    advantages = torch.as_tensor(np.asarray(advantages), dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):  # its weights are drawn from the seed, torch's own draw is undone
        policy = Policy(states.shape[1], tasks, settings.seed)
    optimizer = make_optimizer(policy, settings.policy_learning_rate, settings)
    found = []
    for number, state in enumerate(states):
        log_pi = policy(state[None])
        found.append(log_pi.detach())
        if credited is None:
            actions = torch.multinomial(log_pi.detach().exp(), advantages.shape[1], replacement=True,
                                        generator=generator)
        else:
            actions = torch.as_tensor(credited[number])
        backward(policy_loss(advantages[number], log_pi[actions]), policy, settings.max_grad_norm)
        apply_gradients(optimizer, settings)
    found.append(policy(states[-1:]).detach())
    return torch.stack(found).numpy()


def replays_of(states, advantages, tasks, settings, credited, count, seed):
    """The run's movement against that of replays with random actions.

    Returns {"moved": of the run's replay with its own actions, "random": (median, 5%, 95%) over `count`
    replays with random actions, "p": the share of those that moved as far, the run among them, "log_pis": of
    the replay with its own actions}.
    """
    own = replay(states, advantages, tasks, settings, credited)
    moved, generator = movement(own[0], own[-1]), torch.Generator().manual_seed(seed)
    others = []
    for _ in range(count):
        other = replay(states, advantages, tasks, settings, generator=generator)
        others.append(movement(other[0], other[-1]))
    return {"moved": moved, "random": [float(np.quantile(others, share)) for share in (0.5, 0.05, 0.95)],
            "p": (1 + sum(value >= moved for value in others)) / (1 + count), "log_pis": own}


def blocks_of(episodes):
    """Slices of about BLOCK episodes each."""
    count = max(1, episodes // BLOCK)
    ends = np.linspace(0, episodes, count + 1).round().astype(int)
    return [slice(start, end) for start, end in zip(ends, ends[1:])]


def without_position(advantages):
    """What a step's position in the episode explains, and what is left.

    Returns (left, share): advantages minus the mean at their step over the episodes of their block, since
    advantages drift while tasks are picked more or less often; and the share of their variance that the means
    at the steps over all episodes explain. (episodes, steps) -> (episodes, steps), float; nan where all are
    the same."""
    advantages = np.asarray(advantages, dtype=float)
    total = np.sum((advantages - advantages.mean()) ** 2)
    explained = len(advantages) * np.sum((advantages.mean(axis=0) - advantages.mean()) ** 2)
    left = np.concatenate([advantages[block] - advantages[block].mean(axis=0)
                           for block in blocks_of(len(advantages))])
    return left, float(explained / total) if total else float("nan")


def share_of_actions(left, credited, count=199, seed=0):
    """Share of the squares that the means of each action explain, and what it is when actions are shuffled
    among the steps of one position and block of episodes, the mean over `count` shuffles. left, credited:
    (episodes, steps)."""
    left, credited = np.asarray(left, dtype=float), np.asarray(credited)
    total = np.sum(left ** 2)
    if not total:
        return float("nan"), float("nan")

    def share(actions):
        sums = np.bincount(actions.ravel(), weights=left.ravel())
        counts = np.bincount(actions.ravel())
        return float(np.sum(sums[counts > 0] ** 2 / counts[counts > 0]) / total)

    generator = np.random.default_rng(seed)
    shuffled = [share(np.concatenate([generator.permuted(credited[block], axis=0)
                                      for block in blocks_of(len(credited))])) for _ in range(count)]
    return share(credited), float(np.mean(shuffled))


def advantages_by_task(left, credited, tasks):
    """{task: (mean, low, high, steps)}: its mean advantage, that of the step's position taken off, with
    Student's 95% interval over the steps that were credited to it. tasks: names, in the order of actions."""
    found = {}
    for number, name in enumerate(tasks):
        values = np.asarray(left)[np.asarray(credited) == number]
        if len(values) == 0:
            found[name] = None
            continue
        low = high = float("nan")
        if len(values) > 1 and np.ptp(values) > 0:
            low, high = t.interval(0.95, len(values) - 1, values.mean(),
                                   values.std(ddof=1) / len(values) ** 0.5)
        found[name] = [float(values.mean()), float(low), float(high), len(values)]
    return found


def settings_of(args):
    """What replay needs of a run's args.json."""
    return SimpleNamespace(
        seed=args["seed"], policy_learning_rate=args["policy_learning_rate"],
        weight_decay=args["weight_decay"], max_grad_norm=args["max_grad_norm"],
        weight_decay_on=args["protocol_choices"]["weight_decay_on"],
        zero_grad=args["protocol_choices"]["zero_grad"])

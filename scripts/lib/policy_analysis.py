"""What a curriculum policy learnt: pure functions of a run's trajectories, and the replay of its updates.

Shapes: an episode has `steps` steps; advantages (episodes, steps); credited (episodes, steps), the action
that each step's reward is credited to, by number; states (episodes, hidden), the curriculum's state at an
episode's first step, which hardly moves within the episode; log_pis (episodes, tasks), log pi at that state.
"""
from types import SimpleNamespace

import numpy as np
import torch

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
    policy_learning_rate, weight_decay, weight_decay_on, zero_grad, max_grad_norm. Returns (log_pis
    (episodes + 1, tasks): before each episode and after the last one, at that episode's state; actions
    (episodes, steps)).
    """
    states = torch.as_tensor(np.asarray(states), dtype=torch.float32)
    advantages = torch.as_tensor(np.asarray(advantages), dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):  # its weights are drawn from the seed, torch's own draw is undone
        policy = Policy(states.shape[1], tasks, settings.seed)
    optimizer = make_optimizer(policy, settings.policy_learning_rate, settings)
    log_pis, drawn = [], []
    for number, state in enumerate(states):
        log_pi = policy(state[None])
        log_pis.append(log_pi.detach())
        if credited is None:
            actions = torch.multinomial(log_pi.detach().exp(), advantages.shape[1], replacement=True,
                                        generator=generator)
        else:
            actions = torch.as_tensor(credited[number])
        drawn.append(actions)
        backward(policy_loss(advantages[number], log_pi[actions]), policy, settings.max_grad_norm)
        apply_gradients(optimizer, settings)
    log_pis.append(policy(states[-1:]).detach())
    return torch.stack(log_pis).numpy(), torch.stack(drawn).numpy()


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


def share_of_actions(left, actions):
    """Share of the squares of `left` that the means of each action explain; nan where there are none. Both:
    (episodes, steps)."""
    left, actions = np.asarray(left, dtype=float), np.asarray(actions)
    total = np.sum(left ** 2)
    if not total:
        return float("nan")
    sums = np.bincount(actions.ravel(), weights=left.ravel())
    counts = np.bincount(actions.ravel())
    return float(np.sum(sums[counts > 0] ** 2 / counts[counts > 0]) / total)


def effects_of(left, actions, log_pis):
    """What picking each task adds to the advantage, against the other tasks in the shares in which the
    policy picks them: sum (1[a = k] - pi_k) left / sum pi_k (1 - pi_k), the slope of a regression on the
    picks that chance left open. A policy that has all but settled on a task has few such picks, and the
    plain mean of that task's advantages would be near 0. left, actions: (episodes, steps); log_pis:
    (episodes, tasks), from which the actions were drawn. Returns (tasks); nan where none was left open."""
    left, actions, pi = np.asarray(left, dtype=float), np.asarray(actions), np.exp(log_pis)
    surprise = (actions[..., None] == np.arange(pi.shape[1])) - pi[:, None]
    open_picks = actions.shape[1] * np.sum(pi * (1 - pi), axis=0)
    return np.divide(np.einsum("est,es->t", surprise, left), open_picks,
                     out=np.full(pi.shape[1], np.nan), where=open_picks > 1e-9)


def figures_of(log_pis, actions, left, main):
    """Of a training of the policy, as replay returns it: {"moved": movement of its logits, "to_main": how far
    the main task's rose above their mean, "share": share_of_actions, "effects": effects_of}. main: number of
    the main task."""
    first, last = (values - values.mean() for values in (log_pis[0], log_pis[-1]))
    return {"moved": movement(first, last), "to_main": float(last[main] - first[main]),
            "share": share_of_actions(left, actions), "effects": effects_of(left, actions, log_pis[:-1])}


def compare_with_chance(own, others):
    """A figure of the run beside that of trainings whose actions were drawn by chance.

    own: a number or an array; others: (replays, ...). Returns {"value", "low", "high": 2.5% and 97.5% of the
    others, "above": (1 + those that are as large) / (1 + all), "apart": the same of the absolute values}: p
    values of a Monte Carlo test, exact where neither advantages nor states depend on any action, one-sided
    and two-sided. Where earlier actions alone matter they are approximate."""
    own, others = np.asarray(own, dtype=float), np.asarray(others, dtype=float)
    count = 1 + len(others)
    return {"value": own.tolist(), "low": np.quantile(others, 0.025, axis=0).tolist(),
            "high": np.quantile(others, 0.975, axis=0).tolist(),
            "above": ((1 + np.sum(others >= own, axis=0)) / count).tolist(),
            "apart": ((1 + np.sum(np.abs(others) >= np.abs(own), axis=0)) / count).tolist()}


def learnt(states, advantages, tasks, settings, credited, main, count, seed):
    """What the policy of a run learnt: its figures_of, each as compare_with_chance gives it, against `count`
    replays with random actions, and "log_pis" (episodes + 1, tasks) of the replay with its own actions.
    states None: the policy did not pick; then its log_pis are those of a uniform one, and figures of
    movement are left out."""
    left, steps = without_position(advantages)[0], np.asarray(advantages).shape
    generator = torch.Generator().manual_seed(seed)
    uniform = np.full((steps[0] + 1, tasks), -np.log(tasks))

    def train(credited=None):
        if states is not None:
            return replay(states, advantages, tasks, settings, credited, generator)
        return uniform, credited if credited is not None else torch.randint(
            tasks, steps, generator=generator).numpy()

    log_pis, actions = train(credited)
    own, others = figures_of(log_pis, actions, left, main), []
    for _ in range(count):
        others.append(figures_of(*train(), left, main))
    names = own if states is not None else ("share", "effects")
    return {**{name: compare_with_chance(own[name], [other[name] for other in others]) for name in names},
            "log_pis": log_pis}


def settings_of(args):
    """What replay needs of a run's args.json."""
    return SimpleNamespace(
        seed=args["seed"], policy_learning_rate=args["policy_learning_rate"],
        weight_decay=args["weight_decay"], max_grad_norm=args["max_grad_norm"],
        weight_decay_on=args["protocol_choices"]["weight_decay_on"],
        zero_grad=args["protocol_choices"]["zero_grad"])

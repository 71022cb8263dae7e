"""Losses of phases 1 to 4 and the policy's equations: hand-worked numbers, identities, finite differences."""
import math

import numpy as np
import pytest
import torch

from curriculum import (
    StepBaseline,
    advantages_of,
    binary_reward,
    curriculum_state,
    discounted_returns,
    entropy,
    policy_loss,
    real_reward,
    step_advantages,
    student_loss,
)
from meta_policy import (
    collaborative_loss,
    competitive_loss,
    distillation_loss,
    pkd_loss,
    soft_logits_loss,
    teacher_layers,
)
from tasks import KINDS, soft_loss, true_class_probability

RULES = KINDS["classification"]
LABELS = torch.tensor([0, 1, 1])
EVEN = torch.zeros(3, 2, dtype=torch.float64)
# p(y) = 3/4
SURE = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)], [0.0, math.log(3)]], dtype=torch.float64)


def close(value, expected):
    assert torch.as_tensor(value).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_true_class_probability():
    assert true_class_probability(SURE, LABELS).tolist() == pytest.approx([0.75] * 3)


def test_soft_loss_by_hand():
    # at temperature t, logits t * log 3 against 0: softmax (3/4, 1/4) against (1/2, 1/2); squares 1/16 each,
    # times t^2
    for t in (1.0, 5.0):
        close(soft_loss(t * SURE, EVEN, t), t * t / 16)
    close(soft_loss(SURE, SURE, 5.0), 0)
    close(soft_loss(SURE + 7, EVEN - 2, 5.0), soft_loss(SURE, EVEN, 5.0).item())  # softmax ignores a shift
    close(soft_loss(SURE, EVEN, 5.0), soft_loss(EVEN, SURE, 5.0).item())


def test_pkd_loss_by_hand():
    # (2 layers, 1 example, 2): normalised (.6, .8), (1, 0)
    student = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]]], dtype=torch.float64)
    teacher = torch.tensor([[[4.0, 3.0]], [[0.0, 2.0]]], dtype=torch.float64)   # normalised (.8, .6), (0, 1)
    close(pkd_loss(student, teacher), (0.04 + 0.04 + 1 + 1) / 4)
    close(pkd_loss(student, 9 * student), 0)                                   # length does not matter
    assert pkd_loss(torch.zeros(0, 4, 8), torch.zeros(0, 4, 8)).item() == 0    # one layer: nothing to match


def test_distillation_loss_by_hand():
    close(distillation_loss(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(0.01), 0.25, 100.0),
          0.5 + 2.25 + 1)
    # undistilled: CE alone
    close(distillation_loss(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(5.0), 0.0, 0.0), 3)


def test_meta_losses_by_hand():
    close(collaborative_loss(SURE, EVEN, LABELS, RULES), 0.5 * math.log(4 / 3) + 0.5 * math.log(2))
    close(competitive_loss(SURE, EVEN, LABELS, RULES), math.log(4 / 3) - 0.75 + 0.5)
    # equal inputs: the probabilities cancel
    close(competitive_loss(SURE, SURE, LABELS, RULES), math.log(4 / 3))


def test_student_loss_by_hand():
    p = torch.tensor([0.5, 0.75], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.25, 0.25], dtype=torch.float64, requires_grad=True)
    loss = student_loss(torch.tensor(1.0, dtype=torch.float64), p, q)
    close(loss, 1 - 0.625 + 0.25)
    loss.backward()
    assert p.grad.tolist() == [-0.5, -0.5] and q.grad.tolist() == [0.5, 0.5]


def test_rewards_by_hand():
    p, q = torch.tensor([0.9, 0.2, 0.5]), torch.tensor([0.4, 0.3, 0.5])
    assert binary_reward(p, q, 10).item() == pytest.approx(0.1)                # a tie is no win
    assert real_reward(p, q, 10).item() == pytest.approx((0.5 - 0.1) / 10)
    assert real_reward(p, q, 10).item() == pytest.approx(-real_reward(q, p, 10).item())


def test_returns_and_advantages_by_hand():
    rewards = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    assert discounted_returns(rewards, 0.5).tolist() == [1.5, 1.0, 2.0]
    assert discounted_returns(rewards, 0.99).tolist() == pytest.approx([1 + 0.99 ** 2 * 2, 0.99 * 2, 2])
    assert advantages_of(rewards, 0.5).tolist() == [0.0, -0.5, 0.5]
    assert discounted_returns(rewards, 0.5, "episode_start").tolist() == [1.5, 0.5, 0.5]
    assert advantages_of(torch.tensor([3.0])).tolist() == [0.0]


def test_released_advantages_are_rounded_as_numpy_rounds():
    rng = np.random.default_rng(0)
    for steps in (3, 5, 12, 62, 107):
        rewards = (rng.normal(size=steps) / 24).astype(np.float32)
        weighted = np.array([reward * np.float32(0.99 ** step) for step, reward in enumerate(rewards)],
                            dtype=np.float32)
        returns = weighted[::-1].cumsum()[::-1]
        assert (advantages_of(torch.from_numpy(rewards),
                              discount_from="episode_start").tolist() == (returns - returns.mean()).tolist())


@pytest.mark.parametrize("depth, nlayers, first, skip", [
    (12, 6, [1, 2, 3, 4, 5], [2, 4, 6, 8, 10]), (6, 3, [1, 2], [2, 4]), (12, 3, [1, 2], [4, 8]),
    (6, 6, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]), (12, 1, [], []), (4, 3, [1, 2], [1, 2]),
    (7, 3, [1, 2], [2, 4])])
def test_layers_that_pkd_compares(depth, nlayers, first, skip):
    assert teacher_layers(depth, nlayers, "first") == first
    assert teacher_layers(depth, nlayers, "skip") == skip


def test_soft_loss_of_logits_by_hand():
    a = torch.tensor([[1.0, 3.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    close(soft_logits_loss(b, a), (0 + 4 + 0 + 1) / 4)
    assert soft_logits_loss(a, a).item() == 0
    assert torch.autograd.gradcheck(lambda x: soft_logits_loss(b, x), a)


def test_advantages_against_a_step_by_hand():
    baseline, returns = StepBaseline(), torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert step_advantages(returns, baseline.mean).tolist() == [0.0, 0.0]       # nothing to compare with yet
    for values in ([3.0, 1.0], [1.0, 2.0], [2.0, 0.0]):
        baseline.include(torch.tensor(values, dtype=torch.float64))
    assert baseline.mean.tolist() == pytest.approx([2.0, 1.0]) and baseline.episodes == 3
    assert step_advantages(returns, baseline.mean).tolist() == pytest.approx([1.0, 0.0])
    # what a return owes to its place alone is taken off, in every episode
    staircase = torch.tensor([4.0, 3.0, 2.0, 1.0])
    baseline = StepBaseline()
    baseline.include(staircase)
    assert step_advantages(staircase, baseline.mean).tolist() == [0.0] * 4
    assert (staircase - staircase.mean()).abs().min() > 0


def test_policy_loss_by_hand():
    close(policy_loss(torch.tensor([1.0, -2.0]), torch.tensor([-0.5, -0.25])), -(-0.5 + 0.5) / 2)
    close(policy_loss(torch.tensor([1.0, 2.0]), torch.tensor([-0.5, -0.25])), 0.5)


def test_policy_gradient_favours_the_action_with_the_advantage():
    logits = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    log_pi = logits.log_softmax(-1)[range(2), [0, 2]]
    policy_loss(torch.tensor([1.0, -1.0], dtype=torch.float64), log_pi).backward()
    assert logits.grad[0].tolist() == pytest.approx([-1 / 3, 1 / 6, 1 / 6])    # descent raises action 0 ...
    assert logits.grad[1].tolist() == pytest.approx([-1 / 6, -1 / 6, 1 / 3])   # ... and lowers action 2


def test_entropy():
    close(entropy(torch.full((6,), 1 / 6, dtype=torch.float64).log()), math.log(6))
    assert entropy(torch.tensor([0.0, -80.0])).item() == pytest.approx(0, abs=1e-12)


def test_curriculum_state():
    predictor = torch.nn.Linear(3, 1)
    weight = torch.randn(3, 3)
    state = curriculum_state(predictor, weight)
    assert state.shape == (1, 3)
    torch.testing.assert_close(state[0], weight @ predictor.weight[0] + predictor.bias)


def test_gradients_against_finite_differences():
    torch.manual_seed(0)
    a, b = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    s, t = (torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    labels = torch.tensor([0, 3, 1])
    check = torch.autograd.gradcheck
    assert check(lambda x: torch.nn.functional.cross_entropy(x, labels), a)
    assert check(lambda x, y: soft_loss(x, y, 5.0), (a, b))
    assert check(pkd_loss, (s, t))
    assert check(lambda x, y: collaborative_loss(x, y, labels, RULES), (a, b))
    assert check(lambda x, y: competitive_loss(x, y, labels, RULES), (a, b))
    assert check(
        lambda x: student_loss(torch.nn.functional.cross_entropy(x, labels), true_class_probability(
            x, labels), torch.full((3, ), 0.3, dtype=torch.float64)), a)
    head = torch.randn(4, 4, dtype=torch.float64)
    assert check(  # with the meta-teacher's term attached, read on what the student gives
        lambda x: student_loss(torch.nn.functional.cross_entropy(x, labels), true_class_probability(
            x, labels), true_class_probability(x @ head, labels)), a)
    assert check(
        lambda x, y, z: distillation_loss(soft_loss(x, y, 5.0), torch.nn.functional.cross_entropy(y, labels),
                                          pkd_loss(z, t.detach()), 0.5, 100.0), (a, b, s))
    assert check(
        lambda x: policy_loss(torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64),
                              x.log_softmax(-1)[range(3), [1, 0, 2]]), a)
    predictor = torch.nn.Linear(4, 1, dtype=torch.float64)
    assert check(lambda weight: curriculum_state(predictor, weight),
                 torch.randn(4, 4, dtype=torch.float64, requires_grad=True))

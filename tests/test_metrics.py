"""Scores, selection, prediction files, optimizer groups, figures that are not finite."""
import math
from types import SimpleNamespace

import pytest
import torch

from bookkeeping.errors import InputError, TrainingError
from bookkeeping.states import Meter
from meta_policy import apply_gradients, backward, make_optimizer
from metrics import Best, read_predictions, score, write_predictions
from tasks import TASKS


def test_score_by_hand():
    result = score(TASKS["CB"], [0, 0, 1, 2], [0, 1, 1, 2])
    assert result["correct"] == 3 and result["total"] == 4 and result["accuracy"] == 0.75
    assert result["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert "f1" not in score(TASKS["RTE"], [0], [1])


def test_first_best_is_kept_and_comes_back():
    module, best = torch.nn.Linear(1, 1), Best()
    offered = []
    for index, value in enumerate([0.0, 0.5, 0.5, 0.4], 1):
        torch.nn.init.constant_(module.weight, index)
        offered.append(best.offer(value, index, {"dev": value}, module, {"dev": [index]}))
    assert offered == [True, True, False, False] and (best.index, best.scores) == (2, {"dev": 0.5})
    best.restore(module)
    assert module.weight.item() == 2


@pytest.mark.parametrize(
    "name, written",
    [
        ("CB", '"contradiction"'),
        ("RTE", '"not_entailment"'),
        ("BoolQ", '"true"'),
        ("WiC", '"true"'),
        ("WSC", '"True"'),
        ("COPA", "1"),
    ],
)
def test_prediction_files_are_the_leaderboards(name, written, tmp_path):
    path = tmp_path / "a" / "x.jsonl"
    write_predictions(path, TASKS[name], [5, 9], [0, 1])
    assert path.read_text().splitlines()[1] == f'{{"idx": 9, "label": {written}}}'
    assert read_predictions(path, TASKS[name]) == {5: 0, 9: 1}
    path.write_text('{"idx": 5, "label": "perhaps"}\n')
    with pytest.raises(InputError, match="x.jsonl:1"):
        read_predictions(path, TASKS[name])


@pytest.mark.parametrize("decay_on", ("matrices", "everything"))
def test_decay_touches_matrices_only_or_everything(decay_on):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    before = {name: value.clone() for name, value in module.named_parameters()}
    optimizer = make_optimizer(module, 0.1, SimpleNamespace(weight_decay=0.5, weight_decay_on=decay_on))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in module.named_parameters():
        decayed = name == "0.weight" or decay_on == "everything"
        torch.testing.assert_close(value, before[name] * (1 - 0.1 * 0.5) if decayed else before[name])


@pytest.mark.parametrize("zero_grad", ("none", "zeros"))
def test_gradients_are_clipped_then_applied_then_forgotten(zero_grad):
    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    norm = backward((layer.weight * torch.tensor([[3.0, 4.0]])).sum(), layer, 1.0)
    assert norm.item() == 5 and layer.weight.grad.norm().item() == pytest.approx(1, rel=1e-5)
    apply_gradients(optimizer, SimpleNamespace(zero_grad=zero_grad))
    assert layer.weight.grad is None if zero_grad == "none" else layer.weight.grad.tolist() == [[0, 0]]
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[-0.6, -0.8]]), rtol=1e-5, atol=0)


def test_figures_that_are_not_finite_stop_the_run():
    split = SimpleNamespace(task=TASKS["CB"], name="train", idx=[7, 8])
    meter = Meter(torch.nn.Linear(1, 1))
    meter.begin("here", 0.1)
    assert meter.add({"loss": torch.tensor(1.0), "gradient_norm": torch.tensor(2.0)}, split, [0])
    assert meter.add({"loss": torch.tensor(3.0), "gradient_norm": torch.tensor(4.0)}, split, [1])
    assert meter.means() == {"loss": 2.0, "gradient_norm": 3.0}
    assert not meter.add({"loss": torch.tensor(3.0), "gradient_norm": torch.tensor(math.inf)}, split, [1, 0])
    said = r"here, step 3: gradient_norm is inf at learning rate 0.1; examples of CB train: idx 8, 7\."
    for look in (meter.means, meter.state_dict):
        with pytest.raises(TrainingError, match=said):
            look()


def test_weights_that_are_not_finite_stop_the_run():
    meter = Meter(torch.nn.Linear(1, 1))
    meter.begin("here", 0.1)
    meter.add({"loss": torch.tensor(1.0)}, SimpleNamespace(task=TASKS["CB"], name="quiz", idx=["a"]), [0])
    torch.nn.init.constant_(meter.module.bias, math.nan)
    said = "here, step 1: weights after it are not finite at learning rate 0.1; examples of CB quiz: idx a"
    with pytest.raises(TrainingError, match=said):
        meter.means()

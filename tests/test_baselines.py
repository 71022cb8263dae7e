"""The methods to compare with: their losses by hand, identities, finite differences; rows through the command
line, killed and gone on with."""
import json
import math
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import baselines
import main_superglue
from arguments import BASELINES, constants_of, parse_arguments
from baselines import METHODS, Answers, annealing_factor, attended, patient_distance
from conftest import ROOT, SMALL, as_words, read_lines
from tasks import KINDS, divergence

CLASSES, NUMBERS = KINDS["classification"], KINDS["regression"]


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


NOTHING = torch.zeros(0, 2, 3, dtype=torch.float64)
LABELS = torch.tensor([0, 1])
# p = (3/4, 1/4) and even at temperature 1
Z_TEACHER, Z_STUDENT = tensor([math.log(3), 0], [0, 0]), tensor([0, 0], [0, 0])


def close(value, expected):
    assert torch.as_tensor(value).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def loss_of(method, student, teacher, labels=LABELS, rules=CLASSES, done=0.0, learnt=None, **constants):
    constants = {**BASELINES[method], **constants}
    more = {}
    if METHODS[method].learnt:
        hidden = student.states.shape[-1]
        more = {"learnt": learnt or METHODS[method].learnt(hidden, constants, 1).double()}
    return METHODS[method].loss(student, teacher, labels, rules, constants, done, **more)


def random_side(layers=2, seed=0, classes=3, tokens=False):
    random = torch.Generator().manual_seed(seed)
    size = (layers, 4, 3, 5) if tokens else (layers, 4, 5)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]) if tokens else None
    shapes = (4, classes), size, (layers, 4, 2, 3, 3), (layers, 4, 2, 3, 4)
    logits, states, scores, values = (torch.randn(*shape, dtype=torch.float64, generator=random)
                                      for shape in shapes)
    return Answers(logits, states, mask, scores, values)


def test_every_method_has_constants_a_row_and_a_line_in_the_documents():
    from lib.rows import BASELINE_ROWS
    assert list(BASELINES) == list(METHODS) == BASELINE_ROWS
    page = (ROOT / "docs" / "BASELINES.md").read_text()
    for name, method in METHODS.items():
        line, = re.findall(rf"^\| `{name}` \|.*$", page, re.M)
        assert line.rstrip(" |").endswith(method.source) or method.source in line
        cell = line.split(" | ")[2]
        for key, value in BASELINES[name].items():
            said = re.search(rf"`{key}` (\S+?)(?:,|$)", cell) if "the same" not in cell else None
            assert said is None or float(Fraction(said[1])) == pytest.approx(value), (name, key)
            assert said or "the same" in cell


def test_divergence_by_hand():
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    close(divergence(Z_TEACHER, Z_STUDENT, 1.0), kl / 2)
    # softened: the logits divided by T; times T^2
    soft = torch.softmax(tensor(math.log(3) / 2, 0), 0)
    close(divergence(Z_TEACHER, Z_STUDENT, 2.0), 4 * (soft * (soft / 0.5).log()).sum().item() / 2)
    close(divergence(Z_TEACHER, Z_TEACHER + 7, 3.0), 0)     # a constant changes no probability
    assert divergence(Z_TEACHER, Z_STUDENT, 1.0) != divergence(Z_STUDENT, Z_TEACHER, 1.0)
    close(NUMBERS.divergence(tensor([2.0]), tensor([0.5]), 9.0), 2.25)


def test_hinton_kd_by_hand():
    student, teacher = Answers(Z_STUDENT, NOTHING), Answers(Z_TEACHER, NOTHING)
    found = loss_of("hinton_kd", student, teacher, alpha=0.25)
    close(found["ce"], math.log(2))
    close(found["soft"], divergence(Z_TEACHER, Z_STUDENT, 5.0).item())
    close(found["loss"], 0.75 * found["ce"] + 0.25 * found["soft"])
    close(loss_of("hinton_kd", student, teacher, alpha=0.0)["loss"], math.log(2))
    close(loss_of("hinton_kd", teacher, teacher, alpha=1.0)["loss"], 0)


def test_pkd_by_hand():
    states = tensor([[3, 4, 0]]), tensor([[0, 2, 0]])
    close(patient_distance(states[0][None], states[1][None]), 0.36 + 0.04)  # (.6, .8, 0) and (0, 1, 0)
    close(patient_distance(7 * states[0][None], states[1][None]), 0.4)      # lengths do not count
    close(patient_distance(states[0][None], states[0][None]), 0)
    close(patient_distance(NOTHING, NOTHING), 0)
    two = torch.stack([states[0], states[1]]), torch.stack([states[1], states[1]])
    close(patient_distance(*two), 0.2)                                      # the mean over layers
    student, teacher = random_side(seed=1), random_side(seed=2)
    labels = torch.tensor([0, 2, 1, 1])
    for method in ("pkd_skip", "pkd_last"):
        found = loss_of(method, student, teacher, labels, beta=3.0)
        plain = loss_of("hinton_kd", student, teacher, labels)
        patient = patient_distance(student.states, teacher.states).item()
        close(found["loss"], plain["loss"].item() + 3 * patient)
    assert METHODS["pkd_skip"].layers(12, 6) == ([1, 2, 3, 4, 5], [2, 4, 6, 8, 10])
    assert METHODS["pkd_last"].layers(12, 6) == ([1, 2, 3, 4, 5], [7, 8, 9, 10, 11])
    assert METHODS["pkd_last"].layers(6, 3) == ([1, 2], [4, 5])
    assert METHODS["pkd_skip"].layers(4, 1) == METHODS["pkd_last"].layers(4, 1) == ([], [])


def test_alp_kd_by_hand():
    teacher = torch.stack([tensor([1.0, 0.0]), tensor([0.0, 1.0])])
    student = tensor([[math.log(3), 0.0]])                                  # dot products log 3 and 0
    close((attended(student, teacher) - tensor([0.75, 0.25])).abs().max(), 0)
    # one teacher layer: it is copied whatever the weights
    close((attended(student, teacher[:1]) - teacher[:1]).abs().max(), 0)
    one, other = Answers(Z_STUDENT[:1], student), Answers(Z_TEACHER[:1], teacher)
    found = loss_of("alp_kd", one, other, LABELS[:1])
    close(found["layers"], ((math.log(3) - 0.75) ** 2 + 0.25 ** 2) / 2)
    close(found["loss"], 0.1 * found["ce"] + 0.7 * found["soft"] + 0.2 * found["layers"])
    twice = loss_of("alp_kd", Answers(Z_STUDENT[:1], torch.cat([student, student])), other, LABELS[:1])
    close(twice["layers"], 2 * found["layers"].item())                      # a sum over the student's layers
    assert METHODS["alp_kd"].layers(4, 2) == ([1, 2], [1, 2, 3, 4])


def test_what_is_annealed_by_hand():
    factors = [annealing_factor(done, 2 / 3, 10) for done in (0, 0.06, 1 / 15, 0.1, 0.5, 0.66, 2 / 3, 1)]
    assert factors == [0.1, 0.1, 0.2, 0.2, 0.8, 1.0, 1.0, 1.0]
    student, teacher = Answers(Z_STUDENT, NOTHING), Answers(Z_TEACHER, NOTHING)
    mean = math.log(3) ** 2 / 4
    close(loss_of("annealing_kd", student, teacher, done=0.0)["loss"], 0.01 * mean)
    close(loss_of("annealing_kd", student, teacher, done=0.65)["loss"], mean)
    found = loss_of("annealing_kd", student, teacher, done=0.7)
    close(found["loss"], math.log(2))
    assert found["soft"].item() == 0
    # continuation: the margin shrinks with f, and psi grows
    far = Answers(Z_TEACHER + 3, NOTHING)
    found = loss_of("continuation_kd", far, teacher, done=1 / 3)            # f 0.6, psi 1/4
    soft = F.mse_loss(far.logits, 0.6 * Z_TEACHER) - 0.6
    close(found["soft"], soft.item())
    close(found["loss"], 0.25 * found["ce"].item() + 0.75 * soft.item())
    close(loss_of("continuation_kd", student, teacher, done=0.0)["loss"], 0)  # within the margin, psi 0
    ce = F.cross_entropy(far.logits, LABELS).item()
    close(loss_of("continuation_kd", far, teacher, done=0.9)["loss"], ce)


def test_what_reads_tokens_by_hand():
    mask = torch.tensor([[1, 1, 0]])
    tokens = tensor([[[1, 0], [0, 2], [9, 9]]])[0][None]                    # (1, 1, 3, 2)
    assert baselines.token_mean(tokens, mask).tolist() == [[[0.5, 1.0]]]
    other = tensor([[[2, 0], [3, 0], [5, 7]]])[0][None]
    close(baselines.cosine_distance(tokens, other, mask), (0 + 1) / 2)      # along, across; padding left out
    close(baselines.cosine_distance(tokens, 3 * tokens, mask), 0)
    student, teacher = Answers(Z_STUDENT[:1], tokens, mask), Answers(Z_TEACHER[:1], other, mask)
    found = loss_of("distilbert", student, teacher, LABELS[:1])
    close(found["cosine"], 0.5)
    close(found["soft"], divergence(Z_TEACHER[:1], Z_STUDENT[:1], 2.0).item())
    close(found["loss"], 5 * found["soft"] + 2 * found["ce"] + 0.5)
    same = torch.nn.ModuleDict({side: torch.nn.Identity() for side in ("student", "teacher")})
    found = loss_of("rail_kd", student, teacher, LABELS[:1], learnt=same)
    ours, theirs = tensor(0.5, 1.0) / math.sqrt(1.25), tensor(1.0, 0.0)
    close(found["layers"], (ours - theirs).square().sum().item())
    close(found["loss"], (found["ce"] + found["soft"] + found["layers"]) / 3)
    alike = loss_of("rail_kd", student, Answers(Z_STUDENT[:1], tokens, mask), LABELS[:1], learnt=same)
    close(alike["layers"], 0)


def test_what_reads_attention_by_hand():
    mask = torch.tensor([[1, 1, 0]])
    scores = tensor([[1, 2, 50], [3, 4, 60], [7, 7, 7]])[None]              # (1, heads 1, 3, 3)
    other = tensor([[2, 2, 9], [3, 6, 9], [9, 9, 9]])[None]
    states = tensor([[1, 0], [0, 1], [9, 9]])[None]                         # (1, tokens 3, hidden 2)

    def side(logits, scores, states):
        return Answers(logits, torch.stack([states, states]), mask, scores[None], scores[None])

    alike = torch.nn.ModuleDict({"student": torch.nn.Identity()})
    student, teacher = side(Z_STUDENT[:1], scores, states), side(Z_TEACHER[:1], other, states + 2)
    found = loss_of("tinybert", student, teacher, LABELS[:1], learnt=alike)
    close(found["attention"], (1 + 0 + 0 + 4) / 4)                          # real queries and keys alone
    close(found["hidden"], 2 * 4)                                           # the embeddings and a layer
    close(found["loss"], found["attention"] + found["hidden"])
    close(loss_of("tinybert", student, student, LABELS[:1], learnt=alike)["loss"], 0)
    close(loss_of("tinybert", student, teacher, LABELS[:1], learnt=alike, done=0.5)["loss"],
          divergence(Z_TEACHER[:1], Z_STUDENT[:1], 1.0).item())
    ours, theirs = (torch.softmax(values[0, 0, :2, :2], -1) for values in (scores, other))
    kl = (theirs * (theirs / ours).log()).sum(-1).mean()
    close(baselines.relation_divergence(other, scores, mask), kl.item())
    found = loss_of("minilm", student, teacher, LABELS[:1])
    close(found["attention"], kl.item())
    relations = [values @ values.transpose(-1, -2) / 3 ** 0.5 for values in (other, scores)]
    close(found["values"], baselines.relation_divergence(*relations, mask).item())
    close(loss_of("minilm", student, student, LABELS[:1])["loss"], 0)
    close(loss_of("minilm", student, teacher, LABELS[:1], done=0.5)["loss"],
          loss_of("hinton_kd", student, teacher, LABELS[:1])["loss"].item())
    assert METHODS["tinybert"].layers(12, 6) == (list(range(7)), [0, 2, 4, 6, 8, 10, 12])


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_attention_scores_are_those_of_the_encoder(kind, encoders):
    """The softmax of what is read, weighting the values, is what the attention hands on."""
    from models import load_model
    from tasks import TASKS
    model = load_model(encoders[kind], [TASKS["CB"]], 1, "teacher").eval()
    batch = SimpleNamespace(input_ids=torch.randint(5, 60, (2, 7)), token_type_ids=None,
                            attention_mask=torch.tensor([[1] * 7, [1] * 4 + [0] * 3]))
    handed, name = [], {"bert": "attention.self", "distilbert": "attention"}[kind]
    last = {"bert": "attention.output.dense", "distilbert": "attention.out_lin"}[kind]
    hooks = [module.register_forward_pre_hook(lambda module, given: handed.append(given[0]))
             for path, module in model.encoder.body.named_modules() if path.endswith(last)]
    with torch.no_grad():
        found = baselines.all_answers(model.encoder, model.heads, "CB", batch, [0, 1, 2, 3, 4], True)
    assert len(hooks) == len(handed) == 4 and found.scores.shape == (4, 2, 2, 7, 7), name
    blocked = batch.attention_mask[:, None, None, :] == 0
    for layer in range(4):
        weights = found.scores[layer].masked_fill(blocked, -1e9).softmax(-1)
        mixed = (weights @ found.values[layer]).transpose(1, 2).flatten(2)
        torch.testing.assert_close(mixed, handed[layer], rtol=1e-4, atol=1e-5)


def test_a_family_without_such_scores_is_refused(command, encoders, capsys):
    for method in ("tinybert", "minilm"):
        code, folder = command(teacher_model=encoders["deberta"], baselines=[method], stop_after="kd")
        error = capsys.readouterr().err
        assert code == 2 and f"--baselines {method}: it reads attention scores" in error
        assert not folder.exists()
        assert "deberta-v2 are not q k / sqrt(d) alone" in error and error.count("\n") == 1
    code, folder = command(teacher_model=encoders["deberta"], baselines=["theseus"], stop_after="kd")
    error = capsys.readouterr().err
    assert code == 2 and "--baselines theseus: it runs layers of teacher and student in one network" in error
    assert not folder.exists() and error.count("\n") == 1


def test_what_is_learnt_beside_a_student_does_not_change_its_dropout(encoders):
    from models import load_model, set_training
    from tasks import TASKS
    student = load_model(encoders["bert"], [TASKS["CB"]], 1, "student", 2)
    module = baselines.WithLearnt(student, baselines.one_projection(16, {}, 1))
    set_training(module, "until_first_evaluation", evaluated=False)
    assert not student.encoder.training and student.heads.training
    set_training(module, "training", evaluated=True)
    assert student.encoder.training


def test_layers_that_are_drawn_by_hand():
    draws = [baselines.drawn_layers(2, 5, seed, epoch) for seed in (1, 2) for epoch in range(20)]
    assert all(len(set(draw)) == 2 and draw == sorted(draw) and set(draw) <= set(range(5)) for draw in draws)
    assert {place for draw in draws for place in draw} == set(range(5)) and draws[:20] != draws[20:]
    assert baselines.drawn_layers(2, 5, 1, 3) == draws[3]                   # by seed and epoch alone
    assert METHODS["rail_kd"].layers(6, 3) == ([1, 2], [1, 2, 3, 4, 5])
    assert METHODS["distilbert"].layers(6, 3) == ([3], [6])


def test_teachers_that_learn_by_hand():
    student, teacher = Answers(Z_STUDENT, NOTHING), Answers(Z_TEACHER, NOTHING)
    ce = -(math.log(0.75) + math.log(0.5)) / 2
    there, back = (divergence(*pair, 1.0).item() for pair in ((Z_TEACHER, Z_STUDENT), (Z_STUDENT, Z_TEACHER)))
    assert there != pytest.approx(back, rel=0.01)
    for method in ("dml", "prokt"):
        close(loss_of(method, student, teacher)["loss"], math.log(2) + there)
        alike = METHODS[method].teacher_loss(teacher, teacher, LABELS, CLASSES, BASELINES[method])
        close(alike, ce * BASELINES[method].get("ce", 1.0))
    close(METHODS["dml"].teacher_loss(student, teacher, LABELS, CLASSES, BASELINES["dml"]), ce + back)
    close(METHODS["prokt"].teacher_loss(student, teacher, LABELS, CLASSES, BASELINES["prokt"]),
          0.6 * ce + 0.4 * back)
    logits = Z_TEACHER.clone().requires_grad_()
    for method in ("dml", "prokt"):
        assert torch.autograd.gradcheck(lambda z, method=method: METHODS[method].teacher_loss(
            student, Answers(z, NOTHING), LABELS, CLASSES, BASELINES[method]), logits)


def test_what_replaces_layers_by_hand():
    rates = [baselines.replacing_rate(done, BASELINES["theseus"]) for done in (0, 0.25, 0.5, 0.9)]
    assert rates == pytest.approx([0.3, 0.65, 1, 1])
    ours, theirs = ["s1", "s2", "s3"], ["t1", "t2", "t3", "t4", "t5", "t6"]
    assert baselines.mixed_layers(ours, theirs, [True, False, True]) == ["s1", "t3", "t4", "s3"]
    assert baselines.mixed_layers(ours, theirs, [False] * 3) == theirs
    assert baselines.mixed_layers(ours, theirs, [True] * 3) == ours
    assert baselines.mixed_layers(ours[:2], theirs[:5], [False, True]) == ["t1", "t2", "s2"]
    ce = -(math.log(0.75) + math.log(0.5)) / 2
    close(loss_of("theseus", Answers(Z_TEACHER, NOTHING), None)["loss"], ce)


@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "XLM-R", "ELECTRA", "MPNet", "DistilBERT"])
def test_a_network_of_the_teachers_layers_is_the_teacher(family, tmp_path):
    """And one of the student's the student; a mixed one is neither. Afterwards all is in its place."""
    from families import make_family
    from models import STACKED, load_model, stack_of, with_layers
    from tasks import TASKS
    folder, task = make_family(family, tmp_path / "encoder"), TASKS["CB"]
    assert json.loads((folder / "config.json").read_text())["model_type"] in STACKED
    teacher, student = (load_model(folder, [task], 1, "teacher", layers).eval() for layers in (None, 2))
    batch = SimpleNamespace(input_ids=torch.randint(5, 60, (2, 7)), token_type_ids=None,
                            attention_mask=torch.tensor([[1] * 7, [1] * 4 + [0] * 3]))
    own, theirs, found = list(stack_of(student.encoder)), list(stack_of(teacher.encoder)), {}
    with torch.no_grad():
        for layer in own:  # it has learnt: no longer the teacher's
            for weight in layer.parameters():
                weight.add_(0.01)
        alone = [model("CB", batch)[0] for model in (teacher, student)]
        for replaced in ((False, False), (True, True), (True, False)):
            with with_layers(student.encoder, baselines.mixed_layers(own, theirs, replaced)):
                found[replaced] = student("CB", batch)[0]
        torch.testing.assert_close(found[False, False], alone[0], rtol=0, atol=0)
        torch.testing.assert_close(found[True, True], alone[1], rtol=0, atol=0)
        assert not any(torch.allclose(found[True, False], other) for other in alone)
        torch.testing.assert_close(student("CB", batch)[0], alone[1], rtol=0, atol=0)
    assert list(stack_of(student.encoder)) == own


def small_models(encoders, data_dir):
    """(splits of CB, a student of 2 layers, its teacher of 4)."""
    from transformers import AutoTokenizer

    from data_utils import load_task
    from models import load_model
    from tasks import TASKS
    tokenizer, task = AutoTokenizer.from_pretrained(encoders["bert"]), TASKS["CB"]
    data = load_task(task, data_dir, tokenizer, 40, 42, 4, ("train", "quiz", "dev"))
    student, teacher = (load_model(encoders["bert"], [task], 1, role, layers)
                        for role, layers in (("student", 2), ("teacher", None)))
    return data, student, teacher


def training_of(method, **more):
    """The settings of a method's loop for small_models, without decay and dropout of heads."""
    return baselines.BaselineTraining(**{
        "weight_decay": 0.0, "head_dropout": 0.0, "seed": 1, "select_on": "dev", "eval_batch_size": 16,
        "device": "cpu", "precision": "fp32", "dropout": "training", "weight_decay_on": "matrices",
        "selection": "main_metric", "data_order": "own_generators", "zero_grad": "none", "method": method,
        "nlayers": 2, "constants": BASELINES[method], "layers": list(METHODS[method].layers(4, 2)),
        "teacher_learning_rate": 0.0, **more})


def around(predict, data, event=lambda **_: None):
    """Evaluator, streams and log of a loop."""
    from contextlib import nullcontext
    from unittest.mock import MagicMock

    from data_utils import RandomStreams
    from meta_policy import Evaluator
    return (Evaluator(predict, {"dev": data["dev"]}, "dev", "main_metric"),
            RandomStreams(1, "x", "own_generators"),
            SimpleNamespace(event=event, progress=lambda *_: nullcontext(MagicMock())))


@pytest.mark.parametrize("start, share, epochs", [(0.5, 1.0, 1), (1.0, 1.0, 1), (0.0, 1e6, 1), (0.0, 0.5, 2)])
def test_what_learns_while_layers_are_replaced(start, share, epochs, encoders, data_dir):
    """Until all blocks are the student's its layers alone; then all of it; the teacher never."""
    data, student, teacher = small_models(encoders, data_dir)
    settings = training_of("theseus", epochs=epochs, batch_size=8, learning_rate=1e-2, max_grad_norm=1.0,
                           constants={"start": start, "share": share})
    before = [{name: value.clone() for name, value in model.state_dict().items()}
              for model in (student, teacher)]
    events, number = [], iter(range(99))

    def better(split):  # each epoch, so that the weights as they are last are kept
        right = torch.eye(3)[split.labels] * 9
        right[next(number) + 1:] *= -1
        return right

    baselines.replace_layers("x", student, teacher, data["train"], settings,
                             *around(better, data, lambda **values: events.append(values)))
    moved = [{name for name, value in model.state_dict().items() if not torch.equal(value, was[name])}
             for model, was in zip((student, teacher), before)]
    assert not moved[1] and all(weight.requires_grad for weight in student.parameters())
    layered = {name for name in before[0] if ".layer." in name}
    shares = [event["replaced"] for event in events]
    if share == 1e6:
        assert not moved[0] and shares == [0]       # no block was ever the student's
    elif start == 0.5:
        assert moved[0] and moved[0] <= layered and 0 < shares[0] < 1
    else:
        assert {"encoder.body.embeddings.word_embeddings.weight", "heads.linear.CB.weight"} < moved[0]
        assert shares[-1] == 1


def test_a_virtual_step_by_hand():
    theta, idle = tensor(2.0).requires_grad_(), tensor(7.0).requires_grad_()
    scale = tensor(3.0).requires_grad_()
    found = baselines.virtual_step(scale * theta.square().sum(), {"theta": theta, "idle": idle}, 0.1)
    close(found["theta"], 2 - 0.1 * 3 * 2 * 2)
    assert found["idle"] is idle
    found["theta"].sum().backward()  # it goes on to what the loss depends on
    close(scale.grad, -0.1 * 2 * 2)


def test_how_good_a_teacher_is_against_finite_differences(encoders, data_dir):
    """The derivative of the quiz loss, through the virtual step, by weights of several of its layers."""
    import numpy as np
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers import AutoTokenizer

    from data_utils import load_task
    from models import load_model
    from tasks import TASKS
    tokenizer, task = AutoTokenizer.from_pretrained(encoders["bert"]), TASKS["CB"]
    data = load_task(task, data_dir, tokenizer, 40, 42, 4, ("train", "quiz"))
    student, teacher = (load_model(encoders["bert"], [task], 1, role, layers).eval().double()
                        for role, layers in (("student", 2), ("teacher", None)))
    batch, quiz = data["train"].batch(np.arange(4)), data["quiz"].batch(np.arange(3))
    settings = SimpleNamespace(method="metadistil", layers=METHODS["metadistil"].layers(4, 2),
                               constants=BASELINES["metadistil"], learning_rate=0.5)

    def loss():
        with sdpa_kernel(SDPBackend.MATH):
            return baselines.quiz_loss(student, teacher, "CB", batch, quiz, CLASSES, settings)

    named = dict(teacher.named_parameters())
    chosen = ["heads.linear.CB.weight", "encoder.body.encoder.layer.0.output.dense.weight",
              "encoder.body.embeddings.LayerNorm.bias"]
    gradients = torch.autograd.grad(loss(), [named[name] for name in chosen])
    for name, gradient in zip(chosen, gradients):
        place, size = int(gradient.abs().argmax()), 1e-4
        at, values = named[name].data.view(-1), []
        before = at[place].item()
        for moved in (size, -size):
            at[place] = before + moved
            values.append(loss().item())
        at[place] = before
        assert gradient.abs().max() > 1e-6
        close_to = (values[0] - values[1]) / (2 * size)
        assert gradient.view(-1)[place].item() == pytest.approx(close_to, rel=1e-4), name
    # a step of size 0 has no teacher in it
    settings.learning_rate = 0.0
    assert torch.autograd.grad(loss(), [named[name] for name in chosen])[0].abs().max() == 0


@pytest.mark.parametrize("method", ["dml", "prokt", "metadistil"])
def test_a_teacher_that_learns_makes_adamws_first_step(method, encoders, data_dir, monkeypatch):
    """A step of the loop: the teacher goes by its rate against the sign of its gradient, and the student is
    then taught by the teacher as it is afterwards."""
    from models import predict
    data, student, teacher = small_models(encoders, data_dir)
    settings = training_of(method, epochs=1, batch_size=len(data["train"]), learning_rate=1.0,
                           max_grad_norm=1e9, teacher_learning_rate=1e-2)
    bias = teacher.heads.linear["CB"].bias
    before, seen = bias.detach().clone(), []
    real = METHODS[method].loss

    def loss(student, teacher, *given):
        seen.append(teacher.logits.detach().clone())
        return real(student, teacher, *given)

    monkeypatch.setitem(METHODS, method, replace(METHODS[method], loss=loss))
    more = (data["train"],) if METHODS[method].teacher_loss else (data["train"], data["quiz"])
    run = baselines.learn_together if METHODS[method].teacher_loss else baselines.learn_to_teach
    run("x", student, teacher, *more, settings,
        *around(lambda split: predict(student, split, 16, "cpu"), data))
    # far from AdamW's eps: metadistil's gradient has the student's rate as a factor, which is large here
    torch.testing.assert_close((bias - before).abs(), torch.full_like(before, 1e-2), rtol=1e-3, atol=0)
    # what taught the student last are the logits of the teacher as it is now, on the same examples
    logits = predict(teacher, data["train"], 16, "cpu")
    torch.testing.assert_close(seen[-1].sort(0).values, logits.sort(0).values, rtol=1e-3, atol=1e-4)


def test_the_teacher_of_the_run_stays_as_it_was(command):
    """A method whose teacher learns trains a copy: the rows of the others do not depend on it."""
    flags = dict(nlayers=2, stop_after="kd", learning_rate=1e-3, teacher_learning_rate=1e-2)
    learning = ["dml", "prokt", "metadistil"]
    code, folder = command(folder="a/run", baselines=[*learning, "hinton_kd"], **flags)
    assert code == 0
    code, other = command(folder="b/run", baselines=["hinton_kd"], **flags)
    assert code == 0
    for name in ("teacher", "kd", "hinton_kd"):
        assert weights_of(folder, name) == weights_of(other, name)
    lines = [line for line in read_lines(folder / "metrics.jsonl") if line["phase"] in learning]
    assert len(lines) == 3 and all(line.get("teacher_loss", line.get("quiz_loss")) > 0 for line in lines)
    assert len({weights_of(folder, name) for name in learning}) == 3


@pytest.mark.parametrize("done", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_against_finite_differences(method, done):
    """Of classes and of numbers."""
    tokens = METHODS[method].tokens
    for rules, labels, classes in ((CLASSES, torch.tensor([0, 2, 1, 1]), 3),
                                   (NUMBERS, tensor(1.0, 0.5, -2.0, 3.0), 1)):
        student, there = (random_side(seed=seed, classes=classes, tokens=tokens) for seed in (4, 5))
        logits, states = 3 * student.logits, student.states
        logits.requires_grad_(), states.requires_grad_()

        def loss(logits, states, scores, values, mask=student.mask, there=there, labels=labels, rules=rules):
            given = Answers(logits, states, mask, scores, values)
            return loss_of(method, given, there, labels, rules, done)["loss"]

        scores, values = student.scores.requires_grad_(), student.values.requires_grad_()
        assert torch.autograd.gradcheck(loss, (logits, states, scores, values))


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_examples_does_not_count(method):
    tokens = METHODS[method].tokens
    student, teacher = (random_side(seed=seed, tokens=tokens) for seed in (1, 2))
    labels, order = torch.tensor([0, 2, 1, 1]), torch.tensor([2, 0, 3, 1])

    def turned(side):
        return Answers(side.logits[order], side.states[:, order], side.mask[order] if tokens else None,
                       side.scores[:, order], side.values[:, order])

    for done in (0.0, 0.5, 0.9):
        close(loss_of(method, turned(student), turned(teacher), labels[order], done=done)["loss"],
              loss_of(method, student, teacher, labels, done=done)["loss"].item())


# --- through the command line -------------------------------------------------------------------------------

def test_rows_of_all_methods(command, glue):
    """Classes, choices and numbers; each row is scored, predicted and found again."""
    for task in ("CB", "COPA", "STS-B"):
        flags = dict(baselines=["all"], stop_after="kd", nlayers=2, epochs=2 if task == "CB" else 1,
                     **({"data_dir": glue} if task == "STS-B" else {}))
        code, folder = command(task, folder=f"r/{task}", **flags)
        assert code == 0
        result = json.loads((folder / "result.json").read_text())
        assert list(result["rows"]) == ["teacher", "kd", *METHODS]
        for name in METHODS:
            assert list((folder / "predictions" / name / "dev").iterdir())
            epochs = [line for line in read_lines(folder / "metrics.jsonl") if line["phase"] == name]
            assert [line["epoch"] for line in epochs] == [1, 2][:flags["epochs"]]
            assert all(line["loss"] >= 0 for line in epochs)
        assert set(phases_in(folder)) >= {"takd_assistant", *METHODS}


def phases_in(folder):
    return sorted(path.parent.name.split("-")[0]
                  for path in (folder.parent / "phases").glob("*/phase.json"))


class Killed(BaseException):
    pass


def weights_of(folder, method):
    path, = (folder.parent / "phases").glob(f"{method}-*/*model.safetensors")
    return path.read_bytes()


def test_constants_are_part_of_a_phase_and_teachers_are_not(command):
    flags = dict(nlayers=2, stop_after="kd", learning_rate=1e-3)
    _, plain = command(folder="r/plain", baselines=["hinton_kd"], **flags)
    code, other = command(folder="r/other", baselines=["hinton_kd", "alp_kd"],
                          baseline_set=["hinton_kd.temperature=1", "hinton_kd.alpha=0.9"], **flags)
    assert code == 0
    assert phases_in(plain) == ["alp_kd", "hinton_kd", "hinton_kd", "kd", "teacher"]
    assert json.loads((other / "result.json").read_text())["reused"] == ["teacher", "kd"]
    assert json.loads((other / "args.json").read_text())["baseline_set"] == ["hinton_kd.alpha=0.9",
                                                                            "hinton_kd.temperature=1"]


@pytest.mark.parametrize("words, said", [
    (["--baselines", "hinton"], "invalid choice: 'hinton'"),
    (["--baselines", "takd", "--baseline_set", "hinton_kd.alpha=1"], "one of takd.alpha, takd.temperature"),
    (["--baseline_set", "takd.alpha=1"], "one of none, since --baselines names no method"),
    (["--baselines", "takd", "--baseline_set", "takd.alpha=2"], "takd.alpha=2: '2' found"),
    (["--baselines", "takd", "--baseline_set", "takd.temperature=0"], "expected a number more than 0"),
    (["--baselines", "annealing_kd", "--baseline_set", "annealing_kd.steps=1.5"], "expected a whole number"),
    (["--baselines", "annealing_kd", "--baseline_set", "annealing_kd.share=0"], "more than 0 and at most 1"),
    (["--baselines", "theseus", "--baseline_set", "theseus.start=1.5"], "at least 0 and at most 1"),
    (["--baselines", "takd", "--baseline_set", "takd"], "expected METHOD.KEY=VALUE")])
def test_what_no_method_has_is_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--task", "CB", "--data_dir", "data", *words])
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_all_means_all_and_the_order_is_the_tables():
    args = parse_arguments(["--task", "CB", "--data_dir", "data", "--baselines", "all"])
    assert args.baselines == list(METHODS) and constants_of(args) == BASELINES
    args = parse_arguments(["--task", "CB", "--data_dir", "data", "--baselines", "takd", "hinton_kd",
                            "--baseline_set", "takd.temperature=2"])
    assert args.baselines == ["hinton_kd", "takd"]
    assert constants_of(args)["takd"] == {"alpha": 0.5, "temperature": 2.0}
    assert BASELINES["takd"]["temperature"] == 5.0


KILLED = {"nlayers": 2, "stop_after": "kd", "epochs": 3, "save_seconds": 0, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def made_phases(encoders, data_dir, tmp_path_factory):
    """Teacher and kd, which the methods' runs share."""
    folder = tmp_path_factory.mktemp("made")
    settings = {"task": "CB", "data_dir": data_dir, "teacher_model": encoders["bert"], **SMALL,
                "output_dir": folder / "run", **KILLED}
    assert main_superglue.main(parse_arguments(as_words(settings))) == 0
    return folder / "phases"


@pytest.mark.parametrize("method", ["annealing_kd", "takd", "rail_kd", "prokt", "metadistil", "tinybert",
                                    "theseus"])
def test_a_killed_method_goes_on_with_the_same_bytes(method, command, monkeypatch, made_phases, tmp_path):
    """annealing: the loss depends on how many steps were made; takd: both of its phases; rail_kd: the layers
    of the epoch, and what is learnt beside the student; prokt: the teacher that learns; metadistil: its quiz
    batches too; theseus: the layers that are drawn, and an optimizer that has not met all weights."""
    flags = dict(KILLED, baselines=[method])
    for name in ("whole", "killed"):
        shutil.copytree(made_phases, tmp_path / name / "phases")
    code, whole = command(folder="whole/run", **flags)
    assert code == 0 and json.loads((whole / "result.json").read_text())["reused"] == ["teacher", "kd"]
    steps, real, at = [0], baselines.backward, 24 if METHODS[method].teacher_loss else 12

    def dying(*given):
        steps[0] += 1
        if steps[0] == at:
            raise Killed
        return real(*given)

    monkeypatch.setattr(baselines, "backward", dying)
    with pytest.raises(Killed):
        command(folder="killed/run", **flags)
    monkeypatch.setattr(baselines, "backward", real)
    code, killed = command(folder="killed/run", **flags)
    assert code == 0 and "going on from" in (killed / "log.txt").read_text()
    assert weights_of(killed, method) == weights_of(whole, method)
    lines = [[{**line, "seconds": 0} for line in read_lines(folder / "metrics.jsonl")]
             for folder in (whole, killed)]
    assert lines[0] == lines[1]


def test_padding_changes_nothing(encoders, data_dir):
    """[CLS] states and logits of a row do not depend on how long its batch is."""
    import numpy as np
    from transformers import AutoTokenizer

    from data_utils import load_task
    from models import load_model
    from tasks import TASKS
    tokenizer = AutoTokenizer.from_pretrained(encoders["bert"])
    teacher, student = (load_model(encoders["bert"], [TASKS["CB"]], 1, role, layers).eval()
                        for role, layers in (("teacher", None), ("student", 2)))
    found = {}
    for padding in ("longest", "max_length"):
        split = load_task(TASKS["CB"], data_dir, tokenizer, 90, 42, 4, ("dev",), padding=padding)["dev"]
        batch = split.batch(np.arange(5))
        for method in METHODS:
            (ours, theirs), kind = METHODS[method].layers(4, 2), METHODS[method]
            given = []
            for model, layers in ((student, ours), (teacher, theirs[:1] if method == "rail_kd" else theirs)):
                with torch.no_grad():
                    answers = (baselines.all_answers(model.encoder, model.heads, "CB", batch, layers,
                                                     kind.attention) if kind.tokens else
                               baselines.cls_answers(model, "CB", batch, layers))
                given.append(Answers(*(part if part is None or not part.is_floating_point()
                                       else part.double() for part in vars(answers).values())))
            found[method, padding] = loss_of(method, *given, batch.labels, done=0.3)["loss"].item()
    assert batch.input_ids.shape[1] == 90
    for method in METHODS:
        assert found[method, "longest"] == pytest.approx(found[method, "max_length"], rel=1e-4), method

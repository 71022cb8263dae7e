"""The memory of a training step, predicted and measured; --gradient_checkpointing."""
import json
import math

import pytest
import torch
import transformers
from transformers import AutoConfig

import measure_memory
from bookkeeping import memory
from bookkeeping.memory import LiveBytes, Step, batch_of, predict_need
from conftest import tiny_sizes
from families import FAMILIES, make_family
from models import can_checkpoint, checkpoint_layers, load_model, set_training
from tasks import TASKS

CB = [TASKS["CB"]]
NOT_RECOMPUTED = {"ALBERT", "MPNet", "SqueezeBERT", "XLNet", "Funnel"}


def tiny_bert():
    return transformers.BertConfig(**tiny_sizes(300))


def test_live_bytes():
    with LiveBytes() as found:
        one = torch.ones(1000)
        same = one.view(10, 100).add_(1)
        assert found.live == 4000
        two = one + 1
        assert found.live == found.peak == 8000
        del one, same, two
        assert found.live == 0 and found.peak == 8000


def test_weights_gradients_and_moments_are_exact():
    hidden, inner, layers, words, places = 16, 32, 4, 300, 100
    norm = 2 * hidden
    layer = 4 * (hidden ** 2 + hidden) + 2 * hidden * inner + inner + hidden + 2 * norm
    body = (words + places + 2) * hidden + norm + layers * layer + hidden ** 2 + hidden
    weights = body + (3 * hidden + 3) + (hidden + 1)  # CB's head, state_predictor
    tensors = 3 + 2 + layers * 16 + 2 + 2 + 2         # AdamW counts the steps of each, in float32
    buffers = 2 * 8 * places                          # numbers of places, segments
    step = Step(4, 10)
    need = predict_need(tiny_bert(), CB, step)
    assert need.weights == 4 * weights
    assert need.kept == 3 * need.weights + 4 * tensors + buffers
    assert need.peak > need.kept + max(need.saved, need.weights)
    zeros = predict_need(tiny_bert(), CB, Step(4, 10, keeps_gradients=True))
    assert zeros.kept == need.kept + need.weights and zeros.saved == need.saved
    fewer = predict_need(tiny_bert(), CB, step, nlayers=1)
    assert need.weights - fewer.weights == 3 * 4 * layer


def test_checkpointing_keeps_the_inputs_of_layers():
    needs = [predict_need(tiny_bert(), CB, Step(8, 64), checkpointing=on) for on in (False, True)]
    inputs = 4 * 4 * 8 * 64 * 16  # float32, layers, rows, tokens, hidden
    assert inputs < needs[1].saved < 3 * inputs < needs[0].saved  # beside them those of the embeddings
    assert needs[1].kept == needs[0].kept and needs[1].peak < needs[0].peak


@pytest.mark.parametrize("precision", ("fp32", "bf16"))
@pytest.mark.parametrize("make", (measure_memory.bert, measure_memory.deberta))
def test_real_tensors_are_alive_as_predicted(make, precision, monkeypatch):
    """The same step on real tensors. Not exactly: transformers draws weights in other steps."""
    args = measure_memory.SimpleNamespace(rows=8, tokens=40, precision=precision)
    for checkpointing in (False, True):
        config = make(3, 32, num_attention_heads=2, vocab_size=200)
        with LiveBytes() as found:
            measure_memory.train_and_look(config, args, checkpointing)
        need = predict_need(make(3, 32, num_attention_heads=2, vocab_size=200), CB, Step(8, 40, (16, 40)),
                            bf16=precision == "bf16", checkpointing=checkpointing)
        assert need.peak == pytest.approx(found.peak, rel=0.01)


@pytest.mark.slow
def test_measured_peak_is_as_predicted():
    """In a fresh process, of a size whose libraries' own buffers do not count."""
    args = measure_memory.SimpleNamespace(rows=8, tokens=128, precision="fp32", timed=0, as_run=False)
    for job in ("plain", "recomputed"):
        need = predict_need(measure_memory.SIZES["bert-base"](), CB, Step(8, 128, (16, 128)),
                            checkpointing=job == "recomputed")
        assert need.peak == pytest.approx(measure_memory.ask(args, "bert-base", job), rel=0.1), job


# --- --gradient_checkpointing -------------------------------------------------------------------------------

def test_every_family_gives_the_same_gradients(tmp_path):
    """Bytes, with dropout on in bf16, and in the way of `released`; and layers are computed twice."""
    refused = set()
    for family in FAMILIES:
        folder = make_family(family, tmp_path / family)
        if not can_checkpoint(AutoConfig.from_pretrained(folder)):
            refused.add(family)
            continue
        for dropout, bf16 in (("training", family != "DeBERTa"),  # whose mask overflows in bf16
                              ("until_first_evaluation", False)):
            found, calls = [], []
            for on in (False, True):
                model = load_model(folder, CB, 1, "teacher", bf16=bf16)
                if on:
                    checkpoint_layers(model)
                set_training(model, dropout, evaluated=False)
                seen = []
                layer = max((part for part in model.encoder.body.modules()
                             if isinstance(part, torch.nn.ModuleList)), key=len)[0]
                inner = next(part for part in layer.modules() if not list(part.children()))
                inner.register_forward_hook(lambda *_, seen=seen: seen.append(True))
                torch.manual_seed(3)
                batch = batch_of(2, 12)
                batch.input_ids[:] = torch.arange(7, 31).view(2, 12)
                pooled, states = model.encoder(batch, layers=True)
                (model.heads("CB", pooled).square().sum() + states.square().sum()).backward()
                found.append([pooled, states, torch.rand(2), *(weight.grad for weight in model.parameters()
                                                               if weight.grad is not None)])
                calls.append(len(seen))
            assert all(torch.equal(one, other) for one, other in zip(*found, strict=True)), (family, dropout)
            assert calls[1] > calls[0], (family, dropout)
    assert refused == NOT_RECOMPUTED


def bytes_of(folder):
    """{what a run computed: bytes}, of the folder's run and its phases."""
    paths = [path for path in sorted(folder.parent.rglob("*")) if path.suffix in (".safetensors", ".npy")
             or path.parent.parent.parent.name == "predictions" or path.name == "trajectories.jsonl"]
    return {str(path.relative_to(folder.parent)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("flags", [
    {"kd_200": True, "baselines": ["distilbert", "prokt", "theseus"]},
    {"precision": "bf16"}, {"protocol": "released"}, {"protocol": "released", "precision": "bf16"}], ids=str)
def test_a_run_gives_the_same_bytes(flags, command):
    flags = {"nlayers": 2, "tasks": ["CB"], **flags}
    code, without = command(folder="without/run", **flags)
    again, folder = command(folder="with/run", gradient_checkpointing=True, **flags)
    assert code == again == 0
    assert bytes_of(folder) == bytes_of(without) and len(bytes_of(folder)) > 8


def test_the_flag_is_no_part_of_the_run(command, capsys):
    code, folder = command(stop_after="teacher")
    assert code == 0 and json.loads((folder / "args.json").read_text())["gradient_checkpointing"] is False
    code, _ = command(stop_after="teacher", gradient_checkpointing=True)
    assert code == 0 and "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("flags, words", [
    ({"baselines": ["metadistil"]}, "--baselines metadistil, which tries weights"),
    ({"baselines": ["tinybert"]}, "--baselines tinybert, which reads attention"),
    ({"baselines": ["hinton_kd", "minilm"]}, "leave minilm or the flag out"),
    ({"teacher_model": "mpnet"}, "--teacher_model has the model type 'mpnet'")])
def test_what_it_does_not_go_with_is_refused(flags, words, command, encoders, capsys):
    if "teacher_model" in flags:
        flags = {"teacher_model": encoders[flags["teacher_model"]]}
    code, folder = command(gradient_checkpointing=True, **flags)
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and words in error and "--gradient_checkpointing" in error
    assert not folder.exists()


# --- what the command says ----------------------------------------------------------------------------------

def test_the_command_says_what_it_predicts(command, capsys, monkeypatch, encoders):
    def said(folder, **flags):
        code, _ = command(folder=folder, stop_after="teacher", **flags)
        assert code == 0
        return next(line for line in capsys.readouterr().out.splitlines() if "MiB of memory" in line)

    assert "on cpu (at least, by weights alone)" in said("small")
    monkeypatch.setattr(memory, "SMALL", 0)
    sizes = [], []
    real = memory.predict_need

    def noting(*given, **more):
        sizes[more["checkpointing"]].append((given[2], real(*given, **more)))
        return sizes[more["checkpointing"]][-1][1]

    monkeypatch.setattr(memory, "predict_need", noting)
    assert "on cpu (predicted)" in said("predicted")
    assert "on cpu (predicted)" in said("recomputed", gradient_checkpointing=True)
    (teacher, of_teacher), (student, of_student) = sizes[0]
    assert teacher.rows == 8 and student.states and not student.keeps_gradients
    assert math.prod(teacher.look) > math.prod((teacher.rows, teacher.tokens))
    assert sizes[1][0][1].peak < of_teacher.peak and of_student.weights < of_teacher.weights
    line = said("zeros", set=["zero_grad=zeros"], baselines=["metadistil"])
    assert "but for what a virtual step" in line
    assert sizes[0][-1][0].keeps_gradients and sizes[0][-2][0].keeps_gradients

    def asking(*_, **__):
        raise RuntimeError("aten._local_scalar_dense.default")

    monkeypatch.setattr(memory, "predict_need", asking)
    assert "takes no fake tensors, RuntimeError: aten._local_scalar_dense" in said("asks")

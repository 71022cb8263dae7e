"""Encoders of four architectures, the cut student, frozen outputs, saving."""
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer

from benchmark import RunningEncoder
from bookkeeping.checkpoints import checksum_checkpoint
from data_utils import RandomStreams, batches_by_length, load_task
from meta_policy import Distillation, Evaluator, MetaTraining, distill_student, train_meta_teacher
from models import (
    FrozenEncoder,
    Heads,
    load_heads,
    load_model,
    load_weights,
    predict,
    predict_heads,
    save_heads,
    save_model,
)
from tasks import TASKS

KINDS = ("bert", "mpnet", "deberta", "distilbert")
TWO = [TASKS["CB"], TASKS["COPA"]]


def model_and_split(folder, data_dir, task="CB", nlayers=None, role="teacher"):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    split = load_task(TASKS[task], data_dir, tokenizer, 64, 42, 4, ("dev",))["dev"]
    return load_model(folder, TWO, 1, role, nlayers).eval(), split, tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_student_is_the_first_layers_of_the_checkpoint(kind, encoders, data_dir):
    """Its pooled output and [CLS] states are those of the whole encoder stopped after n layers."""
    teacher, split, _ = model_and_split(encoders[kind], data_dir)
    student, _, _ = model_and_split(encoders[kind], data_dir, nlayers=3, role="student")
    batch = split.batch(np.arange(5))
    _, teacher_states = teacher.encoder(batch, layers=True)
    pooled, student_states = student.encoder(batch, layers=True)
    assert (teacher_states.shape == (4, 5, 16) and student_states.shape == (3, 5, 16)
            and pooled.shape == (5, 16))
    torch.testing.assert_close(student_states, teacher_states[:3])
    whole = AutoModel.from_pretrained(encoders[kind])
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if kind == "bert":
        inputs["token_type_ids"] = batch.token_type_ids
    states = whole.eval()(**inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(student_states, torch.stack([state[:, 0] for state in states[1:4]]))
    first = student.encoder.dense(student.encoder.body(**inputs).last_hidden_state[:, 0])
    activation = {"distilbert": torch.relu, "deberta": torch.nn.functional.gelu}.get(kind, torch.tanh)
    torch.testing.assert_close(pooled, activation(first))  # as the family's own classifier has it


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_outputs(kind, encoders, data_dir):
    model, split, _ = model_and_split(encoders[kind], data_dir)
    together = model.encoder(split.batch(np.arange(6)))[0]
    alone = torch.cat([model.encoder(split.batch(np.array([n])))[0] for n in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_models_come_back_and_load_in_plain_transformers(kind, encoders, data_dir, tmp_path):
    model, split, tokenizer = model_and_split(encoders[kind], data_dir, nlayers=2, role="student")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    expected = predict(model, split, 4, "cpu")
    save_model(model, tmp_path / "m", ["CB"], tokenizer)
    other, _, _ = model_and_split(encoders[kind], data_dir, nlayers=2, role="student")
    load_weights(other, tmp_path / "m", ["CB"])
    assert torch.equal(predict(other, split, 4, "cpu"), expected)
    assert torch.equal(other.state_predictor.weight, model.state_predictor.weight)
    plain = AutoModel.from_pretrained(tmp_path / "m")
    assert plain.config.num_hidden_layers == 2
    for (name, a), b in zip(plain.state_dict().items(), model.encoder.body.state_dict().values()):
        assert torch.equal(a, b), name
    assert len(AutoTokenizer.from_pretrained(tmp_path / "m")) == len(tokenizer)


def test_layer_lists_of_a_configuration_are_cut_too(tmp_path):
    config = transformers.ModernBertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=4,
                                           num_attention_heads=2, intermediate_size=32,
                                           max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
                                           eos_token_id=2, cls_token_id=1, sep_token_id=2)
    transformers.ModernBertModel(config).save_pretrained(tmp_path / "whole")
    model = load_model(tmp_path / "whole", TWO, 1, "student", 2)
    model.encoder.body.save_pretrained(tmp_path / "cut")
    assert AutoModel.from_pretrained(tmp_path / "cut").config.num_hidden_layers == 2


def test_half_precision_checkpoints_are_loaded_in_float32(encoders, data_dir, tmp_path):
    body = AutoModel.from_pretrained(encoders["bert"]).half()
    body.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.float16
    model = load_model(tmp_path, TWO, 1, "teacher")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_heads_do_not_depend_on_the_other_tasks():
    one, all_of_them = Heads([TASKS["CB"]], 16, 3, "teacher"), Heads(list(TASKS.values()), 16, 3, "teacher")
    assert torch.equal(one.linear["CB"].weight, all_of_them.linear["CB"].weight)
    assert not torch.equal(one.linear["CB"].weight,
                           Heads([TASKS["CB"]], 16, 3, "student").linear["CB"].weight)
    assert all_of_them.linear["COPA"].out_features == 1 and all_of_them.linear["COPA"].bias.item() == 0
    assert 0.01 < Heads(TWO, 4000, 3, "x").linear["CB"].weight.std() < 0.03


def test_multiple_choice_scores_each_choice():
    heads = Heads(TWO, 16, 3, "teacher").eval()
    pooled = torch.randn(6, 16)  # three examples, two choices each
    logits = heads("COPA", pooled)
    assert logits.shape == (3, 2)
    torch.testing.assert_close(logits[1, 0], heads("COPA", pooled[2:4])[0, 0])


def test_heads_come_back(tmp_path):
    heads, other = Heads(TWO, 16, 3, "teacher"), Heads(TWO, 16, 4, "teacher")
    save_heads(heads, tmp_path, ["CB"])
    load_heads(other, tmp_path, ["CB"])
    assert torch.equal(heads.linear["CB"].weight, other.linear["CB"].weight)
    assert not torch.equal(heads.linear["COPA"].weight, other.linear["COPA"].weight)


def count_rows(encoder):
    """A list that grows by the rows of every pass of the encoder."""
    calls = []
    encoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output[0])))
    return calls


@pytest.mark.parametrize("task", ("CB", "COPA"))
def test_frozen_outputs_equal_the_encoder_and_run_it_once(task, encoders, data_dir):
    """To the bit where the encoder is run on the same batches, to 1e-6 of the largest output where the
    batches differ."""
    model, split, _ = model_and_split(encoders["bert"], data_dir, task)
    frozen, calls = FrozenEncoder(model.encoder, 4, torch.device("cpu")), count_rows(model.encoder)
    indices = np.array([7, 2, 11])
    pooled, states = frozen.outputs(split, indices, layers=2)
    assert sum(calls) == len(split) * TASKS[task].rows and len(states) == 2
    expected, expected_states = model.encoder(split.batch(indices), layers=True)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-6 * expected.abs().max().item())
    torch.testing.assert_close(states, expected_states[:2], rtol=0,
                               atol=1e-6 * expected_states.abs().max().item())
    for batch in batches_by_length(split, 4):
        expected, expected_states = model.encoder(split.batch(batch), layers=True)
        pooled, states = frozen.outputs(split, batch, layers=2)
        assert torch.equal(pooled, expected) and torch.equal(states, expected_states[:2])
    calls.clear()
    logits = predict_heads(model.heads, frozen, split)
    assert not calls and torch.equal(logits, predict(model, split, 4, "cpu"))


def test_predictions_keep_the_order_of_the_split(encoders, data_dir):
    model, split, _ = model_and_split(encoders["bert"], data_dir)
    one_by_one = torch.cat([model("CB", split.batch(np.array([n])))[0] for n in range(len(split))])
    torch.testing.assert_close(predict(model, split, 5, "cpu"), one_by_one, rtol=1e-5, atol=1e-6)


def test_checkpoint_checksum_sees_every_file(encoders, tmp_path):
    import shutil
    shutil.copytree(encoders["bert"], tmp_path / "copy")
    assert checksum_checkpoint(tmp_path / "copy") == checksum_checkpoint(encoders["bert"])
    (tmp_path / "copy" / "vocab.txt").write_text("other")
    assert checksum_checkpoint(tmp_path / "copy") != checksum_checkpoint(encoders["bert"])


@pytest.mark.parametrize("kind", ("bert", "deberta"))
def test_training_on_kept_outputs_equals_running_the_teacher(kind, encoders, data_dir):
    """An epoch of phase 2 and one of phase 3, dropout on: losses and gradient norms to 1e-6 relative (the
    batches differ)."""
    tokenizer = AutoTokenizer.from_pretrained(encoders[kind])
    data = load_task(TASKS["CB"], data_dir, tokenizer, 64, 42, 4, ("train", "quiz", "dev"))
    common = dict(epochs=1, batch_size=4, learning_rate=1e-3, weight_decay=0.01, max_grad_norm=1.0,
                  head_dropout=0.1, seed=1, select_on="dev", eval_batch_size=16, device="cpu",
                  precision="fp32", dropout="training", weight_decay_on="matrices", selection="main_metric",
                  data_order="own_generators", zero_grad="none")
    figures = []
    for outputs_of in (FrozenEncoder, RunningEncoder):
        teacher, student = load_model(encoders[kind], TWO, 1,
                                      "teacher"), load_model(encoders[kind], TWO, 1, "student", 3)
        outputs, moving = (outputs_of(model.encoder, 16, torch.device("cpu")) for model in (teacher, student))
        log = SimpleNamespace(event=lambda **line: figures.append(line),
                              progress=lambda *_: nullcontext(MagicMock()))
        distill_student(
            "kd", student, teacher.heads, outputs, data["train"],
            Distillation(**common, nlayers=3, temperature=5.0, alpha=0.5, beta=100.0, compared=[1, 2],
                         soft_loss="probabilities"),
            Evaluator(lambda split, student=student: predict(student, split, 16, "cpu"), {"dev": data["dev"]},
                      "dev", "main_metric"), RandomStreams(1, "kd", "own_generators"), log)
        heads = teacher.heads
        train_meta_teacher(
            heads, outputs, moving, data["quiz"], MetaTraining(**common, loss="com"),
            Evaluator(lambda split, heads=heads, outputs=outputs: predict_heads(heads, outputs, split),
                      {"dev": data["dev"]}, "dev", "main_metric"),
            RandomStreams(1, "meta_teacher", "own_generators"), log)
    for ours, running in zip(figures[:2], figures[2:]):
        for name in set(ours) - {"phase", "scores", "best", "seconds"}:
            assert ours[name] == pytest.approx(running[name], rel=1e-6), name
        assert ours["scores"]["dev"]["correct"] == running["scores"]["dev"]["correct"]

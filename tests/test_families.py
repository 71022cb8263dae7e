"""Encoders of many families: each runs as it should, or is refused with the reason. docs/FAMILIES.md has what
is found here; `--families_table docs/FAMILIES.md` writes it."""
import json
import re
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

from bookkeeping.checkpoints import open_checkpoints
from bookkeeping.probe import describe_probe
from conftest import ROOT, read_lines
from data_utils import load_task
from families import FAMILIES, edit_json, make_family
from models import load_model
from tasks import TASKS

PAGE = ROOT / "docs" / "FAMILIES.md"
NLAYERS, LENGTH = 3, 48
# what the refusal of a family says; the others run
REFUSED = {
    "ConvBERT": "padding changes what it computes",
    "BigBird, sparse": "set attention_type to original_full",
    "XLNet": "its summary token <cls> is last",
    "FNet": "FNetModel takes no attention mask",
    "Funnel": "7 hidden states",
    "GPT-2": "expected one special token",
    "GPT-2 with BERT's tokenizer": "its first token does not see the last one",
    "BERT as a decoder": "is_decoder is true in its config.json",
}
FLAGS = {"ConvBERT, padding=max_length": {"set": ["padding=max_length"]}}
ROWS = {}  # family: its cells


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The first rows of CB: 24 to learn from."""
    folder = tmp_path_factory.mktemp("families") / "CB"
    folder.mkdir()
    for split, size in {"train": 24, "val": 6}.items():
        lines = (ROOT / "sample_data" / "CB" / f"{split}.jsonl").read_text().splitlines()[:size]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder.parent


@pytest.fixture
def run(command, data):
    def run(encoder, **flags):
        return command(teacher_model=encoder, data_dir=data, nlayers=NLAYERS, max_seq_length=LENGTH,
                       val_dataloader_size=2, train_dataloader_size=6, **flags)
    return run


def page():
    """docs/FAMILIES.md."""
    rows = [ROWS[family] for family in FAMILIES if family in ROWS]
    return (
        "# Families of encoders\n\nWhat becomes of an encoder of each family, tried with tiny random weights "
        f"({NLAYERS} of 4 layers as\nthe student, {LENGTH} tokens) through the command line. Other families "
        "are tried in the same way when a run\nstarts: nothing is asked by name. Written by\n"
        "`scripts/test.sh -n 0 tests/test_families.py --families_table docs/FAMILIES.md`.\n\n"
        "| family | model | | pooled output | remarks, or the reason |\n|---|---|---|---|---|\n"
        + "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)
    )


def reason(error, folder):
    """What a refusal says, without the folder and the numbers of tokens."""
    text = error.strip().removeprefix("error: ").replace(f"--teacher_model {folder}: ", "")
    return re.sub(r" \(ids \[.*?\]\)", "", text)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_runs_or_is_refused(family, run, data, tmp_path, capsys):
    folder = make_family(family, tmp_path / "encoder")
    code, output = run(folder, **FLAGS.get(family, {}))
    said = capsys.readouterr()
    model = type(AutoModel.from_pretrained(folder)).__name__
    if family in REFUSED:
        assert code == 2 and said.err.count("\n") == 1 and REFUSED[family] in said.err
        assert not output.exists() and not (tmp_path / "phases").exists()
        ROWS[family] = (family, model, "refused", "", reason(said.err, folder))
    else:
        assert code == 0, said.err
        probe = json.loads((output / "result.json").read_text())["probe"]
        check_student(folder, data, probe)
        check_trained(folder, output, probe["student"]["pooled"] == "its own pooler")
        assert [line for line in describe_probe(probe) if line not in said.out] == []
        ROWS[family] = (family, model, "runs", probe["student"]["pooled"], remarks(probe, FLAGS.get(family)))
    if PAGE.exists():
        assert f"| {' | '.join(ROWS[family])} |" in PAGE.read_text(encoding="utf-8").splitlines()


def remarks(probe, flags):
    """What is worth saying of a family that runs."""
    found = [f"with `--set {choice}`" for choice in (flags or {}).get("set", ())]
    if probe["student"]["last_norm"]:
        found.append(f"its `{probe['student']['last_norm']}` stands behind the student's last layer")
    return "; ".join(found)


def check_student(folder, data, probe):
    """The student is the checkpoint's first layers, by transformers alone: its [CLS] states are those of the
    whole encoder, and its pooled output that of its own pooler, where it has one."""
    task, tokenizer, seen = TASKS["CB"], AutoTokenizer.from_pretrained(folder), []
    batch = load_task(task, data, tokenizer, LENGTH, 42, 2, ("dev",))["dev"].batch(np.arange(3))
    teacher, student = (load_model(folder, [task], 1, "x", layers).eval() for layers in (None, NLAYERS))
    student.encoder.body.register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad():
        pooled, states = student.encoder(batch, layers=True)
        theirs = teacher.encoder(batch, layers=True)[1]
    torch.testing.assert_close(states[:-1], theirs[:NLAYERS - 1])
    assert states.shape == (NLAYERS, 3, 16) and pooled.shape == (3, 16)
    last, wanted = seen[0].last_hidden_state[:, 0], theirs[NLAYERS - 1]
    if probe["student"]["last_norm"]:
        wanted = dict(student.encoder.body.named_modules())[probe["student"]["last_norm"]](wanted)
    torch.testing.assert_close(last, wanted)
    own = probe["student"]["pooled"] == "its own pooler"
    assert own == (student.encoder.pooler is None)
    if own:
        assert torch.equal(pooled, seen[0].pooler_output) and pooled.abs().max() > 0
    assert student.encoder.pooler_weight.shape == (16, 16)


def check_trained(folder, output, own_pooler):
    """The run's student loads in plain transformers, and its layers and its pooler have learnt."""
    trained, before = map(AutoModel.from_pretrained, (output / "models" / "student", folder))
    assert trained.config.num_hidden_layers == NLAYERS and type(trained) is type(before)
    before = before.state_dict()
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])}
    layers = [name for name in moved if re.search(r"\blayers?\.|albert_layers\.|encoder\.", name)]
    assert layers and (not own_pooler or any("pooler" in name for name in moved))


def test_the_page_has_each_family_once():
    """Each row is held to what is found, above."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == [
        "| family", *(f"| {family}" for family in FAMILIES)]
    assert set(REFUSED) < set(FAMILIES)


# --- the pooler ---------------------------------------------------------------------------------------------

def losses(run, folder, name):
    code, output = run(folder, stop_after="teacher", folder=name, phase_dir=folder.parent / f"phases_{name}")
    assert code == 0
    return [line["loss"] for line in read_lines(output / "metrics.jsonl")]


@pytest.mark.parametrize("family", ("ALBERT", "BigBird", "SqueezeBERT", "BERT"))
def test_a_trained_pooler_is_used_whatever_its_form(family, run, tmp_path):
    """Two checkpoints that differ in the pooler alone give different losses."""
    one, other = (make_family(family, tmp_path / name) for name in ("one", "other"))
    weights = load_file(other / "model.safetensors")
    name = next(name for name in ("pooler.weight", "pooler.dense.weight") if name in weights)
    save_file({**weights, name: weights[name] + 0.5 * torch.eye(16)}, other / "model.safetensors",
              metadata={"format": "pt"})
    assert losses(run, one, "run_one") != losses(run, other, "run_other")


def test_a_student_that_is_taken_further_keeps_its_pooler(run, tmp_path, capsys):
    """It lies in heads.safetensors where the student's class has no place for it, and is read when that
    student is the encoder of another run."""
    for family, name, said in (
            ("DistilBERT", "pooler.whole.pre_classifier.weight",
             "that of its family's classifier, read from heads.safetensors"),
            ("RoBERTa", "own_pooler.weight", "pooled output: its own pooler")):
        code, output = run(make_family(family, tmp_path / family / "encoder"), folder=f"{family}/run")
        assert code == 0
        student = output / "models" / "student"
        stored = load_file(student / "heads.safetensors")[name]
        assert torch.equal(load_model(student, [TASKS["CB"]], 5, "teacher").encoder.dense.weight, stored)
        capsys.readouterr()
        assert run(student, folder=f"{family}/again", stop_after="teacher")[0] == 0
        out = capsys.readouterr().out
        assert said in out and f"--teacher_model {student}" in out and "drawn at random" not in out


def test_pooler_weights_that_are_left_out_are_said(run, tmp_path, capsys):
    """DeBERTa's classifier has a pooler that is no part of its encoder."""
    folder = make_family("DeBERTa v3", tmp_path / "encoder")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "pooler.dense.weight": torch.eye(16), "pooler.dense.bias": torch.zeros(16)},
              folder / "model.safetensors", metadata={"format": "pt"})
    assert run(folder, stop_after="teacher")[0] == 0
    out = capsys.readouterr().out
    assert "checkpoint's pooler.dense.bias, pooler.dense.weight: no part of DebertaV2Model, left out" in out
    assert "warning: the tokenizer gives no segments" not in out


# --- cutting ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family, name, value, cut", [
    ("Longformer", "attention_window", [8, 8, 4, 8], [8, 8, 4]),
    ("ModernBERT", "layer_types", None, 3),
    ("DeBERTa", "pos_att_type", ["p2c", "c2p"], ["p2c", "c2p"]),  # an entry a kind, not a layer
])
def test_lists_with_an_entry_a_layer_are_cut(family, name, value, cut, tmp_path):
    changes = {} if value is None else {name: value}
    folder = make_family(family, tmp_path / "encoder", **changes)
    student = load_model(folder, [TASKS["CB"]], 1, "student", NLAYERS).encoder.body
    student.save_pretrained(tmp_path / "student")
    config = AutoConfig.from_pretrained(tmp_path / "student")
    assert config.num_hidden_layers == NLAYERS
    assert getattr(config, name) == cut if isinstance(cut, list) else len(getattr(config, name)) == cut


def test_a_list_that_is_as_long_by_chance_stays_whole(tmp_path):
    folder = make_family("DeBERTa", tmp_path / "encoder", num_hidden_layers=2)
    student = load_model(folder, [TASKS["CB"]], 1, "student", 1).encoder.body
    assert student.config.num_hidden_layers == 1 and list(student.config.pos_att_type) == ["p2c", "c2p"]


def test_segments_that_are_not_given_are_said(run, tmp_path, capsys):
    folder = make_family("ALBERT", tmp_path / "encoder")
    edit_json(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    assert run(folder, stop_after="teacher")[0] == 0
    assert "warning: the tokenizer gives no segments" in capsys.readouterr().out


def test_the_probe_leaves_the_random_generator_alone(tmp_path):
    folder = make_family("DistilBERT", tmp_path / "encoder")
    args = Namespace(teacher_model=folder, student_model=folder, nlayers=2, max_seq_length=LENGTH)
    checkpoints = open_checkpoints(args)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    checkpoints.probe(args, Namespace(padding="longest", cls_segment="tokenizer"))
    assert torch.equal(torch.get_rng_state(), before)


def test_two_checkpoints_are_both_probed(run, tmp_path, capsys):
    """The student's own checkpoint is tried whole and cut."""
    teacher = make_family("BERT", tmp_path / "encoder")
    student = make_family("BERT", tmp_path / "other", seed=1)
    code, output = run(teacher, student_model=student, stop_after="kd")
    assert code == 0
    probe = json.loads((output / "result.json").read_text())["probe"]
    assert probe["student"]["cut_from"] == 4 and "cut_from" not in probe["teacher"]
    shutil.rmtree(output)
    edit_json(student / "config.json", is_decoder=True)
    capsys.readouterr()
    assert run(teacher, student_model=student, stop_after="kd")[0] == 2
    assert f"--student_model {student}: its first token does not see" in capsys.readouterr().err

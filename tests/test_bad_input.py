"""What cannot be used is refused: exit code 2, one line on stderr that names it, nothing written."""
import json
import os
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import processors

from conftest import corpus, make_encoder, read_lines, tiny_sizes
from families import edit_json, make_family


@pytest.fixture
def data(data_dir, tmp_path):
    """A copy of the data to spoil."""
    return shutil.copytree(data_dir, tmp_path / "data")


def spell(value):
    """A parameter as the table of bad input shows it: what was given, not what is expected."""
    if isinstance(value, (dict, str)) and value != "":
        return ascii(value)[:60] if isinstance(value, dict) else value[:60]
    return "" if isinstance(value, tuple) else None


def said(verdict, line):
    """Remember a line for --bad_input_table, without the folders of this machine."""
    name, _, given = re.search(r"::test_(.*) \(call\)", os.environ["PYTEST_CURRENT_TEST"])[1].partition("[")
    line = re.sub(r"(/[\w.-]+)*/pytest-of-\w+/[\w-]+/[\w.-]+", "DIR", line.strip())
    TABLE.append((f"{name.replace('_', ' ')} {given.removesuffix(']').rstrip('-')}".strip(), verdict, line))


TABLE = []  # (what was given, refused or handled, what was said), which conftest.py writes down


def refused(command, capsys, *expected, **flags):
    code, folder = command(**flags)
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    for words in expected:
        assert str(words) in error
    assert not folder.exists()
    said("refused", error)


def handled(command, capsys, *expected, **flags):
    """The run goes on, and the log says what was found."""
    code, _ = command(stop_after="teacher", **flags)
    out = capsys.readouterr().out
    assert code == 0
    for words in expected:
        line = next((line for line in out.splitlines() if words in line), None)
        assert line, (words, out)
        said("handled", line)
    if not expected:
        said("handled", "read like any other")
    return out


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({"task": "XNLI"}, ("--task", "'XNLI'", "BoolQ, CB, COPA, RTE, WiC, WSC, MNLI", "task.json")),
        ({"tasks": ["CB", "XYZ"]}, ("--tasks", "'XYZ'")),
        ({"reward_function": "ternary"}, ("--reward_function", "ternary", "binary", "real")),
        ({"curriculum": "random"}, ("--curriculum", "random", "uniform")),
        ({"protocol": "mine"}, ("--protocol", "mine")),
        ({"data_dir": "nowhere"}, ("--data_dir nowhere", "no such folder")),
        ({"nlayers": 0}, ("--nlayers", "'0'", "at least 1")),
        ({"nlayers": 5}, ("--nlayers 5", "4 layers")),
        ({"teacher_model": "nowhere/at/all"}, ("--teacher_model nowhere/at/all", "no such folder")),
        ({"max_seq_length": 97}, ("--max_seq_length 97", "at most 96")),
        ({"val_dataloader_size": 7}, ("--val_dataloader_size 7", "6 quiz examples")),
        ({"alpha": 1.5}, ("--alpha", "1.5", "at most 1")),
        ({"beta": -1}, ("--beta", "'-1'", "at least 0")),
        ({"temperature": 0}, ("--temperature", "more than 0")),
        ({"learning_rate": "nan"}, ("--learning_rate", "'nan'")),
        ({"learning_rate": "fast"}, ("--learning_rate", "'fast'", "a number")),
        ({"set": ["colour=red"]}, ("--set colour=red", "'colour'", "dropout")),
        (
            {"set": ["dropout=never"]},
            ("--set dropout=never", "dropout=training", "dropout=until_first_evaluation"),
        ),
        ({"protocol": "released", "meta_epochs": 3}, ("--meta_epochs 3", "--epochs 1", "same")),
        ({"report_to": "mlflow"}, ("--report_to", "mlflow")),
        ({"learning_rat": 1}, ("--learning_rat",)),  # no abbreviations
        *[
            ({name: value}, (f"--{name}", f"'{value}'"))
            for name in (
                "teacher_epochs",
                "epochs",
                "meta_epochs",
                "num_episodes",
                "train_dataloader_size",
                "val_dataloader_size",
                "eval_batch_size",
            )
            for value in (0, -3)
        ],
        *[
            ({name: value}, (f"--{name}", f"'{value}'"))
            for name in ("teacher_learning_rate", "learning_rate", "meta_learning_rate", "max_grad_norm")
            for value in (0, -0.1)
        ],
    ],
    ids=spell,
)
def test_flags(flags, expected, command, capsys):
    refused(command, capsys, *expected, **flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_where_there_is_none(command, capsys):
    refused(command, capsys, "--device cuda", "use --device cpu", device="cuda")


def test_tf32_on_a_cpu(command, capsys):
    refused(command, capsys, "--precision tf32: found on a CPU, which has no TF32", "use --precision fp32",
            precision="tf32")


@pytest.mark.parametrize("there", (False, True))
def test_bf16_on_a_cpu_warns_where_it_is_slow(there, command, capsys, monkeypatch):
    monkeypatch.setattr("bookkeeping.machine.cpu_has_bf16", lambda: there)
    assert command(precision="bf16", stop_after="teacher")[0] == 0
    assert ("warning: --precision bf16" in capsys.readouterr().err) != there


@pytest.mark.parametrize("tracker", ("tensorboard", "wandb"))
def test_a_tracker_that_is_not_installed(tracker, command, capsys, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if tracker == "tensorboard" else "wandb", None)
    refused(command, capsys, f"--report_to {tracker}", f"pip install {tracker}", report_to=tracker)


def replace_row(path, number, **changes):
    rows = read_lines(path)
    rows[number] = {key: value for key, value in {**rows[number], **changes}.items() if value is not ...}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "task, changes, expected",
    [
        ("CB", {"label": "maybe"}, ("label 'maybe'", "entailment, contradiction, neutral")),
        ("COPA", {"label": 2}, ("label 2", "0, 1")),
        ("CB", {"premise": ...}, ("field 'premise' missing",)),
        ("CB", {"premise": 7}, ("field 'premise': 7", "text")),
        ("CB", {"idx": ...}, ("field 'idx'",)),
        ("CB", {"idx": 5}, ("idx 5 stands already at", "train.jsonl:6")),
        ("CB", {"label": ...}, ("no label", "59 other examples")),
        ("COPA", {"question": "why"}, ("field question", "'why'")),
        ("WiC", {"start1": 900}, ("fields start1, end1: 900..",)),
        ("WiC", {"start1": "x"}, ("field 'start1': 'x'", "whole number")),
        (
            "WSC",
            {"target": {"span1_index": 99, "span1_text": "a", "span2_index": 0, "span2_text": "b"}},
            ("span1_index", "word index 99"),
        ),
    ],
    ids=spell,
)
def test_rows(task, changes, expected, command, capsys, data):
    replace_row(data / task / "train.jsonl", 6, **changes)
    refused(command, capsys, f"{data}/{task}/train.jsonl:7: ", *expected, task=task, data_dir=data)


@pytest.mark.parametrize("text, expected", [
    ('{"premise": "p"', ("train.jsonl:1", "not JSON")), ("[1, 2]", ("train.jsonl:1", "list found", "object")),
    ("", ("train.jsonl", "no examples")), (b"\xff\xfe", ("train.jsonl:1", "not UTF-8")),
], ids=spell)
def test_files(text, expected, command, capsys, data):
    (data / "CB" / "train.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(command, capsys, *expected, data_dir=data)


HALF = "\\ud83d"  # of a character, as JSON escapes it


@pytest.mark.parametrize("task, old, new, expected", [
    ("CB", '"idx": 6', '"idx": ' + "9" * 5000, ("a number of more than 4300 digits",)),
    ("CB", '"idx": 6', '"more": [1, ' + "9" * 5000 + '], "idx": 6', ("a number of more than 4300 digits",)),
    ("WiC", '"start1": ', '"start1": ' + "9" * 99, ("field 'start1': 999", "expected a whole number")),
    ("CB", '"idx": 6', '"more": ' + "[" * 3000 + "]" * 3000 + ', "idx": 6', ("nested too deep",)),
    ("CB", '"idx": 6', '"more": ' + '{"a":' * 3000 + "1" + "}" * 3000 + ', "idx": 6', ("nested too deep",)),
    ("CB", '"idx": 6', '"idx": Infinity', ("field 'idx': inf", "finite")),
    ("CB", '"idx": 6', '"idx": 1e999', ("field 'idx': inf", "finite")),
    ("CB", '"idx": 6', '"more": {"a": [NaN]}, "idx": 6', ("field 'a': [nan]", "finite")),
    ("CB", '"label": ', '"label": "neutral", "label": ', ("field 'label' stands twice",)),
    ("CB", '"idx": 6', '"more": {"a": 1, "a": 2}, "idx": 6', ("field 'a' stands twice",)),
    ("CB", '"premise": "', f'"premise": "{HALF}', ("field 'premise': " + HALF, "Unicode")),
    ("CB", '"label": "', f'"label": "{HALF}', ("field 'label': " + HALF,)),
    ("CB", '"idx": 6', f'"idx": "{HALF}"', ("field 'idx': " + HALF,)),
    ("CB", '"idx": 6', f'"a{HALF}": 1, "idx": 6', ("field 'a" + HALF,)),
    ("WSC", '"span1_text": "', f'"span1_text": "{HALF}', ("field 'span1_text': " + HALF,)),
    ("WSC", '"target": {', '"target": {"idx": 7, ', ("field 'idx' stands both in 'target' and beside it",)),
    ("WSC", '"target": {', '"target": {"label": true, ', ("field 'label' stands both in 'target' and",)),
    ("WSC", '"target": {', '"target": "he", "more": {', ("field 'target': 'he'", "expected an object")),
], ids=spell)
def test_lines(task, old, new, expected, command, capsys, data):
    """What json would let pass, or end with a traceback."""
    path = data / task / "train.jsonl"
    lines = path.read_text().splitlines(True)
    assert old in lines[6]
    path.write_text("".join([*lines[:6], lines[6].replace(old, new, 1), *lines[7:]]))
    refused(command, capsys, f"{path}:7: ", *expected, task=task, data_dir=data, tasks=[task])


def test_missing_folder_and_files(command, capsys, data):
    (data / "CB" / "val.jsonl").unlink()
    refused(command, capsys, "CB/val.jsonl: no such file", data_dir=data)
    (data / "CB" / "train.jsonl").unlink()
    refused(command, capsys, "CB: neither train.jsonl nor train.tsv", data_dir=data)
    shutil.rmtree(data / "CB")
    refused(command, capsys, "--data_dir", "no folder CB", data_dir=data)


def test_models_that_are_none(command, capsys, tmp_path, encoders):
    (tmp_path / "empty").mkdir()
    refused(command, capsys, "no config.json", teacher_model=tmp_path / "empty")
    pickled = shutil.copytree(encoders["bert"], tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(command, capsys, "only pytorch_model.bin found", "save_pretrained", teacher_model=pickled)
    unknown = shutil.copytree(encoders["bert"], tmp_path / "unknown")
    (unknown / "config.json").write_text('{"model_type": "abacus"}')
    refused(command, capsys, f"--teacher_model {unknown}", "abacus", teacher_model=unknown)


def test_weights_that_do_not_fit(command, capsys, tmp_path, encoders):
    def spoiled(name):
        return shutil.copytree(encoders["bert"], tmp_path / name) / "model.safetensors"

    cut = spoiled("cut")
    cut.write_bytes(cut.read_bytes()[:-100])
    refused(command, capsys, f"--student_model {cut.parent}", "cannot be loaded", student_model=cut.parent)
    tensors = load_file(encoders["bert"] / "model.safetensors")
    resized = spoiled("resized")
    save_file({**tensors, "embeddings.word_embeddings.weight": torch.zeros(3, 3)}, resized,
              metadata={"format": "pt"})
    refused(command, capsys, f"--teacher_model {resized.parent}", "cannot be loaded",
            teacher_model=resized.parent)
    other = spoiled("other")
    save_file({"weight": torch.zeros(3, 3)}, other, metadata={"format": "pt"})
    refused(command, capsys, f"--teacher_model {other.parent}", "weights are missing",
            teacher_model=other.parent)
    renamed = spoiled("renamed")
    renamed.rename(renamed.with_name("weights.safetensors"))
    refused(command, capsys, f"--teacher_model {renamed.parent}", "no weights found",
            teacher_model=renamed.parent)


def test_a_tsv_row_of_another_width(command, capsys, tmp_path):
    (tmp_path / "data" / "CB").mkdir(parents=True)
    (tmp_path / "data" / "CB" / "train.tsv").write_text("id\tpremise\thypothesis\tlabel\n0\tp\n")
    refused(command, capsys, "train.tsv:2: 2 columns found, expected 4: id, premise, hypothesis, label",
            data_dir=tmp_path / "data")


@pytest.mark.parametrize("text, message", [
    ("0\tp\th\tneutral\n", "train.tsv:1: columns '0', 'p', 'h', 'neutral' found, expected a header"),
    ("id\tpremise\tlabel\n0\tp\tneutral\n", "missing: hypothesis"),
    ("id\tidx\tpremise\thypothesis\n0\t0\tp\th\n", "train.tsv:1: column 'idx' stands twice")])
def test_a_tsv_without_its_header(text, message, command, capsys, tmp_path):
    (tmp_path / "data" / "CB").mkdir(parents=True)
    (tmp_path / "data" / "CB" / "train.tsv").write_text(text)
    refused(command, capsys, message, data_dir=tmp_path / "data")


def test_an_unlabelled_quiz_file(command, capsys, tmp_path):
    (tmp_path / "data" / "CB").mkdir(parents=True)
    for name, label in (("train", "\tneutral"), ("held", ""), ("dev", "\tneutral")):
        rows = "".join(f"{n}\tp\th{label}\n" for n in range(5))
        (tmp_path / "data" / "CB" / f"{name}.tsv").write_text("id\tpremise\thypothesis\tlabel\n" + rows)
    refused(command, capsys, "held.tsv:2: no label found", data_dir=tmp_path / "data")


def test_phase_dir(command, capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    refused(command, capsys, f"--phase_dir {tmp_path}/file: cannot be made", phase_dir=tmp_path / "file")
    refused(command, capsys, "--fresh: found together with --phase_dir", phase_dir=tmp_path / "phases",
            fresh=True)


def test_a_folder_whose_data_has_changed(command, capsys, data):
    assert command(stop_after="teacher", data_dir=data)[0] == 0
    (data / "CB" / "train.jsonl").write_text("".join(
        (data / "CB" / "train.jsonl").read_text().splitlines(True)[:-1]))
    code, folder = command(stop_after="teacher", data_dir=data)
    error = capsys.readouterr().err
    assert code == 2 and "made from other data or encoders (CB/" in error
    (folder / "args.json").write_text("{")
    assert (command(stop_after="teacher", data_dir=data)[0] == 2
            and "args.json: cannot be read" in capsys.readouterr().err)


def test_a_hub_model_without_a_hub(command, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(command, capsys, "--teacher_model nobody/nothing", "HF_HUB_OFFLINE", "get_encoder.sh",
            teacher_model="nobody/nothing")


def test_teacher_and_student_that_do_not_fit(command, capsys, tmp_path, encoders):
    wide = make_encoder("bert", tmp_path / "wide", hidden_size=32)
    refused(command, capsys, "hidden size 32", "teacher's 16", "pkd", student_model=wide)
    refused(command, capsys, "vocabulary", "share a tokenizer", student_model=encoders["mpnet"])
    shallow = make_encoder("bert", tmp_path / "shallow", num_hidden_layers=2)
    refused(command, capsys, "--nlayers 3", "--teacher_model has 2 layers", teacher_model=shallow,
            student_model=encoders["bert"])
    small = make_encoder("bert", tmp_path / "small", vocab_size=50)
    refused(command, capsys, "vocabulary 50", teacher_model=small)


def test_a_folder_that_is_another_run(command, capsys, tmp_path):
    assert command(stop_after="teacher")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, folder = command(stop_after="teacher", seed=7, learning_rate=0.1)
    error = capsys.readouterr().err
    assert code == 2 and "--learning_rate 3e-05 there, 0.1 now; --seed 42 there, 7 now" in error
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    code, _ = command(folder="other")
    assert (code == 2 and "no run folder" in capsys.readouterr().err
            and [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.tex"])




def test_a_tokenizer_without_a_padding_token(command, capsys, tmp_path, encoders):
    folder = shutil.copytree(encoders["deberta"], tmp_path / "unpadded")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key != "pad_token"}))
    refused(command, capsys, f"--teacher_model {folder}", "no padding token", teacher_model=folder)


# --- encoders and tokenizers (those of each family: tests/test_families.py) ---------------------------------

@pytest.mark.parametrize("family, expected", [
    ("BERT as a decoder", ("its first token does not see the last one", "is_decoder is true")),
    ("GPT-2 with BERT's tokenizer", ("its first token does not see the last one",)),
    ("GPT-2", ("The", "(ids [", "expected one special token", "[CLS] a [SEP] b [SEP]")),
    ("XLNet", ("its summary token <cls> is last", "<sep> <cls>")),
    ("FNet", ("FNetModel takes no attention mask", "padding")),
    ("Funnel", ("hidden states", "expected 5")),
], ids=spell)
def test_encoders_that_do_not_suit_the_method(family, expected, command, capsys, tmp_path):
    folder = make_family(family, tmp_path / "encoder")
    refused(command, capsys, f"--teacher_model {folder}: ", *expected, teacher_model=folder)


def template(*, single="[CLS] $A [SEP]", pair):
    """A post-processor of tokenizer.json that puts special tokens where the templates have them."""
    return json.loads(processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("[CLS]", 1), ("[SEP]", 2)]).__getstate__())


@pytest.mark.parametrize("processor", [
    None,
    template(pair="$A $B"),
    template(pair="[CLS] $A $B [SEP]"),
    template(pair="[CLS] [CLS] $A [SEP] $B [SEP]"),
    template(pair="[CLS] $A [SEP] [CLS] $B [SEP]"),
    template(pair="[CLS] $A [SEP] $B"),
    template(pair="[SEP] $A [SEP] $B [SEP]"),
    template(pair="$A [SEP] $B [SEP] [CLS]"),
], ids=lambda value: " ".join(next(iter(part.values()))["id"] for part in value["pair"]) if value else "none")
def test_special_tokens_that_are_not_where_they_should_be(processor, command, capsys, tmp_path, encoders):
    folder = shutil.copytree(encoders["deberta"], tmp_path / "encoder")
    edit_json(folder / "tokenizer.json", post_processor=processor)
    refused(command, capsys, f"--teacher_model {folder}: its ", "tokenizer reads", "(ids [",
            teacher_model=folder)


@pytest.mark.parametrize("kind", ("bert", "mpnet", "deberta"))
def test_a_tokenizer_without_its_files(kind, command, capsys, tmp_path, encoders):
    """BERT's loads all the same, and would read every word as unknown."""
    folder = shutil.copytree(encoders[kind], tmp_path / "encoder")
    (folder / ("tokenizer.json" if kind == "deberta" else "vocab.txt")).unlink()
    refused(command, capsys, f"--teacher_model {folder}: ", "tokenizer", teacher_model=folder)


@pytest.mark.parametrize("content", (b"", b"[PAD]\n", b'{"version": "1.0", "mod', b"\xff\xfe\x00", b"[1, 2]"))
@pytest.mark.parametrize("kind, name", [("bert", "vocab.txt"), ("deberta", "tokenizer.json"),
                                        ("bert", "tokenizer_config.json"), ("bert", "config.json")])
def test_damaged_files_of_an_encoder(kind, name, content, command, capsys, tmp_path, encoders):
    folder = shutil.copytree(encoders[kind], tmp_path / "encoder")
    (folder / name).write_bytes(content)
    refused(command, capsys, f"--teacher_model {folder}: ", teacher_model=folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22\nsize 9\n"


@pytest.mark.parametrize("kind, name", [
    ("bert", "vocab.txt"), ("bert", "model.safetensors"), ("bert", "config.json"),
    ("deberta", "tokenizer.json"), ("deberta", "spm.model"), ("bert", "model.safetensors.index.json"),
    ("bert", "model-00001-of-00002.safetensors")])
def test_a_clone_without_git_lfs(kind, name, command, capsys, tmp_path, encoders):
    folder = shutil.copytree(encoders[kind], tmp_path / "encoder")
    if "model-" in name or "index" in name:
        (folder / "model.safetensors").unlink()
        index = {"metadata": {}, "weight_map": {"embeddings": "model-00001-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / name).write_text(POINTER)
    refused(command, capsys, f"--teacher_model {folder / name}", "git lfs pull", teacher_model=folder)


def test_a_pointer_that_is_not_read(command, capsys, tmp_path, encoders):
    """Weights of other frameworks may well be left out of a clone."""
    folder = shutil.copytree(encoders["bert"], tmp_path / "encoder")
    (folder / "pytorch_model.bin").write_text(POINTER)
    handled(command, capsys, teacher_model=folder)


@pytest.fixture(scope="module")
def sentencepiece_encoder(tmp_path_factory):
    """A DeBERTa v3 whose tokenizer is a SentencePiece model alone."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    folder = make_family("DeBERTa v3", tmp_path_factory.mktemp("sentencepiece") / "encoder")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with open(folder / "spm.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()), model_writer=file, vocab_size=300, minloglevel=2,
            pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]",
            unk_piece="[UNK]", user_defined_symbols=["[MASK]"])
    return folder


def test_a_sentencepiece_model_alone(sentencepiece_encoder, command, capsys):
    handled(command, capsys, teacher_model=sentencepiece_encoder)


@pytest.mark.parametrize("absent", ("sentencepiece", "google.protobuf", "sentencepiece google.protobuf"))
def test_a_sentencepiece_model_without_packages(absent, sentencepiece_encoder, command, capsys, monkeypatch):
    monkeypatch.delattr("sentencepiece.sentencepiece_model_pb2", raising=False)  # is kept, and has read both
    monkeypatch.delitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", raising=False)
    for package in absent.split():
        for name in {package, *(name for name in sys.modules if name.startswith(f"{package}."))}:
            monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    names = ", ".join(absent.replace("google.", "").split())
    refused(command, capsys, "spm.model found", f"not installed: {names};",
            "pip install sentencepiece protobuf", teacher_model=sentencepiece_encoder)


def test_a_sentencepiece_model_that_is_damaged(sentencepiece_encoder, command, capsys, tmp_path):
    folder = shutil.copytree(sentencepiece_encoder, tmp_path / "encoder")
    (folder / "spm.model").write_bytes(b"\x00" * 100)
    refused(command, capsys, "spm.model found", "cannot read", teacher_model=folder)


@pytest.mark.parametrize("kind, length, positions", [
    ("mpnet", 100, 98), ("mpnet", 4000, 98), ("bert", 101, 100), ("distilbert", 101, 100)])
def test_lengths_where_no_limit_is_named(kind, length, positions, command, capsys, tmp_path, encoders):
    """MPNet's positions begin behind the padding's, so that 100 of them take 98 tokens."""
    folder = shutil.copytree(encoders[kind], tmp_path / "encoder")
    edit_json(folder / "tokenizer_config.json", model_max_length=...)
    refused(command, capsys, f"--max_seq_length {length}: {folder} takes at most {positions} tokens",
            teacher_model=folder, max_seq_length=length)
    edit_json(folder / "tokenizer_config.json", model_max_length=-1)
    handled(command, capsys, f"{positions} tokens run", teacher_model=folder, max_seq_length=positions)


def test_layers_that_hang_on_their_number(command, capsys, tmp_path):
    """ALBERT deals its groups of shared layers out by their number: to 4 layers 0 0 1 1, but to 2 layers 0 1.
    ESM has a head that reads the attention of every layer."""
    folder = make_family("ALBERT", tmp_path / "albert", num_hidden_groups=2)
    refused(command, capsys, f"--student_model {folder}: cut to 2 of 4 layers", teacher_model=folder,
            nlayers=2)
    folder = make_family("BERT", tmp_path / "esm")
    (folder / "model.safetensors").unlink()
    config = transformers.EsmConfig(**tiny_sizes(340), pad_token_id=0)
    transformers.EsmModel(config).save_pretrained(folder)
    refused(command, capsys, f"--student_model {folder}: it cannot be cut to its first 2 layers",
            "weights of other sizes", teacher_model=folder, nlayers=2)


def test_weights_that_are_not_finite(command, capsys, tmp_path, encoders):
    folder = shutil.copytree(encoders["bert"], tmp_path / "encoder")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(command, capsys, f"--teacher_model {folder}: ", "not finite", teacher_model=folder)


def test_a_student_whose_tokenizer_reads_otherwise(command, capsys, tmp_path, encoders):
    """The same vocabulary, but capitals are kept."""
    folder = shutil.copytree(encoders["bert"], tmp_path / "encoder")
    edit_json(folder / "tokenizer_config.json", do_lower_case=False)
    refused(command, capsys, f"--student_model {folder}: its tokenizer reads", "[UNK]", student_model=folder)


def test_what_is_no_encoder_of_text(command, capsys, tmp_path, encoders):
    folder = shutil.copytree(encoders["bert"], tmp_path / "encoder")
    transformers.ViTConfig(hidden_size=16, num_hidden_layers=4).save_pretrained(folder)
    refused(command, capsys, f"--teacher_model {folder}: model type 'vit'", "an encoder of text",
            teacher_model=folder)


@pytest.mark.parametrize("changes, expected", [
    ({"premise": "a \U0001f600 b"}, ("1 with characters that the tokenizer does not know",)),
    ({"premise": "a\u200bb\u200dc"}, ("1 with invisible characters",)),
    ({"premise": "a\x00b"}, ("1 with invisible characters",)),
    ({"premise": "word " * 20000}, ("CB/train: 54 examples, 1 truncated",)),
    ({"premise": ""}, ("warning: CB/train: 1 of 54 examples have an empty text",)),
    ({"hypothesis": " \u3000\n"}, ("warning: CB/train: 1 of 54 examples have an empty text",)),
    ({"premise": "caf\ufffd"}, ("warning: CB/train: 1 of 54 examples have U+FFFD",)),
    ({"premise": '"he said ""no"""'}, ("warning: CB/train: 1 of 54 examples have a text in quotes",)),
    ({"premise": '"no", he said, "no"'}, ()),
    ({"premise": "one\ntwo\ttabs"}, ()),
    ({"premise": "one\r\ntwo"}, ()),
    ({"label": "Neutral"}, ()),
    ({"label": " neutral "}, ()),
    ({"idx": "007"}, ()),
    ({"idx": 2 ** 80}, ()),
    ({"extra": {"a": None, "b": [None]}}, ("CB/train: fields not read: 'extra'",)),
    ({"meta": {"idx": 1, "label": "neutral"}}, ("CB/train: fields not read: 'meta'",)),
], ids=spell)
def test_odd_rows_that_are_read(changes, expected, command, capsys, data):
    replace_row(data / "CB" / "train.jsonl", 6, **changes)
    handled(command, capsys, *expected, data_dir=data, tasks=["CB"])


@pytest.mark.parametrize(
    "task, changes",
    [
        ("WiC", {"start1": "0", "end1": "1"}),
        ("BoolQ", {"label": "true"}),
        ("BoolQ", {"label": "False"}),
        ("COPA", {"label": "1"}),
    ],
    ids=spell,
)
def test_numbers_and_booleans_as_text_are_read(task, changes, command, capsys, data):
    replace_row(data / task / "train.jsonl", 6, **changes)
    handled(command, capsys, data_dir=data, task=task, tasks=[task])


@pytest.mark.parametrize(
    "task, changes, expected",
    [
        ("CB", {"label": float("nan")}, ("field 'label': nan",)),
        ("CB", {"label": True}, ("label True", "entailment, contradiction, neutral")),
        ("CB", {"label": 0}, ("label 0",)),
        ("CB", {"label": "not_entailment"}, ("label 'not_entailment'",)),
        ("CB", {"premise": None}, ("field 'premise' missing",)),
        ("CB", {"premise": ["a"]}, ("field 'premise': ['a']",)),
        ("CB", {"premise": True}, ("field 'premise': True",)),
        ("CB", {"idx": None}, ("field 'idx': None",)),
        ("CB", {"idx": 1.5}, ("field 'idx': 1.5",)),
        ("CB", {"idx": True}, ("field 'idx': True",)),
        ("CB", {"idx": 6.0}, ("field 'idx': 6.0",)),
        ("CB", {"idx": " "}, ("field 'idx': ' '",)),
        ("CB", {"idx": "5"}, ("idx '5' stands already at", "train.jsonl:6")),
        ("WSC", {"target": None}, ("field 'span1_index' missing",)),
        ("WSC", {"target": {"span1_index": None}}, ("field 'span1_index' missing",)),
        ("WiC", {"start1": 1.5}, ("field 'start1': 1.5", "whole number")),
        ("WiC", {"start1": -1}, ("fields start1, end1: -1..",)),
        ("WiC", {"start1": True}, ("field 'start1': True",)),
        ("WiC", {"start1": "9" * 5000}, ("field 'start1': '999",)),
        ("BoolQ", {"label": "yes"}, ("label 'yes'",)),
        ("BoolQ", {"label": 1.0}, ("label 1.0", "False, True")),
        ("COPA", {"label": 1.5}, ("label 1.5",)),
        ("COPA", {"label": 1.0}, ("label 1.0",)),
        ("COPA", {"label": True}, ("label True", "0, 1")),
    ],
    ids=spell,
)
def test_odd_rows_that_are_not(task, changes, expected, command, capsys, data):
    replace_row(data / task / "train.jsonl", 6, **changes)
    refused(command, capsys, f"{data}/{task}/train.jsonl:7: ", *expected, task=task, data_dir=data)


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\n\n"),
        lambda text: text.rstrip(b"\n"),
    ],
    ids=("CRLF", "byte-order mark", "empty lines", "no newline at the end"),
)
def test_odd_files_that_are_read(change, command, capsys, data):
    before = handled(command, capsys, data_dir=data, tasks=["CB"], folder="before")
    rewrite(data / "CB" / "train.jsonl", change)
    after = handled(command, capsys, data_dir=data, tasks=["CB"])
    assert [line for line in before.splitlines()
            if "sha256" in line] == [line for line in after.splitlines() if "sha256" in line]


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda text: text.decode().encode("utf-16"), ("train.jsonl:1", "not UTF-8")),
        (lambda text: text[:-1].replace(b"the", b"th\xe9", 1), ("not UTF-8",)),
        (lambda text: text[: len(text) // 2], ("not JSON",)),
        (lambda text: b"PK\x03\x04" + text, ("train.jsonl:1", "not JSON")),
        (lambda text: b"[" + text.replace(b"\n", b",\n").rstrip(b",\n") + b"]", ("not JSON",)),
        (lambda text: text.splitlines(True)[0], ("val_dataloader_size", "0 quiz examples")),
    ],
    ids=("UTF-16", "Latin-1", "cut in the middle", "a zip file", "one JSON list", "one example"),
)
def test_odd_files_that_are_not(change, expected, command, capsys, data):
    rewrite(data / "CB" / "train.jsonl", change)
    refused(command, capsys, *expected, data_dir=data, tasks=["CB"])


def test_labels_that_do_not_occur(command, capsys, data):
    """One class alone in train, two others in dev: it is said, and the run goes on."""
    rows = read_lines(data / "CB" / "train.jsonl")
    (data / "CB" / "train.jsonl").write_text("".join(
        json.dumps({**row, "label": "neutral"}) + "\n" for row in rows))
    handled(command, capsys, "CB/train: no example with label entailment, contradiction", data_dir=data,
            tasks=["CB"])


def test_dev_equal_to_train(command, capsys, data):
    shutil.copy(data / "CB" / "train.jsonl", data / "CB" / "val.jsonl")
    handled(command, capsys, "warning: CB/dev: 60 of 60 examples have the texts of an example in train",
            data_dir=data, tasks=["CB"])


def test_paths_do_not_lead_outside(command, capsys, tmp_path, encoders):
    """A checkpoint whose index names a file elsewhere is refused; no code of a checkpoint runs."""
    folder = shutil.copytree(encoders["bert"], tmp_path / "outside")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    names = dict.fromkeys(load_file(tmp_path / "elsewhere.safetensors"), "../elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    refused(command, capsys, f"--teacher_model {folder}", "../elsewhere.safetensors", "outside",
            teacher_model=folder)
    folder = shutil.copytree(encoders["bert"], tmp_path / "code")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(command, capsys, f"--teacher_model {folder}", teacher_model=folder)
    assert not (tmp_path / "ran").exists()


def test_sizes_that_do_not_fit_are_said_first(command, capsys, monkeypatch):
    monkeypatch.setattr("bookkeeping.machine.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr("bookkeeping.machine.available_memory", lambda device: 2000)
    out = handled(command, capsys, "warning: about", "MiB of disk")
    assert out.index("MiB of memory") < out.index("teacher: computing") and out.index(
        "MiB of disk") < out.index("teacher: computing")

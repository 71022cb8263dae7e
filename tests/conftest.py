"""Tiny random encoders of four architectures, and small data cut from sample_data/, both made once per
session."""
import json
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

import main_superglue
from arguments import parse_arguments
from glue_files import write_glue

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)  # for tensors this small a second thread costs more than it brings
SIZES = {"train": 60, "val": 18, "test": 8}
SMALL = {"nlayers": 3, "teacher_epochs": 1, "epochs": 1, "meta_epochs": 1, "num_episodes": 2,
         "val_dataloader_size": 4, "device": "cpu", "max_seq_length": 64}
TASK_NAMES = ("BoolQ", "CB", "COPA", "RTE", "WiC", "WSC")


def corpus():
    return [
        line for path in sorted((ROOT / "sample_data").glob("*/train.jsonl"))
        for line in path.read_text().splitlines()
    ]


def write_wordpiece(folder, special, **config):
    """A WordPiece vocabulary of the sample's letters and its most frequent words, with its
    tokenizer_config.json."""
    words = Counter(word for line in corpus() for word in re.findall(r"[a-z]+", line.lower()))
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    frequent = sorted(words, key=lambda word: (-words[word], word))[:200]
    vocabulary = dict.fromkeys([*special, *letters, *("##" + letter for letter in letters), *frequent])
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 96, **config}))
    return len(vocabulary)


def tiny_sizes(vocab_size):
    return dict(vocab_size=vocab_size, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
                intermediate_size=32, max_position_embeddings=100)


def make_encoder(kind, folder, seed=0, **changes):
    """Write a tiny random encoder of a kind with its tokenizer; returns the folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    bert_special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    if kind == "bert":
        size = write_wordpiece(folder, bert_special, tokenizer_class="BertTokenizer", do_lower_case=True)
        model = transformers.BertModel(transformers.BertConfig(**{**tiny_sizes(size), **changes}))
    elif kind == "distilbert":
        size = write_wordpiece(folder, bert_special, tokenizer_class="DistilBertTokenizer",
                               do_lower_case=True)
        sizes = tiny_sizes(size)
        model = transformers.DistilBertModel(
            transformers.DistilBertConfig(vocab_size=size, dim=sizes["hidden_size"],
                                          n_layers=sizes["num_hidden_layers"], n_heads=2, hidden_dim=32,
                                          max_position_embeddings=100))
    elif kind == "mpnet":
        size = write_wordpiece(folder, ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "[UNK]"),
                               tokenizer_class="MPNetTokenizer")
        model = transformers.MPNetModel(
            transformers.MPNetConfig(**tiny_sizes(size), pad_token_id=1, bos_token_id=0, eos_token_id=2))
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
        tokenizer.train_from_iterator(
            corpus(), trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="[UNK]"))
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]",
                                                                 pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                                                 special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]",
                                                    cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
                                                    mask_token="[MASK]", model_max_length=96)
        fast.save_pretrained(folder)
        model = transformers.DebertaV2Model(
            transformers.DebertaV2Config(**tiny_sizes(len(fast)), type_vocab_size=0, relative_attention=True,
                                         pos_att_type=["p2c", "c2p"], max_relative_positions=-1,
                                         position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True))
    model.save_pretrained(folder)
    return folder


def pytest_addoption(parser):
    parser.addoption("--bad_input_table", metavar="FILE",
                     help="write what tests/test_bad_input.py gave, and what was said, as markdown")
    parser.addoption("--families_table", metavar="FILE",
                     help="write what tests/test_families.py found, as markdown")


def pytest_configure(config):
    for flag in ("--bad_input_table", "--families_table"):
        if config.getoption(flag) and config.getoption("numprocesses", None):
            raise pytest.UsageError(f"{flag}: every worker of -n would write its own part over the others'; "
                                    "leave -n out")


def pytest_sessionfinish(session):
    path, module = session.config.getoption("--bad_input_table"), sys.modules.get("test_bad_input")
    if path and module:
        rows = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in dict.fromkeys(module.TABLE)]
        Path(path).write_text(
            "What the command says of input that is odd or wrong; written by `python -m pytest"
            " tests/test_bad_input.py tests/test_glue.py tests/test_own_tasks.py --bad_input_table"
            " tests/bad_input.md`.\n\n| # | given | | said"
            " |\n|---|---|---|---|\n" +
            "".join(f"| {number} | {row} |\n" for number, row in enumerate(rows, 1)), encoding="utf-8")

    path, module = session.config.getoption("--families_table"), sys.modules.get("test_families")
    if path and module:
        Path(path).write_text(module.page(), encoding="utf-8")


def pytest_terminal_summary(terminalreporter):
    """What could not be tested here is said at the end, not hidden in a count."""
    for report in terminalreporter.stats.get("skipped", ()):
        if "NOT TESTED" in str(report.longrepr):
            terminalreporter.write_line(f"{report.nodeid}: {report.longrepr[2]}", yellow=True)


@pytest.fixture(autouse=True, scope="session")
def nothing_waits_for_the_disk():
    """A run asks a hundred times that the disk holds what it wrote, which takes a seventh of the time of one
    this small. Only a power cut would show the difference."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """kind -> folder."""
    root = tmp_path_factory.mktemp("encoders")
    return {kind: make_encoder(kind, root / kind) for kind in ("bert", "mpnet", "deberta", "distilbert")}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The first rows of each sample file, all six tasks."""
    root = tmp_path_factory.mktemp("data")
    for name in TASK_NAMES:
        (root / name).mkdir()
        for split, size in SIZES.items():
            lines = (ROOT / "sample_data" / name / f"{split}.jsonl").read_text().splitlines()[:size]
            (root / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def glue(tmp_path_factory):
    """Small files of all nine tasks."""
    root = tmp_path_factory.mktemp("glue")
    write_glue(root)
    return root


def as_words(settings):
    """The words of a command line: {flag: value, values, or whether it is given}."""
    words = []
    for name, value in settings.items():
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, (list, tuple)):
            words += [f"--{name}", *map(str, value)]
        elif value is not None and value is not False:
            words += [f"--{name}", str(value)]
    return words


def run_command(**flags):
    """main_superglue's command line, small; flags given replace the small ones. Returns its exit code."""
    try:
        return main_superglue.main(parse_arguments(as_words({"task": "CB", **SMALL, **flags})))
    except SystemExit as stop:  # argparse's own errors
        return stop.code


@pytest.fixture
def command(encoders, data_dir, tmp_path):
    """Run the command; returns (exit code, output folder), which `folder` names in the test's own."""
    def run(task="CB", folder="run", **flags):
        flags = {"task": task, "data_dir": data_dir, "teacher_model": encoders["bert"],
                 "output_dir": tmp_path / folder, **flags}
        return run_command(**flags), Path(flags["output_dir"])
    return run


class InProcess:
    """Stands for a process of main_superglue.py that a sweep starts: runs it here, at once."""

    def __init__(self, command, stdout, **_):
        with redirect_stdout(stdout), redirect_stderr(stdout):
            self.returncode = main_superglue.main(parse_arguments(command[2:]))

    def poll(self):
        return self.returncode


def run_script(words, log, cwd):
    """What a forked process does: the script as __main__, its text going to log. What this process has
    imported of the project goes, so that the script's own copy of it is read."""
    os.dup2(log, 1), os.dup2(log, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(cwd)

    def of_the_project(path):  # the environment may lie within the project
        return path.startswith(str(ROOT)) and not path.startswith(sys.prefix)

    for name, module in list(sys.modules.items()):
        if of_the_project(getattr(module, "__file__", None) or ""):
            del sys.modules[name]
    sys.path = [path for path in sys.path if not of_the_project(path)]
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")


class Forked:
    """Stands for subprocess.Popen([python, script, flag, ...]): a process of its own, which is killed as any
    other is, but forked from this one, that has imported torch and transformers."""

    def __init__(self, command, stdout, cwd=ROOT):
        _, *words = map(str, command)
        self.process = multiprocessing.get_context("fork").Process(
            target=run_script, args=(words, stdout.fileno(), cwd))
        self.process.start()

    def wait(self, seconds=None):
        self.process.join(seconds)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("forked", seconds)
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def send_signal(self, signum):
        os.kill(self.process.pid, signum)


@pytest.fixture
def in_process(monkeypatch):
    """A sweep's runs are made in this process, which has imported all: what is tested is what comes out of
    them."""
    import lib.local
    monkeypatch.setattr(lib.local, "Popen", InProcess)


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def lines():
    """Reads a .jsonl file."""
    return read_lines

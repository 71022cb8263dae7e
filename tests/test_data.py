"""Inputs, readers, splits and batches."""
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from bookkeeping.errors import InputError
from conftest import ROOT, TASK_NAMES, read_lines
from data_utils import (
    RandomStreams,
    batches_by_length,
    build_examples,
    encode_split,
    load_task,
    read_dataset,
    read_jsonl,
    read_task,
    read_tsv,
    split_train_quiz,
)
from metrics import read_predictions
from tasks import TASKS, find_task, locate_span


def pairs_of(task, **fields):
    notes = Counter()
    return TASKS[task].build(fields, notes), notes


# --- inputs -------------------------------------------------------------------------------------------------

def test_inputs_of_the_paper_protocol():
    assert pairs_of("CB", premise="P.", hypothesis="H.")[0] == [("P.", "H.")]
    assert pairs_of("BoolQ", question="q", passage="p")[0] == [("q", "p")]
    assert pairs_of("COPA", premise="It fell.", choice1="A.", choice2="B.", question="cause")[0] == [
        ("It fell. What was the cause?", "A."), ("It fell. What was the cause?", "B.")]
    assert pairs_of("COPA", premise="It fell.", choice1="A.", choice2="B.", question="effect")[0][1] == (
        "It fell. What happened as a result?", "B.")
    assert pairs_of("WiC", word="bank", sentence1="A bank.", sentence2="Banks fail.", start1=2, end1=6,
                    start2=0, end2=5)[0] == [("bank: A * bank *.", "* Banks * fail.")]
    pairs, notes = pairs_of("WSC", text="Mark told Pete that he lied.", span1_index=0, span1_text="Mark",
                            span2_index=4, span2_text="he")
    assert pairs == [("* Mark * told Pete that # he # lied.", "Mark")] and notes == {"exact": 2}


@pytest.mark.parametrize("text, index, span, expected, how", [
    ("A cat sat.", 1, "cat", "cat", "exact"),
    ("I saw The dog run", 2, "the dog", "The dog", "loose"),            # another case
    ("He was a cat, then", 2, "a cat", "a cat", "loose"),               # punctuation glued to the word
    ("The ball was John's", 3, "John", "John", "loose"),                # a possessive
    ("the wide \n road ends", 1, "wide road", "wide \n road", "exact"),  # white space in the text ...
    ("the wide road ends", 1, "wide\nroad", "wide road", "loose"),      # ... and in the span
    # off by one: the nearest place, here the second
    ("it is here and it is there", 3, "it", "it", "moved"),
    ("the cats met the cat", 3, "the tom", "the", "absent"),
    ("so said them all", 1, "said.", "said", "loose"),
])
def test_wsc_spans_are_found_where_the_index_misses(text, index, span, expected, how):
    start, end, found = locate_span(text, index, span)
    assert (text[start:end], found) == (expected, how)
    if how == "moved":
        assert start == text.rindex(span)


@pytest.mark.parametrize("noun, pronoun, expected", [
    # the pronoun in the noun, at its start,
    ((2, "their mothers"), (2, "their"), "they love * # their # mothers *"),
    ((2, "their mothers"), (3, "mothers"), "they love * their # mothers # *"),   # at its end,
    ((1, "love their mothers"), (2, "their"), "they * love # their # mothers *"),
    ((3, "mothers"), (2, "their"), "they love # their # * mothers *"),           # side by side
])
def test_wsc_spans_in_each_other(noun, pronoun, expected):
    pairs, _ = pairs_of("WSC", text="they love their mothers", span1_index=noun[0], span1_text=noun[1],
                        span2_index=pronoun[0], span2_text=pronoun[1])
    assert pairs == [(expected, noun[1])]


def test_wsc_span_never_inside_a_word():
    start, end, how = locate_span("his hat hit the hi man", 2, "hi")
    assert (start, end, how) == (16, 18, "moved")
    assert locate_span("a cat", 9, "cat") == (2, 5, "moved")  # an index behind the text's end, the span in it


# --- the three layouts --------------------------------------------------------------------------------------

def as_tsv(path, task, rows, labelled=True):
    """Rows of the official layout in the released code's."""
    out = ["\t".join(["idx", *task.fields, "label"][:None if labelled else -1])]
    for row in rows:
        flat = {**row, **row.get("target", {})}
        out.append("\t".join(str(flat[name])
                             for name in ("idx", *task.fields)) + (f"\t{row['label']}" if labelled else ""))
    path.write_text("\n".join(out) + "\n")


PARTS = ("train", "dev", "test")


def content(splits):
    """What is read, but for where it stood."""
    return {part: [(e.idx, e.pairs, e.label) for e in examples] for part, examples in splits.items()}


@pytest.mark.parametrize("name", TASK_NAMES)
def test_both_layouts_give_the_same_examples(name, data_dir, tmp_path):
    task, folder = TASKS[name], tmp_path / name.upper()
    folder.mkdir()
    for source, target in (("train", "train"), ("val", "dev"), ("test", "test")):
        as_tsv(folder / f"{target}.tsv", task, read_lines(data_dir / name / f"{source}.jsonl"), source
               != "test")
    parts = ("train", "dev", "test")
    official, released = read_task(task, data_dir, parts), read_task(task, tmp_path, parts)
    for part in parts:
        assert [(e.idx, e.pairs, e.label) for e in official[part]] == [(e.idx, e.pairs, e.label)
                                                                       for e in released[part]]
    assert {e.label for e in official["test"]} == {None}


def row(**changes):
    return {"idx": 1, "premise": "p", "hypothesis": "h", "label": "neutral"} | changes


def test_only_the_declared_object_is_opened(tmp_path):
    """Other objects are fields that nobody reads, whatever they hold; they are named in the log."""
    path = tmp_path / "train.jsonl"
    nested = {"idx": 9, "label": "entailment", "premise": "another"}
    path.write_text(json.dumps(row(meta=nested, target=nested)) + "\n")
    example, = build_examples(TASKS["CB"], read_jsonl(path, TASKS["CB"]), path)
    assert (example.idx, example.label, example.pairs) == (1, 2, [("p", "h")])
    assert example.notes == {"unread meta": 1, "unread target": 1}
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"label": "neutral", "target": {"idx": 1}}\n')
    with pytest.raises(InputError, match="predictions.jsonl:1: keys"):
        read_predictions(path, TASKS["WSC"])


def test_held_tsv_is_the_quiz_split(tmp_path, encoders):
    (tmp_path / "rte").mkdir()
    row = "{}\tA \"quote\" stays.\tB\tentailment"
    for part, numbers in (("train", range(8)), ("held", range(8, 12)), ("dev", range(3))):
        (tmp_path / "rte" / f"{part}.tsv").write_text("id\tpremise\thypothesis\tlabel\n" +
                                                      "".join(row.format(n) + "\n" for n in numbers))
    splits = load_task(TASKS["RTE"], tmp_path, AutoTokenizer.from_pretrained(encoders["bert"]), 64, 42, 4)
    assert (splits["quiz"].idx == [8, 9, 10, 11] and splits["train"].idx == list(range(8))
            and "test" not in splits)
    assert (build_examples(TASKS["RTE"], [("w", {"idx": 1, "premise": 'A "quote"', "hypothesis": "B"})],
                           "w")[0].pairs[0][0] == 'A "quote"')


def cb_of(tmp_path, text):
    """(idx, pair, label) of the examples of CB in a .tsv file with this text."""
    path = tmp_path / "train.tsv"
    path.write_text(text, encoding="utf-8")
    return [
        (e.idx, e.pairs[0], e.label) for e in build_examples(TASKS["CB"], read_tsv(path, TASKS["CB"]), path)
    ]


@pytest.mark.parametrize("text", [
    "idx\tpremise\thypothesis\tlabel\n7\tp\th\tneutral\n",
    "label\thypothesis\tidx\tpremise\nneutral\th\t7\tp\n",       # in another order
    "\ufeffINDEX\tPremise\tHypothesis\tLabel\n7\tp\th\tneutral\n",  # a byte-order mark, other cases
    "id\tsource\tpremise\thypothesis\tlabel\n7\tx\tp\th\tneutral\n",  # a column that nobody reads
    "\n\nid\tpremise\thypothesis\tlabel\n\n7\tp\th\tneutral\n"])
def test_columns_of_a_tsv_are_found_by_name(text, tmp_path):
    assert cb_of(tmp_path, text) == [(7, ("p", "h"), 2)]


def test_columns_of_a_tsv_may_be_called_as_the_task_says(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("index\tsentence1\tsentence2\tlabel\n3\tp\th\tentailment\n")
    assert list(read_tsv(path, TASKS["RTE"])) == [
        (f"{path}:2", {"idx": 3, "premise": "p", "hypothesis": "h", "label": "entailment"})]


@pytest.mark.parametrize("text, message", [
    ("7\tp\th\tneutral\n", "train.tsv:1: columns '7', 'p', 'h', 'neutral' found, expected a header with idx"),
    ("idx\tpremise\tlabel\n7\tp\tneutral\n", "missing: hypothesis"),
    ("premise\thypothesis\tlabel\np\th\tneutral\n", "missing: idx"),
    ("idx\tid\tpremise\thypothesis\n7\t8\tp\th\n", "train.tsv:1: column 'idx' stands twice"),
    ("idx\tpremise\thypothesis\tlabel\n7\tp\th\tneutral\tx\n", "train.tsv:2: 5 columns found, expected 4"),
    ("label\tidx\tpremise\thypothesis\n7\tp\th\n", "train.tsv:2: 3 columns found, expected 4")])
def test_a_tsv_without_its_columns_is_refused(text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        cb_of(tmp_path, text)


def write_hub_cache(cache, task, rows, names):
    """What `datasets` leaves in its cache after loading aps/super_glue once. names: those that the hub gives
    the classes, {label: name}, in the order of its class numbers."""
    from datasets import ClassLabel, DatasetInfo, Features, Value
    from datasets.arrow_writer import ArrowWriter
    kinds = {str: Value("string"), int: Value("int32")}
    features = Features({**{name: kinds[kind] for name, kind in task.fields.items()}, "idx": Value("int32"),
                         "label": ClassLabel(names=list(names.values()))})
    folder = cache / "aps___super_glue" / task.name.lower() / "0.0.0" / "abcdef0123"
    folder.mkdir(parents=True)
    splits = []
    for name, part in rows.items():
        writer = ArrowWriter(path=str(folder / f"super_glue-{name}.arrow"), features=features)
        for row in part:
            writer.write({**row, "label": list(names).index(row["label"]) if "label" in row else -1})
        examples, size = writer.finalize()
        splits.append({"name": name, "num_examples": examples, "num_bytes": size,
                       "dataset_name": "super_glue"})
    DatasetInfo(features=features, splits=splits, builder_name="parquet", dataset_name="super_glue",
                config_name=task.name.lower(), version="0.0.0").write_to_directory(str(folder))


@pytest.fixture
def hub(tmp_path, data_dir, monkeypatch):
    """Fills the cache with the files of data_dir and reads a task from it."""
    import datasets.config
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def read(task, names, splits=("train", "validation", "test"), parts=PARTS):
        files = {"train": "train", "validation": "val", "test": "test"}
        rows = {name: read_lines(data_dir / task.name / f"{files[name]}.jsonl") for name in splits}
        write_hub_cache(tmp_path, task, rows, names)
        return read_task(task, "hub", parts)
    return read


@pytest.mark.parametrize("task, names", [
    ("CB", {"entailment": "entailment", "contradiction": "contradiction", "neutral": "neutral"}),
    ("CB", {"neutral": "neutral", "entailment": "entailment", "contradiction": "contradiction"}),
    ("COPA", {0: "choice1", 1: "choice2"}),
    ("COPA", {1: "choice2", 0: "choice1"}),
    ("BoolQ", {False: "False", True: "True"}),
    ("BoolQ", {True: "True", False: "False"}),
])
def test_hub_layout_from_the_offline_cache(task, names, hub, data_dir):
    """Class numbers mean what the data set's features call them."""
    task = TASKS[task]
    assert content(hub(task, names)) == content(read_task(task, data_dir, PARTS))


@pytest.mark.parametrize("names", [
    {"entailment": "yes", "contradiction": "no", "neutral": "maybe"},
    {"entailment": "0", "contradiction": "1", "neutral": "2"},
    {"entailment": "entailment", "contradiction": "contradiction", "neutral": "neutral", "more": "more"},
])
def test_a_hub_with_other_classes_is_refused(names, hub):
    classes = f"classes {', '.join(names.values())} found, expected entailment, contradiction, neutral"
    with pytest.raises(InputError, match=f"aps/super_glue/cb/train: {classes}"):
        hub(TASKS["CB"], names)


def test_a_hub_that_lacks_something(hub):
    with pytest.raises(InputError, match="--data_dir hub: aps/super_glue rte could not be loaded"):
        read_task(TASKS["RTE"], "hub", ("train",))
    with pytest.raises(InputError, match="aps/super_glue/cb/validation: no such split, found train"):
        hub(TASKS["CB"], {label: label for label in TASKS["CB"].labels}, ("train",))


@pytest.mark.parametrize("label", (2, 1.0, "1.5", [1]))
def test_a_data_set_whose_labels_have_no_names(label):
    from datasets import Dataset
    task, one = TASKS["BoolQ"], {"question": "q", "passage": "p", "idx": 0, "label": 1}
    assert build_examples(task, read_dataset(Dataset.from_list([one]), task, "hub"), "hub")[0].label == 1
    wrong = read_dataset(Dataset.from_list([{**one, "label": label}]), task, "hub")
    with pytest.raises(InputError, match="hub:1: label .* found, expected one of False, True"):
        build_examples(task, wrong, "hub")


def test_a_data_set_that_is_not_utf_8():
    import pyarrow
    from datasets import Dataset
    texts = pyarrow.array([b"p", b"\xff"]).view(pyarrow.string())
    table = pyarrow.table({"premise": texts, "hypothesis": ["h"] * 2, "idx": [0, 1], "label": [""] * 2})
    with pytest.raises(InputError, match="hub:2: byte 0 of a text is not UTF-8"):
        list(read_dataset(Dataset(table), TASKS["CB"], "hub"))


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    (tmp_path / "CB").mkdir()
    line = json.dumps({"premise": "p", "hypothesis": "h", "label": "neutral", "idx": 0})
    (tmp_path / "CB" / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")
    assert read_task(TASKS["CB"], tmp_path, ("train",))["train"][0].label == 2


def test_task_names_in_any_case():
    assert find_task("boolq").name == "BoolQ" and find_task("WIC").name == "WiC"


# --- train and quiz -----------------------------------------------------------------------------------------

def test_split_is_stratified_nine_to_one_and_independent_of_order():
    labels = [0] * 95 + [1] * 45 + [2] * 10
    idx = list(range(150))
    train, quiz = split_train_quiz("CB", idx, labels, 42)
    assert sorted(train + quiz) == idx and len(quiz) == 15
    counts = Counter(labels[n] for n in quiz)
    assert counts[2] == 1 and sorted(counts.values()) in ([1, 4, 10], [1, 5, 9])
    _, backwards = split_train_quiz("CB", idx[::-1], labels[::-1], 42)
    assert {idx[n] for n in quiz} == {idx[::-1][n] for n in backwards}
    assert split_train_quiz("CB", idx, labels, 43)[1] != quiz


def test_split_checksums_are_the_same_everywhere(encoders):
    tokenizer = AutoTokenizer.from_pretrained(encoders["bert"])
    splits = load_task(TASKS["CB"], ROOT / "sample_data", tokenizer, 64, 42, 8)
    assert [splits[name].checksum[:16] for name in ("train", "quiz", "dev", "test")] == [
        "fad5f04243d8a23c", "980e43911c81ad56", "f2338310aa8fc9d2", "353f4952c0c1e391"]
    assert len(splits["train"]) == 144 and len(splits["quiz"]) == 16
    assert torch.bincount(splits["quiz"].labels).tolist() == [6, 5, 5]


# --- tokens and batches -------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ("bert", "mpnet", "deberta", "distilbert"))
def test_batches_equal_the_tokenizer(kind, encoders, data_dir):
    tokenizer = AutoTokenizer.from_pretrained(encoders[kind])
    examples = read_task(TASKS["COPA"], data_dir, ("train",))["train"]
    split = encode_split(TASKS["COPA"], "train", examples, tokenizer, 16)
    pairs = [pair for n in (3, 0, 7) for pair in examples[n].pairs]
    expected = tokenizer([a for a, _ in pairs], [b for _, b in pairs], truncation="longest_first",
                         max_length=16, padding=True, return_tensors="pt")
    batch = split.batch(np.array([3, 0, 7]))
    assert torch.equal(batch.input_ids, expected["input_ids"]) and torch.equal(
        batch.attention_mask, expected["attention_mask"])
    if "token_type_ids" in expected:
        assert torch.equal(batch.token_type_ids, expected["token_type_ids"])
    assert batch.labels.tolist() == [examples[n].label for n in (3, 0, 7)]


def test_truncated_examples_are_counted(encoders):
    tokenizer = AutoTokenizer.from_pretrained(encoders["bert"])
    rows = [{"idx": n, "premise": "the " * (10 if n else 60), "hypothesis": "the", "label": "neutral"}
            for n in range(3)]
    split = encode_split(TASKS["CB"], "dev", build_examples(TASKS["CB"], [("w", row) for row in rows], "w"),
                         tokenizer, 32)
    assert split.truncated == 1 and split.lengths().tolist() == [32, 14, 14]


def test_orders_cover_everything_once():
    batches = RandomStreams(1, "phase", "own_generators").batches(10, 4, "order")
    assert [len(b) for b in batches] == [4, 4, 2] and sorted(np.concatenate(batches)) == list(range(10))
    same = RandomStreams(1, "phase", "own_generators")
    # other purposes and phases do not interfere
    same.batches(10, 4, "another purpose")
    same, other = same.batches(10, 4, "order"), RandomStreams(1, "another phase",
                                                              "own_generators").batches(10, 4, "order")
    assert np.array_equal(np.concatenate(batches), np.concatenate(same))
    assert not np.array_equal(np.concatenate(batches), np.concatenate(other))


def test_batches_by_length_cover_everything_once(encoders, data_dir):
    split = load_task(TASKS["CB"], data_dir, AutoTokenizer.from_pretrained(encoders["bert"]), 64, 42, 4,
                      ("dev", ))["dev"]
    batches = batches_by_length(split, 4)
    lengths = split.lengths()[np.concatenate(batches)]
    assert sorted(np.concatenate(batches)) == list(range(len(split))) and (np.diff(lengths) <= 0).all()


@pytest.mark.skipif(
    "MPDISTIL_DATA_DIR" not in __import__("os").environ,
    reason="set MPDISTIL_DATA_DIR to the official SuperGLUE files",
)
def test_official_files_have_their_official_sizes():
    sizes = {
        "CB": (250, 56, 250), "COPA": (400, 100, 500), "RTE": (2490, 277, 3000), "WiC": (5428, 638, 1400),
        "WSC": (554, 104, 146)
    }
    data = Path(__import__("os").environ["MPDISTIL_DATA_DIR"])
    for name, expected in sizes.items():
        read = read_task(TASKS[name], data, ("train", "dev", "test"))
        assert tuple(len(read[part]) for part in ("train", "dev", "test")) == expected

"""Tasks: how their inputs are built, what differs between kinds of tasks, the table, and tasks that a file
describes.

A new task is one more entry of TASKS, or a task.json beside its data. Whatever depends on the kind of a task
(its loss, p(y|x), what counts as its answer and as right) stands in KINDS and nowhere else.
"""
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from bookkeeping.errors import InputError, shown
from bookkeeping.files import check_object

# --- how inputs are built (METHOD.md rows 1 to 3, `paper`) --------------------------------------------------

def mark(text, *spans):
    """`text` with the characters of each span (start, end, sign) between two signs, spaced so that no
    tokenizer glues them to the word. Spans may lie in each other: the outer one's signs stand outside."""
    # at one place, the longer span opens first
    opening = [(start, -end, f"{sign} ") for start, end, sign in spans]
    closing = [(end, -start, f" {sign}") for start, end, sign in spans]     # and closes last
    pieces, last = [], 0
    for place in sorted({place for place, _, _ in opening + closing}):
        pieces += [text[last:place], *(sign for _, _, sign in sorted(c for c in closing if c[0] == place)),
                   *(sign for _, _, sign in sorted(o for o in opening if o[0] == place))]
        last = place
    return "".join(pieces) + text[last:]


def build_pair(first, second):
    """Builder of the tasks whose two texts go in as they are."""
    return lambda record, notes: [(str(record[first]), str(record[second]))]


def build_single(field):
    """Builder of the tasks that have one text."""
    return lambda record, notes: [(str(record[field]), None)]


def build_choices(text, choices):
    """Builder of inputs that each have one of the fields `choices` as their last text, after the field
    `text`, where that is not None."""
    def build(record, notes):
        return [(str(record[choice]), None) if text is None else (str(record[text]), str(record[choice]))
                for choice in choices]
    return build


def build_copa(record, notes):
    """Two inputs, one a choice: (premise and the question in words, choice)."""
    questions = {"cause": "What was the cause?", "effect": "What happened as a result?"}
    if record["question"] not in questions:
        raise InputError(f"field question: {record['question']!r} found, expected 'cause' or 'effect'")
    premise = f"{record['premise']} {questions[record['question']]}"
    return [(premise, record["choice1"]), (premise, record["choice2"])]


def build_wic(record, notes):
    """(word: sentence1, sentence2), the target marked in both by its character positions."""
    marked = []
    for number in "12":
        sentence, start, end = (record[f"{key}{number}"] for key in ("sentence", "start", "end"))
        if not 0 <= start < end <= len(sentence):
            raise InputError(
                f"fields start{number}, end{number}: {start}..{end} found, expected positions inside "
                f"sentence{number}, which has {len(sentence)} characters")
        marked.append(mark(sentence, (start, end, "*")))
    return [(f"{record['word']}: {marked[0]}", marked[1])]


def locate_span(text, index, span):
    """Where `span` stands in `text`, given that it should begin at the word number `index`.

    Returns (start, end, how): character positions and "exact" (the words from `index` on are the span),
    "loose" (they are up to case, punctuation and white space), "moved" (found elsewhere, the nearest
    whole-word place) or "absent" (not in the text: the one word at `index`).
    """
    words = [(match.start(), match.end()) for match in re.finditer(r"\S+", text)]
    inside_text = 0 <= index < len(words)
    parts = span.split()
    here = words[index:index + len(parts)] if inside_text else []
    if here and [text[start:end] for start, end in here] == span.split(" "):
        return here[0][0], here[-1][1], "exact"
    expected = words[index] if inside_text else (len(text), len(text))
    core = span.strip().rstrip(".,;:!?")
    if core:
        pattern = r"(?<!\w)" + r"\s+".join(re.escape(part) for part in core.split()) + r"(?!\w)"
        found = [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]
        if found:
            start, end = min(found, key=lambda place: abs(place[0] - expected[0]))
            return start, end, "loose" if expected[0] <= start < expected[1] else "moved"
    if not inside_text:
        raise InputError(
            f"word index {index} found, expected 0 to {len(words) - 1} for a text of {len(words)} words, or a"
            f" span that stands in the text; {span!r} does not")
    return *expected, "absent"


def build_wsc(record, notes):
    """(text with the noun in * * and the pronoun in # #, the noun)."""
    text, places = record["text"], []
    for number, sign in (("1", "*"), ("2", "#")):
        try:
            start, end, how = locate_span(text, record[f"span{number}_index"], record[f"span{number}_text"])
        except InputError as error:
            raise InputError(f"field span{number}_index: {error}") from None
        notes[how] += 1
        places.append((start, end, sign))
    return [(mark(text, *places), record["span1_text"])]


# --- kinds of tasks -----------------------------------------------------------------------------------------

# labels as they are read, compared, counted and written: classes

def label_spellings(task):
    """{lower-case text: class number} of everything that stands for a label of the task."""
    spellings = {str(label).strip().lower(): number for number, label in enumerate(task.labels)}
    spellings |= {str(int(label)): number for number, label in enumerate(task.labels)
                  if isinstance(label, bool)}
    return spellings | {name: number for number, name in enumerate(task.label_names)}


def parse_class(value, task):
    """The class number of a label as it stands in a file; None where it is not given (missing, empty or
    -1)."""
    text = "" if value is None else str(value).strip().lower()
    number = label_spellings(task).get(text)
    if number is None and text not in ("", "-1"):
        raise InputError(f"label {shown(value)} found, expected one of"
                         f" {', '.join(map(str, task.labels))}")
    return number


def read_class(value, task):
    """The class number of an answer in a prediction file."""
    spellings = [json.dumps(answer) for answer in task.answers]
    if json.dumps(value) not in spellings:
        raise InputError(f"label {json.dumps(value):.80} found, expected one of {', '.join(spellings)}, as"
                         f" the leaderboard spells {task.name}")
    return spellings.index(json.dumps(value))


def is_right(answers, labels):
    """1 where an answer is the label, else 0. Both: (examples) class numbers -> (examples)."""
    return (np.asarray(answers) == np.asarray(labels)).astype(float)


def count_classes(labels, task):
    """Examples of each class."""
    return np.bincount(labels, minlength=len(task.labels)).tolist()


def most_frequent(counts):
    """(the class that is most frequent, the labels) of what count_classes gave."""
    return int(np.argmax(counts)), np.repeat(np.arange(len(counts)), counts)


# the same: numbers

def parse_number(value, task):
    """A label as a number; None where it is not given (missing, empty, or -1 outside the task's range)."""
    low, high = task.label_range
    if value is None or str(value).strip() == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if number == -1 and not low <= -1 <= high:
        return None
    if not low <= number <= high:
        raise InputError(f"label {shown(value)} found, expected a number from {low:g} to {high:g}")
    return number


def is_number(value):
    """Whether a value of JSON is a finite number that a float can hold."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(float(value))
    except OverflowError:
        return False


def read_number(value, task):
    """The number of an answer in a prediction file."""
    if not is_number(value):
        raise InputError(f"label {json.dumps(value):.80} found, expected a number")
    return float(value)


def negative_squared_errors(answers, labels):
    """- (y - answer)^2. Both: (examples) -> (examples)."""
    return -(np.asarray(answers, dtype=float) - np.asarray(labels, dtype=float)) ** 2


def rounded(label, task):
    """The number of the class that a label counts to where a split is stratified: STS-B's score, rounded; any
    range in as many steps."""
    low, high = task.label_range
    return math.floor(5 * (label - low) / (high - low) + 0.5)


def describe_numbers(labels, task):
    """Number, mean and variance of labels."""
    labels = np.asarray(labels, dtype=float)
    return {"examples": len(labels), "mean": labels.mean(), "variance": labels.var()}


def mean_of_all(described):
    """(the mean, a label) of what describe_numbers gave: a constant answer correlates with nothing, whatever
    the labels are."""
    return described["mean"], np.array([described["mean"]])


# equations

def true_class_probability(logits, labels):
    """p(y|x). logits: (batch, classes), labels: (batch) -> (batch)."""
    return logits.softmax(dim=-1).gather(1, labels[:, None]).squeeze(1)


def soft_loss(teacher_logits, student_logits, temperature):
    """soft = t^2 * MSE(softmax(T'(h_T)/t), softmax(S/t)), mean over all elements (METHOD.md phase 2). Both:
    (batch, classes)."""
    return temperature ** 2 * F.mse_loss((student_logits / temperature).softmax(-1),
                                         (teacher_logits / temperature).softmax(-1))


def largest(outputs):
    """The class with the largest logit. (batch, classes) -> (batch)."""
    return outputs.argmax(-1)


def squared_error(outputs, labels):
    """MSE, in the place of CE (METHOD.md "Notation"). outputs: (batch, 1), labels: (batch) -> scalar."""
    return F.mse_loss(outputs.squeeze(-1), labels)


def negative_distance(outputs, labels):
    """- |y - output|, in the place of p(y|x) (METHOD.md "Notation"). outputs: (batch, 1), labels: (batch) ->
    (batch)."""
    return -(labels - outputs.squeeze(-1)).abs()


def soft_squared_error(teacher_outputs, student_outputs, temperature):
    """soft = MSE of the outputs, without a temperature (METHOD.md phase 2). Both: (batch, 1)."""
    return F.mse_loss(student_outputs, teacher_outputs)


def divergence(teacher_logits, student_logits, temperature):
    """T^2 KL(softmax(T'/T) || softmax(S/T)), the sum over classes, the mean over the batch (Hinton, Vinyals
    and Dean 2015). Both: (batch, classes) -> scalar."""
    return temperature ** 2 * F.kl_div((student_logits / temperature).log_softmax(-1),
                                       (teacher_logits / temperature).log_softmax(-1),
                                       reduction="batchmean", log_target=True)


def only_output(outputs):
    """(batch, 1) -> (batch)."""
    return outputs.squeeze(-1)


@dataclass(frozen=True)
class Labels:
    """How labels of one type are read, counted and written; none of it is part of an equation.

    type: in tensors; missing: in the place of a label that is not given. parse(value, task): a label as a
    file has it, None where it is not given; read(value, task): an answer as a prediction file has it; both
    raise InputError. write(answer, task): as it is written there. example_scores(answers, labels):
    (examples), larger is better: what paired tests compare; counts: whether they are 0 and 1. stratum(label,
    task): what splits are stratified by. describe(labels, task): what a result says of dev's labels;
    floor(described): (constant answer, labels), to be beaten. metrics: those that there may be.
    """
    type: torch.dtype
    missing: float
    parse: Callable
    read: Callable
    write: Callable
    example_scores: Callable
    counts: bool
    stratum: Callable
    describe: Callable
    floor: Callable
    metrics: tuple


@dataclass(frozen=True)
class Kind:
    """What differs between kinds of tasks; outputs are what Heads give: (batch, classes), or (batch, 1).

    loss(outputs, labels): scalar, the CE of every equation. agreement(outputs, labels): (batch), the p(y|x)
    of every equation. soft_loss(teacher's outputs, student's outputs, temperature): scalar; divergence: the
    same of the methods that MPDistil is compared with. answer(outputs): (batch), what is predicted. labels:
    of Labels. choices: whether each label is a text of its own, an encoder input each, whose scores a softmax
    compares.
    """
    loss: Callable
    agreement: Callable
    soft_loss: Callable
    divergence: Callable
    answer: Callable
    labels: Labels
    choices: bool


CLASSES = Labels(type=torch.int64, missing=-1, parse=parse_class, read=read_class,
                 write=lambda answer, task: task.answers[answer], example_scores=is_right, counts=True,
                 stratum=lambda label, task: label, describe=count_classes, floor=most_frequent,
                 metrics=("accuracy", "f1", "f1_binary", "matthews"))
NUMBERS = Labels(type=torch.float32, missing=math.nan, parse=parse_number, read=read_number,
                 write=lambda answer, task: float(answer), example_scores=negative_squared_errors,
                 counts=False, stratum=rounded, describe=describe_numbers, floor=mean_of_all,
                 metrics=("pearson", "spearman"))
KINDS = {
    "classification": Kind(F.cross_entropy, true_class_probability, soft_loss, divergence, largest, CLASSES,
                           choices=False),
    "multiple_choice": Kind(F.cross_entropy, true_class_probability, soft_loss, divergence, largest, CLASSES,
                            choices=True),
    "regression": Kind(squared_error, negative_distance, soft_squared_error, soft_squared_error, only_output,
                       NUMBERS, choices=False)
}


# --- the task table -----------------------------------------------------------------------------------------

BENCHMARKS = {"superglue": "aps/super_glue", "glue": "nyu-mll/glue"}  # and where the hub has them


@dataclass(frozen=True)
class Layout:
    """What is special about the files of a task. nested: the one object in a .jsonl's record that is opened.
    columns: {other name of a column, in lower case: field}; ignored: columns that nobody reads. numbered:
    examples without idx are named by their row, from 0. headerless: the columns of files whose first line is
    an example. skips_broken: lines of train and dev with another number of columns are left out, and said.
    mismatched: there are two dev and two test sets, `matched` and `mismatched`. diagnostic: a file beside the
    task's folder whose examples are predicted too. files: {split: file}, where they are not named as in
    data_utils.LAYOUTS.
    """
    nested: str | None = None
    columns: dict = field(default_factory=dict)
    ignored: tuple = ()
    numbered: bool = False
    headerless: tuple = ()
    skips_broken: bool = False
    mismatched: bool = False
    diagnostic: tuple = ()
    files: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One task. A new one is one more entry of TASKS.

    fields: name -> type. labels: values in the files, class number = position. answers: the same values as
    the leaderboard wants them. build(record, notes) gives the (text, second text or None) pairs, one a
    choice, and may count things to report in notes. official: rows of the official files, by split. kind: of
    KINDS. metrics: the first one selects. label_names: what else the labels may be called, in lower case and
    in their order (the hub's names). label_range: lowest and highest label of a regression. benchmarks: it
    belongs to, of BENCHMARKS. description: the content of the task.json that describes it. inputs:
    what build makes, in words, where that is not the fields as they are.
    """
    name: str
    fields: dict
    labels: tuple
    answers: tuple
    build: Callable
    official: dict = field(default_factory=dict)
    kind: str = "classification"
    metrics: tuple = ("accuracy",)
    label_names: tuple = ()
    label_range: tuple | None = None
    benchmarks: tuple = ("superglue",)
    layout: Layout = Layout()
    description: str | None = None
    inputs: str | None = None

    @property
    def inputs_in_words(self):
        """How build makes an input, for a reader."""
        return self.inputs or f"({'; '.join(self.fields)}), as they are."

    @property
    def rules(self):
        """The Kind of the task."""
        return KINDS[self.kind]

    @property
    def description_sha256(self):
        """Of the description, whatever its form; None without one."""
        return self.description and hashlib.sha256(self.description.encode()).hexdigest()

    @property
    def rows(self):
        """Encoder inputs per example."""
        return len(self.labels) if self.rules.choices else 1

    @property
    def outputs(self):
        """Width of the task's linear head."""
        return 1 if self.rules.choices else len(self.labels) or 1


def rows_of(train, dev, test, **more):
    """Task.official."""
    return {"train": train, "dev": dev, "test": test, **more}


PAIR, SENTENCES = {"premise": str, "hypothesis": str}, {"sentence1": str, "sentence2": str}
ENTAILMENT = ("entailment", "not_entailment")
GLUE = ("glue",)

TASKS = {task.name: task for task in (
    Task("BoolQ", {"question": str, "passage": str}, (False, True), ("false", "true"),
         build_pair("question", "passage"), rows_of(9427, 3270, 3245)),
    Task("CB", PAIR, *[("entailment", "contradiction", "neutral")] * 2, build_pair("premise", "hypothesis"),
         rows_of(250, 56, 250), metrics=("accuracy", "f1")),
    Task("COPA", {"premise": str, "choice1": str, "choice2": str, "question": str}, (0, 1), (0, 1),
         build_copa, rows_of(400, 100, 500), kind="multiple_choice", label_names=("choice1", "choice2"),
         inputs="Two inputs, one a choice: (premise, a space, `What was the cause?` or `What happened as a"
                " result?`; choice)."),
    # in both benchmarks; GLUE's files, which the released code reads, call the columns so
    Task("RTE", PAIR, ENTAILMENT, ENTAILMENT, build_pair("premise", "hypothesis"), rows_of(2490, 277, 3000),
         benchmarks=("superglue", "glue"),
         layout=Layout(columns={"sentence1": "premise", "sentence2": "hypothesis"})),
    Task("WiC", {"word": str, "sentence1": str, "sentence2": str,
                 "start1": int, "start2": int, "end1": int, "end2": int},
         (False, True), ("false", "true"), build_wic, rows_of(5428, 638, 1400),
         inputs="(word, `: `, sentence1 with `* ` and ` *` around the word; sentence2, likewise)."),
    Task("WSC", {"text": str, "span1_index": int, "span2_index": int, "span1_text": str, "span2_text": str},
         (False, True), ("False", "True"), build_wsc, rows_of(554, 104, 146),
         layout=Layout(nested="target",
                       columns={"sentence": "text", "span1_idx": "span1_index", "span2_idx": "span2_index",
                                "span1_txt": "span1_text", "span2_txt": "span2_text"}),
         inputs="(text with `* ` and ` *` around the noun and `# ` and ` #` around the pronoun; the noun)."),
    # GLUE
    Task("MNLI", PAIR, *[("entailment", "neutral", "contradiction")] * 2,
         build_pair("premise", "hypothesis"),
         rows_of(392702, 9815, 9796, dev_mismatched=9832, test_mismatched=9847, ax=1104), benchmarks=GLUE,
         layout=Layout(columns={"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
                       ignored=("promptID", "pairID", "genre", "sentence1_binary_parse",
                                "sentence2_binary_parse", "sentence1_parse", "sentence2_parse",
                                *(f"label{number}" for number in range(1, 6))),
                       mismatched=True, diagnostic=("AX/AX.tsv", "diagnostic/diagnostic.tsv"))),
    Task("MRPC", SENTENCES, (0, 1), (0, 1), build_pair("sentence1", "sentence2"), rows_of(3668, 408, 1725),
         metrics=("accuracy", "f1_binary"), label_names=("not_equivalent", "equivalent"), benchmarks=GLUE,
         layout=Layout(columns={"quality": "label", "#1 string": "sentence1", "#2 string": "sentence2"},
                       ignored=("#1 ID", "#2 ID"), numbered=True)),
    Task("QNLI", {"question": str, "sentence": str}, ENTAILMENT, ENTAILMENT,
         build_pair("question", "sentence"), rows_of(104743, 5463, 5463), benchmarks=GLUE),
    Task("QQP", {"question1": str, "question2": str}, (0, 1), (0, 1), build_pair("question1", "question2"),
         rows_of(363846, 40430, 390965), metrics=("accuracy", "f1_binary"),
         label_names=("not_duplicate", "duplicate"), benchmarks=GLUE,
         # named by row, as on the hub: `id` is the row in test alone
         layout=Layout(columns={"is_duplicate": "label", "id": "row"}, ignored=("row", "qid1", "qid2"),
                       numbered=True, skips_broken=True)),
    Task("SST-2", {"sentence": str}, (0, 1), (0, 1), build_single("sentence"), rows_of(67349, 872, 1821),
         label_names=("negative", "positive"), benchmarks=GLUE, layout=Layout(numbered=True)),
    Task("STS-B", SENTENCES, (), (), build_pair("sentence1", "sentence2"), rows_of(5749, 1500, 1379),
         kind="regression", metrics=("pearson", "spearman"), label_range=(0.0, 5.0), benchmarks=GLUE,
         layout=Layout(columns={"score": "label"}, ignored=("genre", "filename", "year", "old_index",
                                                            "source1", "source2"))),
    Task("WNLI", SENTENCES, (0, 1), (0, 1), build_pair("sentence1", "sentence2"), rows_of(635, 71, 146),
         label_names=("not_entailment", "entailment"), benchmarks=GLUE),
    Task("CoLA", {"sentence": str}, (0, 1), (0, 1), build_single("sentence"), rows_of(8551, 1043, 1063),
         metrics=("matthews", "accuracy"), label_names=("unacceptable", "acceptable"), benchmarks=GLUE,
         layout=Layout(ignored=("source", "mark"), numbered=True,
                       headerless=("source", "label", "mark", "sentence"))),
)}


def protocol_task(task, protocol):
    """The table's entry as the protocol reads it. The released code takes the first two text columns of every
    task, WSC's second one being the pronoun's partner's word number (METHOD.md rows 1 to 3)."""
    released = {"COPA": (protocol.copa_input == "first_choice", ("premise", "choice1")),
                "WiC": (protocol.wic_input == "first_sentence", ("word", "sentence1")),
                "WSC": (protocol.wsc_input == "span_index", ("text", "span1_index"))}
    applies, columns = released.get(task.name, (False, None))
    if not applies:
        return task
    return replace(task, kind="classification", build=build_pair(*columns),
                   inputs=f"({'; '.join(columns)}), as the released code reads them.")


def tasks_of(benchmark):
    """Names of the tasks of a benchmark."""
    return [name for name, task in TASKS.items() if benchmark in task.benchmarks]


def find_task(name, flag="--task", data_dir=None):
    """The table's entry for `name` in any case, or the task that a task.json in data_dir describes. No other
    description is read."""
    described = descriptions(data_dir)
    for known in TASKS:
        if known.lower() == name.lower():
            return TASKS[known]
    for known, path in described.items():
        if known.lower() == name.lower():
            return read_description(path)
    raise InputError(f"{flag}: {name!r} found, expected one of {', '.join([*TASKS, *described])}, or the name"
                     f" of a folder in --data_dir with a {DESCRIPTION}")


# --- tasks that a file describes ----------------------------------------------------------------------------

DESCRIPTION = "task.json"
FIELD_TYPES = {"text": str, "integer": int, "number": float}
FILE_ENDINGS = ("jsonl", "csv", "tsv", "parquet")
KEYS = {  # of a description: whether it must be there, and what it is
    "kind": (True, str), "fields": (True, dict), "inputs": (False, list), "choices": (False, list),
    "labels": (False, list), "range": (False, list), "metrics": (False, list), "files": (True, dict),
    "label": (False, str), "idx": (False, str)}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")  # stands in paths and commands, names a part of the model


def descriptions(data_dir):
    """{name: path} of the task.json files in the folders of data_dir, in the order of their names."""
    if data_dir in (None, "hub") or not Path(data_dir).is_dir():
        return {}
    return {path.parent.name: path for path in sorted(Path(data_dir).glob(f"*/{DESCRIPTION}"))}


def read_description(path):
    """The Task of a task.json, whose folder's name is the task's. InputError names the key."""
    path = Path(path)
    try:
        given = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=check_object)
    except UnicodeDecodeError as error:
        refuse_description(path, f"byte {error.start} that is not UTF-8", "a JSON object in UTF-8")
    except (ValueError, RecursionError, InputError) as error:
        refuse_description(path, f"no JSON ({error})", "a JSON object")
    return described_task(path.parent.name, given, path)


def refuse_description(path, what, expected):
    raise InputError(f"{path}: {what} found, expected {expected} (docs/TASKS.md)")


def described_task(name, given, path):
    """The Task of a description. path: of the file that it is from, for messages."""
    refuse = functools.partial(refuse_description, path)
    if any(task.name.lower() == name.lower() for task in TASKS.values()):
        refuse(f"a description of {name}, which is a task of this project,", "a folder with another name")
    if not NAME.fullmatch(name) or hasattr(torch.nn.ModuleDict, name):
        refuse(f"a folder named {name!r}", "a name of letters, digits, '_', '+' and '-', such as News")
    if not isinstance(given, dict):
        refuse(type(given).__name__, "a JSON object")
    for key in given:
        if key not in KEYS:
            refuse(f"key {shown(key)}", f"some of {', '.join(KEYS)}")
    for key, (needed, kind) in KEYS.items():
        if key not in given and needed:
            refuse(f"no key {key!r}", f"the keys {', '.join(key for key in KEYS if KEYS[key][0])}")
        if key in given and (not isinstance(given[key], kind) or not given[key]):
            word = {str: "a text", list: "a list", dict: "an object"}[kind]
            refuse(f"key {key!r}: {shown(given[key])}", f"{word} that is not empty")
    if given["kind"] not in KINDS:
        refuse(f"key 'kind': {shown(given['kind'])}", f"one of {', '.join(KINDS)}")
    for field_name, kind in given["fields"].items():
        if not isinstance(kind, str) or kind not in FIELD_TYPES:
            refuse(f"key 'fields': {shown(field_name)} of type {shown(kind)}",
                   f"a type of {', '.join(FIELD_TYPES)}")
    fields = {field_name: FIELD_TYPES[kind] for field_name, kind in given["fields"].items()}
    inputs, choices = given.get("inputs", []), given.get("choices", [])
    labels, metrics = check_kind(given, inputs, choices, refuse)
    for key, names in (("inputs", inputs), ("choices", choices)):
        for field_name in names:
            if not isinstance(field_name, str) or field_name not in fields:
                refuse(f"key {key!r}: {shown(field_name)}", f"names of fields ({', '.join(fields)})")
    label, idx = given.get("label", "label"), given.get("idx")
    for column in (label, idx, "label", "idx"):
        if column in fields:
            refuse(f"key 'fields': {shown(column)}", "fields beside the columns of label and idx")
    check_files(given["files"], refuse)
    build = build_choices(*inputs or (None,), choices) if choices else (
        build_pair(*inputs) if len(inputs) == 2 else build_single(*inputs))
    low_high = tuple(float(end) for end in given["range"]) if "range" in given else None
    columns = {label: "label", **({idx: "idx"} if idx else {})}
    layout = Layout(columns=columns, numbered=idx is None, files=given["files"])
    return Task(name, fields, labels, labels, build, kind=given["kind"], metrics=metrics,
                label_range=low_high, benchmarks=(), layout=layout,
                description=json.dumps(given, sort_keys=True))


def check_kind(given, inputs, choices, refuse):
    """(labels, metrics) of a description, with what its kind allows."""
    kind = KINDS[given["kind"]]
    wanted = {True: ("labels", "range"), False: ("range", "labels")}[kind.labels.counts]
    if wanted[1] in given:
        refuse(f"key {wanted[1]!r}", f"{wanted[0]!r} instead for kind {given['kind']}")
    if wanted[0] not in given:
        refuse(f"no key {wanted[0]!r}", "one" + (": the labels as the files have them" if kind.labels.counts
                                                else ": the lowest and the highest label"))
    labels = tuple(given.get("labels", ()))
    if labels:
        spelled = [str(label).strip().lower() for label in labels]
        if len(labels) < 2 or len(set(spelled)) < len(spelled) or not all(spelled) or not all(
                isinstance(label, (str, int)) for label in labels):
            refuse(f"key 'labels': {shown(given['labels'])}",
                   "at least two texts or whole numbers that differ, in any case")
    else:
        ends = given["range"]
        if len(ends) != 2 or not all(map(is_number, ends)) or not ends[0] < ends[1]:
            refuse(f"key 'range': {shown(ends)}", "two numbers, the smaller one first")
    if kind.choices:
        if len(inputs) > 1 or len(choices) != len(labels):
            refuse(f"{len(inputs)} inputs and {len(choices)} choices for {len(labels)} labels",
                   "at most one field in 'inputs', and in 'choices' a field a label")
    elif choices or not 1 <= len(inputs) <= 2:
        refuse(f"{len(inputs)} inputs and {len(choices)} choices",
               "one or two fields in 'inputs', no 'choices'")
    metrics = tuple(given.get("metrics", kind.labels.metrics[:1]))
    allowed = [name for name in kind.labels.metrics if name != "f1_binary" or len(labels) == 2]
    for name in metrics:
        if name not in allowed or metrics.count(name) > 1:
            refuse(f"key 'metrics': {shown(name)}", f"some of {', '.join(allowed)}, each once")
    return labels, metrics


def check_files(files, refuse):
    """The key `files` of a description."""
    parts = ("train", "quiz", "dev", "test")
    for part in files:
        if part not in parts:
            refuse(f"key 'files': {shown(part)}", f"some of {', '.join(parts)}")
    for part in ("train", "dev"):
        if part not in files:
            refuse(f"key 'files' without {part!r}", "files for train and dev")
    for part, file in files.items():
        good = isinstance(file, str) and Path(file).name == file
        if not good or file.rpartition(".")[2] not in FILE_ENDINGS:
            refuse(f"key 'files': {part} {shown(file)}",
                   f"the name of a file in that folder which ends in {', '.join(FILE_ENDINGS)}")

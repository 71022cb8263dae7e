"""Tasks: how their inputs are built, what differs between kinds of tasks, and the table.

A new task is one more entry of TASKS. Whatever hangs on the kind of a task (its loss, p(y|x), what counts as
its answer) stands in KINDS and nowhere else.
"""
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional as F

from bookkeeping.errors import InputError

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

def true_class_probability(logits, labels):
    """p(y|x). logits: (batch, classes), labels: (batch) -> (batch)."""
    return logits.softmax(dim=-1).gather(1, labels[:, None]).squeeze(1)


def soft_loss(teacher_logits, student_logits, temperature):
    """soft = t^2 * MSE(softmax(T'(h_T)/t), softmax(S/t)), mean over all elements (METHOD.md phase 2). Both:
    (batch, classes)."""
    return temperature ** 2 * F.mse_loss((student_logits / temperature).softmax(-1),
                                         (teacher_logits / temperature).softmax(-1))


@dataclass(frozen=True)
class Kind:
    """What differs between kinds of tasks; outputs are what Heads give: (batch, classes).

    loss(outputs, labels): scalar, the CE of every equation. agreement(outputs, labels): (batch), the p(y|x)
    of every equation. soft_loss(teacher's outputs, student's outputs, temperature): scalar. answer(outputs):
    (batch), what is predicted. label_type: of the labels. choices: whether each label is a text of its own,
    an encoder input each, whose scores a softmax compares.
    """
    loss: Callable
    agreement: Callable
    soft_loss: Callable
    answer: Callable
    label_type: torch.dtype
    choices: bool


def largest(outputs):
    """The class with the largest logit. (batch, classes) -> (batch)."""
    return outputs.argmax(-1)


KINDS = {
    "classification": Kind(F.cross_entropy, true_class_probability, soft_loss, largest, torch.int64,
                           choices=False),
    "multiple_choice": Kind(F.cross_entropy, true_class_probability, soft_loss, largest, torch.int64,
                            choices=True)
}


# --- the task table -----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Task:
    """One task. A new one is one more entry of TASKS.

    fields: name -> type. labels: values in the files, class number = position. answers: the same values as
    the leaderboard wants them. build(record, notes) gives the (text, second text) pairs, one a choice, and
    may count things to report in notes. official: rows of the official train, dev and test files. kind: of
    KINDS. metrics: the first one selects. nested: the one object in a record that is opened. columns: {other
    name of a .tsv's column, in lower case: field}. label_names: what else the labels may be called, in lower
    case and in their order (the hub's COPA).
    """
    name: str
    fields: dict
    labels: tuple
    answers: tuple
    build: Callable
    official: tuple | None = None
    kind: str = "classification"
    metrics: tuple = ("accuracy",)
    nested: str | None = None
    columns: dict = field(default_factory=dict)
    label_names: tuple = ()

    @property
    def rules(self):
        """The Kind of the task."""
        return KINDS[self.kind]

    @property
    def rows(self):
        """Encoder inputs per example."""
        return len(self.labels) if self.rules.choices else 1

    @property
    def outputs(self):
        """Width of the task's linear head."""
        return 1 if self.rules.choices else len(self.labels)


PAIR = {"premise": str, "hypothesis": str}

TASKS = {task.name: task for task in (
    Task("BoolQ", {"question": str, "passage": str}, (False, True), ("false", "true"),
         build_pair("question", "passage"), (9427, 3270, 3245)),
    Task("CB", PAIR, *[("entailment", "contradiction", "neutral")] * 2, build_pair("premise", "hypothesis"),
         (250, 56, 250), metrics=("accuracy", "f1")),
    Task("COPA", {"premise": str, "choice1": str, "choice2": str, "question": str}, (0, 1), (0, 1),
         build_copa, (400, 100, 500), kind="multiple_choice", label_names=("choice1", "choice2")),
    # the released code reads GLUE's files, whose columns are called so
    Task("RTE", PAIR, *[("entailment", "not_entailment")] * 2, build_pair("premise", "hypothesis"),
         (2490, 277, 3000), columns={"sentence1": "premise", "sentence2": "hypothesis"}),
    Task("WiC", {"word": str, "sentence1": str, "sentence2": str,
                 "start1": int, "start2": int, "end1": int, "end2": int},
         (False, True), ("false", "true"), build_wic, (5428, 638, 1400)),
    Task("WSC", {"text": str, "span1_index": int, "span2_index": int, "span1_text": str, "span2_text": str},
         (False, True), ("False", "True"), build_wsc, (554, 104, 146), nested="target",
         columns={"sentence": "text", "span1_idx": "span1_index", "span2_idx": "span2_index",
                  "span1_txt": "span1_text", "span2_txt": "span2_text"}),
)}


def protocol_task(task, protocol):
    """The table's entry as the protocol reads it. The released code takes the first two text columns of every
    task, WSC's second one being the pronoun's partner's word number (METHOD.md rows 1 to 3)."""
    released = {"COPA": (protocol.copa_input == "first_choice", ("premise", "choice1")),
                "WiC": (protocol.wic_input == "first_sentence", ("word", "sentence1")),
                "WSC": (protocol.wsc_input == "span_index", ("text", "span1_index"))}
    applies, columns = released.get(task.name, (False, None))
    return replace(task, kind="classification", build=build_pair(*columns)) if applies else task


def find_task(name, flag="--task"):
    """The table's entry for `name` in any case."""
    for task in TASKS.values():
        if task.name.lower() == name.lower():
            return task
    raise InputError(f"{flag}: {name!r} found, expected one of {', '.join(TASKS)}")

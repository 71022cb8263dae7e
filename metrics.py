"""Scores, selection of the best epoch, the leaderboard's prediction format."""
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score

from bookkeeping.errors import InputError
from data_utils import read_objects


def score(task, predictions, labels):
    """{"accuracy", "f1" (macro, where the task has it), "correct", "total"} of class numbers against class
    numbers."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    correct = int((predictions == labels).sum())
    result = {"accuracy": correct / len(labels)}
    if "f1" in task.metrics:
        result["f1"] = float(f1_score(labels, predictions, average="macro", zero_division=0))
    return {**result, "correct": correct, "total": len(labels)}


def row_of(split, answers):
    """The figures of a row: scores, and which examples were right, a sign each."""
    right = "".join("01"[answer == label]
                    for answer, label in zip(answers, split.labels.tolist(), strict=True))
    return {**score(split.task, answers, split.labels), "right": right}


def count_labels(split):
    """Examples of each class."""
    return np.bincount(split.labels, minlength=len(split.task.labels)).tolist()


@dataclass
class Best:
    """The first best of a series: keeps a copy of the module's weights whenever a score is strictly greater
    than all before it and than the `score` that it begins with (METHOD.md row 18).

    index: of the epoch or episode; scores: all of its scores; answers: {split name: what the model answered
    then}, kept so that nobody has to predict it again.
    """
    score: float = -np.inf
    index: int | None = None
    scores: dict | None = None
    answers: dict = field(default_factory=dict)
    weights: dict | None = None

    def offer(self, value, index, scores, module, answers):
        """Whether `value`, the selecting score, is the best so far; then what belongs to it is kept."""
        if not value > self.score:
            return False
        self.score, self.index, self.scores, self.answers = value, index, scores, answers
        self.weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        return True

    def restore(self, module):
        """Put the best weights back into the module."""
        module.load_state_dict(self.weights)
        self.weights = None


# --- prediction files ---------------------------------------------------------------------------------------

def write_predictions(path, task, idx, predictions):
    """One {"idx", "label"} a line, labels as the SuperGLUE leaderboard spells them."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(
        "".join(
            json.dumps({"idx": number, "label": task.answers[answer]}) + "\n"
            for number, answer in zip(idx, map(int, predictions), strict=True)), encoding="utf-8")


def read_predictions(path, task):
    """{idx: class number} of a file in the leaderboard's format, in the order of its lines. InputError, with
    file:line, where a line is none or an idx stands twice."""
    answers, found, places = ({json.dumps(answer): number
                               for number, answer in enumerate(task.answers)}, {}, {})
    for where, row in read_objects(Path(path)):
        if not {"idx", "label"} <= row.keys() or any(isinstance(value, dict) for value in row.values()):
            raise InputError(
                f'{where}: keys {json.dumps(list(row))} found, expected {{"idx": ..., "label": ...}}')
        idx, label = row["idx"], json.dumps(row["label"])
        if not isinstance(idx, (int, str)) or isinstance(idx, bool):
            raise InputError(
                f"{where}: idx {json.dumps(idx)} found, expected the whole number or text that names the"
                " example in the data")
        if idx in places:
            raise InputError(
                f"{where}: idx {json.dumps(idx)} stands already at {places[idx]}; expected one prediction an"
                " example")
        if label not in answers:
            raise InputError(
                f"{where}: label {label} found, expected one of {', '.join(answers)}, as the leaderboard"
                f" spells {task.name}")
        places[idx], found[idx] = where, answers[label]
    return found

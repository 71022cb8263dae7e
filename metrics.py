"""Scores, selection of the best epoch, and the leaderboard's prediction format."""
import json
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score

from data_utils import InputError


def score(task, predictions, labels):
    """{"accuracy", "f1" (macro, where the task has it), "correct", "total"} of class numbers against class numbers."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    correct = int((predictions == labels).sum())
    result = {"accuracy": correct / len(labels)}
    if "f1" in task.metrics:
        result["f1"] = float(f1_score(labels, predictions, average="macro", zero_division=0))
    return {**result, "correct": correct, "total": len(labels)}


class Best:
    """The first best of a series: keeps a copy of the module's weights whenever a score is strictly greater than all
    before it and than `floor` (METHOD.md row 18)."""

    def __init__(self, floor=-np.inf):
        self.score, self.index, self.scores, self.answers, self.weights = floor, None, None, {}, None

    def offer(self, value, index, scores, module, answers):
        """Whether `value` (the selecting score, reached at epoch or episode `index`) is the best so far. answers: {split name:
        class numbers} that led to it, kept so that nobody has to predict them again."""
        if not value > self.score:
            return False
        self.score, self.index, self.scores, self.answers = value, index, scores, answers
        self.weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        return True

    def state(self):
        """(tensors, values) from which load_state makes the same Best again."""
        return self.weights or {}, {"score": self.score, "index": self.index, "scores": self.scores, "answers": self.answers}

    def load_state(self, tensors, values):
        """Take over what state gave."""
        self.score, self.index, self.scores, self.answers = (values[name] for name in ("score", "index", "scores", "answers"))
        self.weights = tensors or None

    def restore(self, module):
        """Put the best weights back into the module."""
        module.load_state_dict(self.weights)
        self.weights = None


def write_predictions(path, task, idx, predictions):
    """One {"idx", "label"} a line, labels as the SuperGLUE leaderboard spells them."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps({"idx": number, "label": task.answers[answer]}) + "\n"
                                  for number, answer in zip(idx, map(int, predictions), strict=True)), encoding="utf-8")


def read_predictions(path, task):
    """{idx: class number} of a file that write_predictions wrote."""
    answers, found = {json.dumps(answer): number for number, answer in enumerate(task.answers)}, {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        if json.dumps(row["label"]) not in answers:
            raise InputError(f"{path}:{number}: label {row['label']!r} found, expected one of {', '.join(answers)}")
        found[row["idx"]] = answers[json.dumps(row["label"])]
    return found

"""Scores, selection of the best epoch, the leaderboard's prediction format."""
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score, matthews_corrcoef

from bookkeeping.errors import InputError
from data_utils import read_objects

# --- scores -------------------------------------------------------------------------------------------------

def accuracy(labels, answers):
    return int((labels == answers).sum()) / len(labels)


def macro_f1(labels, answers):
    return float(f1_score(labels, answers, average="macro", zero_division=0))


def f1_of_class_1(labels, answers):
    return float(f1_score(labels, answers, average="binary", pos_label=1, zero_division=0))


def matthews(labels, answers):
    return float(matthews_corrcoef(labels, answers))


def correlation(name):
    """Pearson's or Spearman's correlation coefficient by scipy; 0 where one side is constant, of which score
    says so."""
    def coefficient(labels, answers):
        from scipy import stats  # here: half a second that other tasks need not wait for
        if constant_side(labels, answers):
            return 0.0
        return float(getattr(stats, name)(labels, answers).statistic)
    return coefficient


def constant_side(labels, answers):
    """"answers" or "labels", whichever has one value alone; None where neither has."""
    return next((name for name, values in (("answers", answers), ("labels", labels))
                 if (values == values[0]).all()), None)


METRICS = {"accuracy": accuracy, "f1": macro_f1, "f1_binary": f1_of_class_1, "matthews": matthews,
           "pearson": correlation("pearsonr"), "spearman": correlation("spearmanr")}
METRIC_NAMES = {"accuracy": "accuracy", "f1": "macro-F1", "f1_binary": "F1", "matthews": "Matthews",
                "pearson": "Pearson", "spearman": "Spearman", "mse": "MSE"}


def score(task, answers, labels):
    """{metric: figure, "total"} of answers against labels: of classes "accuracy", the task's other metrics
    and the "correct" ones; of numbers the task's metrics, "mse" and, where one side has but one value, so
    that no correlation is defined and 0 stands for it, "constant": which."""
    answers, labels, rules = np.asarray(answers), np.asarray(labels), task.rules.labels
    scores = rules.example_scores(answers, labels)
    names = dict.fromkeys([*["accuracy"] * rules.counts, *task.metrics])
    result = {name: METRICS[name](labels, answers) for name in names}
    if rules.counts:
        return {**result, "correct": int(scores.sum()), "total": len(labels)}
    constant = constant_side(labels, answers)
    return {**result, "mse": -float(scores.mean()), "total": len(labels),
            **({"constant": constant} if constant else {})}


def row_of(split, answers):
    """The figures of a row: scores, and that of every example: which were right, a sign each, or minus the
    squared errors."""
    scores = split.task.rules.labels.example_scores(answers, split.labels)
    assert len(answers) == len(split)
    if split.task.rules.labels.counts:
        by_example = {"right": "".join("01"[right] for right in scores.astype(int))}
    else:
        by_example = {"example_scores": [round(value, 6) for value in scores.tolist()]}
    return {**score(split.task, answers, split.labels), **by_example}


def describe_labels(split):
    """What a result says of a split's labels: examples of each class, or number, mean and variance."""
    return split.task.rules.labels.describe(split.labels.numpy(), split.task)


def floor_of(task, described):
    """The scores of the best answer that is the same for all examples (the most frequent class, the mean), by
    what describe_labels gave."""
    answer, labels = task.rules.labels.floor(described)
    return score(task, np.full(len(labels), answer), labels)


def spoken(figures):
    """The scores of a split in a few words."""
    if "correct" in figures:
        return f"{figures['correct']}/{figures['total']}"
    constant = f" (constant {figures['constant']})" if "constant" in figures else ""
    return f"{named_scores(figures)[0]}{constant}"


def first_metric(figures):
    """The name of the first figure of a row or of a line's scores."""
    return next(name for name in figures if name in METRICS)


def named_scores(figures, without=("accuracy",)):
    """Texts, each a metric and its value in percent, in the task's order."""
    return [f"{METRIC_NAMES[name]} {100 * value:.1f}" for name, value in figures.items()
            if name in METRICS and name not in without]


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
    places_itself = True  # on the host, where there is more room than on a GPU

    def offer(self, value, index, scores, module, answers):
        """Whether `value`, the selecting score, is the best so far; then what belongs to it is kept."""
        if not value > self.score:
            return False
        self.score, self.index, self.scores, self.answers = value, index, scores, answers
        self.weights = {name: tensor.detach().to("cpu", copy=True)
                        for name, tensor in module.state_dict().items()}
        return True

    def restore(self, module):
        """Put the best weights back into the module."""
        module.load_state_dict(self.weights)
        self.weights = None


# --- prediction files ---------------------------------------------------------------------------------------

def write_predictions(path, task, idx, predictions):
    """One {"idx", "label"} a line, labels as the task's leaderboard spells them, or numbers."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(
        "".join(
            json.dumps({"idx": number, "label": task.rules.labels.write(answer, task)}) + "\n"
            for number, answer in zip(idx, predictions, strict=True)), encoding="utf-8")


def read_predictions(path, task):
    """{idx: answer} of a file that write_predictions wrote, in the order of its lines. InputError, with
    file:line, where a line is none or an idx stands twice."""
    found, places = {}, {}
    for where, row in read_objects(Path(path)):
        if not {"idx", "label"} <= row.keys() or any(isinstance(value, dict) for value in row.values()):
            raise InputError(
                f'{where}: keys {json.dumps(list(row))} found, expected {{"idx": ..., "label": ...}}')
        idx = row["idx"]
        if not isinstance(idx, (int, str)) or isinstance(idx, bool):
            raise InputError(
                f"{where}: idx {json.dumps(idx)} found, expected the whole number or text that names the"
                " example in the data")
        if idx in places:
            raise InputError(
                f"{where}: idx {json.dumps(idx)} stands already at {places[idx]}; expected one prediction an"
                " example")
        try:
            places[idx], found[idx] = where, task.rules.labels.read(row["label"], task)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return found

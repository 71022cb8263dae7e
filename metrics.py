"""Scores, selection of the best epoch, the leaderboard's prediction format, and the statistics of tables."""
import json
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score

from data_utils import InputError, read_jsonl


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


# --- statistics ----------------------------------------------------------------------------------------------------------
# scipy comes with scikit-learn; it and statsmodels are imported where used, since no run needs them.

RESAMPLES = 9999


def exact_interval(correct, total, level=0.95):
    """Clopper-Pearson interval (low, high) of a share of right answers."""
    from scipy.stats import binomtest
    interval = binomtest(correct, total).proportion_ci(level, method="exact")
    return interval.low, interval.high


def mean_interval(values, level=0.95, least=-1.0):
    """(mean, low, high) of values: (seeds, examples), between `least` and 1. The interval has the outer ends of two: the percentile
    bootstrap over seeds and examples, drawn anew independently (Owen 2007, "The pigeonhole bootstrap"), and Student's t over the seeds'
    means, since a bootstrap of few seeds is too narrow. Of one seed: the bootstrap over its examples alone, which says nothing of
    other seeds."""
    from scipy.stats import bootstrap, t
    values = np.asarray(values, dtype=float)
    seeds, examples = values.shape

    def mean_of(*drawn, axis):
        if len(drawn) == 1:
            return values[0][drawn[0]].mean(axis)
        return values[drawn[0][..., :, None], drawn[1][..., None, :]].mean((-2, -1))

    places = (np.arange(examples),) if seeds == 1 else (np.arange(seeds), np.arange(examples))
    interval = bootstrap(places, mean_of, n_resamples=RESAMPLES, batch=max(1, 2_000_000 // values.size), vectorized=True, axis=-1,
                         confidence_level=level, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    low, high = float(interval.low), float(interval.high)
    by_seed = values.mean(1)
    if np.ptp(by_seed) > 0:
        around = t.interval(level, seeds - 1, by_seed.mean(), by_seed.std(ddof=1) / np.sqrt(seeds))
        low, high = max(least, min(low, float(around[0]))), min(1.0, max(high, float(around[1])))
    return float(values.mean()), low, high


def permutation_p(first, second):
    """Two-sided p of no difference between two rows, right or wrong as (seeds, examples): both are swapped, an example in all seeds
    at once, since one example's answers hang together. Of one seed it is McNemar's test. It takes the seeds as they are: whether other
    seeds would say the same is the interval's part. Exact where at most 13 examples tell the
    rows apart, else from RESAMPLES swaps."""
    from scipy.stats import permutation_test
    sums = np.asarray(first).sum(0), np.asarray(second).sum(0)
    told_apart = sums[0] != sums[1]  # the others change nothing when swapped
    if told_apart.sum() < 2:
        return 1.0
    return permutation_test([row[told_apart] for row in sums], lambda a, b, axis: (a - b).mean(axis), permutation_type="samples",
                            vectorized=True, axis=-1, n_resamples=RESAMPLES, batch=500, rng=np.random.default_rng(0)).pvalue


def corrected(p_values):
    """Holm's correction for the number of comparisons."""
    from statsmodels.stats.multitest import multipletests
    return multipletests(p_values, method="holm")[1].tolist() if len(p_values) else []


def expected_best(scores, looks):
    """Mean of the best of `looks` scores drawn from `scores` without replacement: what selecting among fewer looks would have kept."""
    from scipy.special import comb
    scores = np.sort(np.asarray(scores, dtype=float))
    looks = min(looks, len(scores))
    return float(scores @ (comb(np.arange(len(scores)), looks - 1) / comb(len(scores), looks)))


def count_wins(teacher, students):
    """In how many tasks the best of students is right more often than the teacher. teacher: right answers a task; students: those of
    each student."""
    return int(sum(max(student[task] for student in students) > right for task, right in enumerate(teacher)))


def chance_of_wins(teacher, students):
    """Chance of at least as many wins as were found (count_wins) if teacher and students were exchangeable: their answers to each
    example are dealt out anew. Students that are more alike than that win less often. teacher: for each task (examples), right
    answers over seeds; students: such a list each."""
    from scipy.stats import permutation_test
    ends = np.cumsum([len(task) for task in teacher])
    columns = [np.concatenate(row) for row in (teacher, *students)]

    def wins(*columns, axis):
        sums = [np.stack([part.sum(-1) for part in np.split(column, ends[:-1], axis=-1)]) for column in columns]
        return (np.max(sums[1:], axis=0) > sums[0]).sum(0)

    return permutation_test(columns, wins, permutation_type="samples", alternative="greater", vectorized=True, axis=-1,
                            n_resamples=RESAMPLES, batch=500, rng=np.random.default_rng(0)).pvalue


# --- prediction files ----------------------------------------------------------------------------------------------------

def write_predictions(path, task, idx, predictions):
    """One {"idx", "label"} a line, labels as the SuperGLUE leaderboard spells them."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps({"idx": number, "label": task.answers[answer]}) + "\n"
                                  for number, answer in zip(idx, map(int, predictions), strict=True)), encoding="utf-8")


def read_predictions(path, task):
    """{idx: class number} of a file in the leaderboard's format, in the order of its lines. InputError, with file:line, where a
    line is none or an idx stands twice."""
    answers, found, places = {json.dumps(answer): number for number, answer in enumerate(task.answers)}, {}, {}
    for where, row in read_jsonl(Path(path), task):
        if not {"idx", "label"} <= row.keys() or any(isinstance(value, dict) for value in row.values()):  # read_jsonl flattens objects
            raise InputError(f'{where}: keys {json.dumps(list(row))} found, expected {{"idx": ..., "label": ...}}')
        idx, label = row["idx"], json.dumps(row["label"])
        if not isinstance(idx, (int, str)) or isinstance(idx, bool):
            raise InputError(f"{where}: idx {json.dumps(idx)} found, expected the whole number or text that names the example in the data")
        if idx in places:
            raise InputError(f"{where}: idx {json.dumps(idx)} stands already at {places[idx]}; expected one prediction an example")
        if label not in answers:
            raise InputError(f"{where}: label {label} found, expected one of {', '.join(answers)}, as the leaderboard spells {task.name}")
        places[idx], found[idx] = where, answers[label]
    return found

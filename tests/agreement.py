"""Hold a finished run of the command line against tests/reference.py, figure by figure.

    python tests/agreement.py RUN_FOLDER          prints the largest difference per kind of figure

A difference is divided by the size of what the run wrote (of a list or tensor: by its largest entry), or by
FLOOR where that is larger. Both sides compute in float32. They differ in which examples go through an encoder
together and in the optimizer's kernel. What is no float must be equal.
"""
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from reference import LABELS, recompute

FLOOR = 1e-2
FIGURES, WEIGHTS = 1e-4, 5e-4  # tolerances
CORRELATIONS = ("pearson", "spearman")
# AdamW makes whole steps of gradients that are rounding errors. Few entries of a tensor have such a gradient:
# the share MOST of them is compared. UNSEEN have no other, since a softmax does not see them.
MOST, UNSEEN = 0.99, ("attention.self.key.bias", "COPA.bias")


class Agreement:
    """Largest difference per kind of figure, and the first one out of tolerance."""

    def __init__(self):
        self.largest, self.first = {}, None

    def note(self, kind, difference, said, tolerance=FIGURES):
        self.largest[kind] = max(self.largest.get(kind, 0.0), float(difference))
        if not difference <= tolerance:
            self.first = self.first or f"{kind}: {said}"

    def equal(self, kind, ours, theirs):
        self.note(kind, 0.0 if ours == theirs else np.inf, f"{theirs!r}, reference {ours!r}")

    def close(self, kind, ours, theirs):
        """A figure or a list of them."""
        ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        if ours.shape != theirs.shape:
            return self.equal(f"shape of {kind}", ours.shape, theirs.shape)
        # near 0 it is a difference of large sums
        least = 1.0 if kind.endswith(CORRELATIONS) else FLOOR
        difference = np.abs(ours - theirs).max(initial=0) / max(np.abs(theirs).max(initial=0), least)
        said = f"{difference:.2g} of {theirs:.6g}" if theirs.ndim == 0 else f"{difference:.2g}"
        self.note(kind, difference, said)

    def compare(self, kind, ours, theirs):
        """A line of metrics.jsonl or trajectories.jsonl, or a part of one."""
        if isinstance(theirs, dict):
            self.equal(f"{kind}, names", sorted(ours), sorted(theirs))
            for name in [name for name in theirs if name in ours]:
                self.compare(f"{kind} {name}", ours[name], theirs[name])
        elif isinstance(theirs, float) or (isinstance(theirs, list) and not isinstance(theirs[0], str)):
            self.close(kind, ours, theirs)
        else:
            self.equal(kind, ours, theirs)

    def weights(self, kind, ours, *files):
        theirs = {name.removeprefix("bert."): tensor for file in files
                  for name, tensor in load_file(file).items() if not name.startswith("classifier.")}
        ours = {name.removeprefix("body.").removeprefix("heads."): tensor for name, tensor in ours.items()}
        self.equal(f"{kind}, names", sorted(theirs.keys() - ours.keys()), [])
        for name in sorted(name for name in theirs.keys() & ours.keys() if not name.endswith(UNSEEN)):
            distance = np.quantile((ours[name] - theirs[name]).abs(), MOST, method="higher")
            difference = distance / max(theirs[name].abs().max().item(), FLOOR)
            self.note(kind, difference, f"{name}, {difference:.2g}", WEIGHTS)

    def answers(self, kind, logits, labels, theirs):
        """Predictions are equal where the best logit is further from the next than rounding errors reach;
        numbers are close."""
        if not labels:
            return self.close(kind, logits[:, 0], theirs)
        first, second = logits.topk(2).values.unbind(-1)
        sure = ((first - second) > FIGURES * first.abs().clamp(min=1)).tolist()
        ours = [str(labels[answer]) for answer in logits.argmax(-1)]
        self.equal(kind, [answer for answer, is_sure in zip(ours, sure) if is_sure],
                   [answer for answer, is_sure in zip(theirs, sure, strict=True) if is_sure])


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def compare_row(found, run, row, dev, folder):
    """A row of result.json, and its predictions."""
    labels, answers = LABELS[run.task], {}
    for split in ("dev", "test"):
        lines = read_lines(folder / split / f"{run.task}.jsonl")
        answers[split] = [str(line["label"]) if labels else line["label"] for line in lines]
        idx = [example.idx for example in run.data[split]]
        found.equal(f"{row} idx of {split}", idx, [line["idx"] for line in lines])
        found.answers(f"{row} predictions of {split}", run.rows[row][split], labels, answers[split])
    found.equal(f"{row} kept", run.rows[row]["number"], dev.get("epoch", dev.get("episode")))
    given = [example.label for example in run.data["dev"]]
    if not labels:
        errors = [-(answer - label) ** 2 for answer, label in zip(answers["dev"], given, strict=True)]
        return found.close(f"{row} example scores", errors, dev["example_scores"])
    truth = [str(labels[label]) for label in given]
    right = "".join(str(int(answer == label)) for answer, label in zip(answers["dev"], truth, strict=True))
    said = (dev["right"], dev["correct"], dev["total"])
    found.equal(f"{row} right", (right, right.count("1"), len(right)), said)


def agreement(folder):
    """Recompute the run in a folder, and compare all that it left. Returns the Agreement."""
    folder, found = Path(folder), Agreement()
    run, result = recompute(folder), json.loads((folder / "result.json").read_text(encoding="utf-8"))
    metrics, recorded = (read_lines(folder / f"{name}.jsonl") for name in ("metrics", "trajectories"))
    found.equal("phases", [line["phase"] for line in run.metrics], [line["phase"] for line in metrics])
    for ours, theirs in zip(run.metrics, metrics):
        if "episode" in theirs:                                   # what happened in it, before its figures
            place = theirs["episode"] - 1
            found.compare("trajectory", run.trajectories[place], recorded[place])
        theirs = {name: value for name, value in theirs.items() if name != "seconds"}
        found.compare(theirs["phase"], ours, theirs)
    found.equal("rows", list(run.rows), list(result["rows"]))
    for row in run.rows:
        compare_row(found, run, row, result["rows"][row]["dev"], folder / "predictions" / row)
    for phase, said in result["phases"].items():
        weights = [folder / said["folder"] / f"{name}.safetensors" for name in ("heads", "model")]
        found.weights(f"{phase} weights", run.weights[phase], *weights[:1 if phase == "meta_teacher" else 2])
        found.equal(f"{phase} best epoch", run.rows[phase]["number"], said["best"]["epoch"])
    models, student = folder / "models", folder / "models" / "student"
    found.weights("final weights", run.weights[list(run.rows)[-1]], student / "heads.safetensors",
                  student / "model.safetensors")
    found.weights("policy weights", run.weights["policy"], models / "policy.safetensors")
    return found


if __name__ == "__main__":
    differences = agreement(sys.argv[1])
    for what, largest in differences.largest.items():
        print(f"{what:<40} {largest:.2g}")
    sys.exit(differences.first)

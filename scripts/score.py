"""Score prediction files of runs against labelled files, with an exact 95% interval.

    python scripts/score.py --predictions RUN/predictions/mpdistil/dev --labels DATA_DIR/CB/val.jsonl ...

A labels file is SuperGLUE's .jsonl, GLUE's or the released code's .tsv, or one that a task.json names, in a
folder that has its task's name (any case); its predictions are <Task>.jsonl. The interval is
Clopper-Pearson's: of the accuracy on examples like these, as they are drawn, not over seeds. The floor is
the accuracy of the most frequent class. Official idx begin at 0 in every split: that predictions and labels
are of one split shows only where the splits' sizes differ.
"""
import os
import sys
from dataclasses import replace
from pathlib import Path

from lib.commands import exit_code
from lib.predictions import compare_idx
from lib.statistics import exact_interval

from arguments import OneLineParser
from bookkeeping.errors import InputError
from data_utils import LAYOUTS, build_examples, read_described
from metrics import floor_of, named_scores, read_predictions, score
from tasks import find_task

READERS = {f".{ending}": read for ending, read, _ in LAYOUTS}


def read_labels(path):
    """(task, {idx: label}) of a labelled file, the task being the name of its folder."""
    folder = Path(os.path.abspath(path)).parent
    task = find_task(folder.name, f"--labels {path}: name of its folder", folder.parent)
    readers = {path.suffix: read_described} if path.name in task.layout.files.values() else READERS
    if path.suffix not in readers:
        raise InputError(f"--labels {path}: a name that ends in {path.suffix or 'nothing'} found, expected"
                         f" {' or '.join(READERS)}")
    if not path.is_file():
        raise InputError(f"--labels {path}: no such file, expected the labelled file of {task.name}")
    # labels are the same under every protocol, whatever it makes of the texts
    bare = replace(task, build=lambda record, notes: [])
    examples = build_examples(bare, readers[path.suffix](path, task), path)
    if examples[0].label is None:  # then all of them: build_examples refuses half-labelled files
        raise InputError(f"{examples[0].where}: no label, nor in any other line; expected a labelled file,"
                         " such as val.jsonl")
    return task, {example.idx: example.label for example in examples}


def row_of(task, predicted, labels):
    """A line of the table: answers by idx, predicted and given."""
    rules, given = task.rules.labels, list(labels.values())
    found = score(task, [predicted[idx] for idx in labels], given)
    cells = [f"{found['total']} examples", "", ""]
    if rules.counts:
        interval = [f"{100 * end:.1f}" for end in exact_interval(found["correct"], found["total"])]
        cells = [f"{found['correct']}/{found['total']}", f"{100 * found['accuracy']:.1f}",
                 " to ".join(interval)]
    others = named_scores(found)
    if "constant" in found:
        others.append(f"constant {found['constant']}")
    floor = floor_of(task, rules.describe(given, task)).get("accuracy")
    return f"| {' | '.join([task.name, *cells, ', '.join(others), f'{100 * floor:.1f}' if floor else ''])} |"


def score_files(folder, files):
    """Print the table, and which files of the folder had no labels."""
    if not folder.is_dir():
        raise InputError(f"--predictions {folder}: no such folder, expected one that holds <Task>.jsonl")
    there, given = sorted(path.name for path in folder.glob("*.jsonl")), {}
    for path in files:
        task, labels = read_labels(path)
        if task.name in given:
            raise InputError(f"--labels {path}: {given[task.name][0]} is of {task.name} too; give one file a"
                             " task")
        given[task.name] = path, task, labels
    rows = []
    for path, task, labels in given.values():
        file = folder / f"{task.name}.jsonl"
        if not file.is_file():
            raise InputError(f"{file}: no such file, expected the predictions for --labels {path}; in that"
                             f" folder: {', '.join(there) or 'no .jsonl file'}")
        predicted = read_predictions(file, task)
        compare_idx(file, predicted, labels, path, "give the predictions and the labels of one split")
        rows.append(row_of(task, predicted, labels))
    print("| task | correct | accuracy, % | 95% interval, % | other scores, % | floor, % |",
          "|---|---|---|---|---|---|", *rows, sep="\n")
    left = [name for name in there if Path(name).stem not in given]
    if left:
        print(f"\nnot scored, no labels given: {', '.join(left)}")


def main(argv=None):
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("--predictions", required=True, type=Path, metavar="FOLDER",
                        help="holds <Task>.jsonl, such as predictions/kd/dev")
    parser.add_argument("--labels", required=True, nargs="+", type=Path, metavar="FILE",
                        help="such as DATA_DIR/CB/val.jsonl")
    args = parser.parse_args(argv)
    return exit_code(score_files, args.predictions, args.labels)


if __name__ == "__main__":
    sys.exit(main())

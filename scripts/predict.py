"""Predict with the student of a run: a .jsonl, .csv, .tsv or .parquet of inputs in, predictions with
probabilities out; scored where the inputs have labels.

    python scripts/predict.py RUN_FOLDER INPUTS [--output FILE.jsonl]
    python scripts/predict.py RUN_FOLDER/models/student INPUTS

INPUTS has the task's fields as its own files have them (docs/TASKS.md): .jsonl as SuperGLUE, .tsv as GLUE,
.csv and .parquet in columns of these names. idx and label may be missing. A line of the output is {"idx",
"label", "probabilities": {label: p}}, of a regression {"idx", "label"}.
"""
import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from lib.commands import exit_code, put

from arguments import COUNT, OneLineParser, Protocol
from bookkeeping.errors import InputError
from bookkeeping.export import INPUTS_FILE, names_of_labels
from bookkeeping.files import read_json
from bookkeeping.machine import EVAL_BATCH_SIZES, resolve_device
from data_utils import (
    batches_by_length,
    build_examples,
    encode_split,
    read_described,
    read_jsonl,
    read_tsv,
    rename,
)
from metrics import named_scores, score, spoken
from models import Heads, load_encoder, load_heads
from tasks import TASKS, described_task, protocol_task

READERS = {".jsonl": lambda path, task: rename(read_jsonl(path, task), task), ".tsv": read_tsv,
           ".csv": read_described, ".parquet": read_described}


def find_model(path):
    """(folder of the model, what inputs.json says of it)."""
    folder = next((folder for folder in (path, path / "models" / "student")
                   if (folder / INPUTS_FILE).is_file()), None)
    if folder is None:
        raise InputError(f"{path}: neither {INPUTS_FILE} nor models/student/{INPUTS_FILE} found, expected the"
                         " folder of a finished run, or of its student")
    return folder, read_json(folder / INPUTS_FILE, "give the folder as the run left it")


def task_of(facts, folder):
    """The Task of a model, as its protocol reads it; examples need no idx."""
    if facts["description"]:
        task = described_task(facts["task"], facts["description"], folder / INPUTS_FILE)
    else:
        task = TASKS[facts["task"]]
    return protocol_task(task, Protocol(**facts["protocol_choices"]))


def read_inputs(path, task, text_case):
    """Examples of a file; InputError where it cannot be read."""
    if path.suffix not in READERS:
        raise InputError(f"{path}: a name that ends in {path.suffix or 'nothing'} found, expected"
                         f" {', '.join(READERS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected inputs of {task.name} ({', '.join(task.fields)})")
    read = read_described if task.description else READERS[path.suffix]
    records = []
    for number, (where, record) in enumerate(read(path, task)):
        if record is not None:
            record.setdefault("idx", number)
        records.append((where, record))
    return build_examples(task, records, path, text_case)


@torch.no_grad()
def outputs_of(encoder, heads, task, split, batch_size, device):
    """(examples, outputs) on the CPU, in the split's order, with a progress bar."""
    found = None
    with tqdm(total=len(split), desc="predicting", disable=None, leave=False) as bar:
        for indices in batches_by_length(split, batch_size):
            out = heads(task.name, encoder(split.batch(indices, device))[0])
            if found is None:
                found = out.new_empty(len(split), out.shape[1])
            found[torch.from_numpy(indices).to(device)] = out
            bar.update(len(indices))
    return found.cpu()


def lines_of(task, split, outputs):
    """The records that are written."""
    answers = task.rules.answer(outputs).tolist()
    probabilities = outputs.softmax(-1).tolist() if task.rules.labels.counts else None
    names = names_of_labels(task)
    for number, (idx, answer) in enumerate(zip(split.idx, answers, strict=True)):
        line = {"idx": idx, "label": task.rules.labels.write(answer, task)}
        if probabilities is not None:
            line["probabilities"] = {names[place]: round(value, 6)
                                     for place, value in enumerate(probabilities[number])}
        yield line


def predict_file(args):
    """Read, predict, write, and score where there are labels."""
    folder, facts = find_model(args.model)
    choices = facts["protocol_choices"]
    bf16 = facts["precision"] == "bf16"  # tf32 is a GPU's way to multiply float32
    task, device = task_of(facts, folder), resolve_device(args.device, "bf16" if bf16 else "fp32")
    examples = read_inputs(args.inputs, task, choices["text_case"])
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    split = encode_split(task, "inputs", examples, tokenizer, facts["max_seq_length"], choices["cls_segment"],
                         choices["padding"])
    for remark in split.remarks():
        print(remark, file=sys.stderr)
    encoder = load_encoder(folder, bf16).to(device)
    heads = Heads([task], encoder.body.config.hidden_size, 0, "student")
    load_heads(heads, folder, [task.name])
    outputs = outputs_of(encoder, heads.to(device).eval(), task, split,
                         args.batch_size or EVAL_BATCH_SIZES[device.type], device)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines_of(task, split, outputs))
    put(text, args.output)
    if split.labelled:
        found = score(task, task.rules.answer(outputs).tolist(), split.labels)
        print(f"{task.name}: {spoken(found)}; {', '.join(named_scores(found, without=()))}", file=sys.stderr)


def main(argv=None):
    parser = OneLineParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("model", type=Path, metavar="FOLDER",
                        help="of a finished run, or of its models/student")
    parser.add_argument("inputs", type=Path, metavar="INPUTS", help=f"a file: {', '.join(READERS)}")
    parser.add_argument("--output", type=Path, metavar="FILE", help="to write to (default: the screen)")
    parser.add_argument("--batch_size", type=COUNT, help="(default: 16 on a CPU, 128 on a GPU)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="(default: cuda where there is one)")
    return exit_code(predict_file, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

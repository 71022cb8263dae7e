"""Write the student of a run as ONNX beside its weights, and check it against them.

    python scripts/export_onnx.py RUN_FOLDER                  writes RUN_FOLDER/models/student/model.onnx
    python scripts/export_onnx.py RUN_FOLDER/models/teacher

Inputs are those of the folder's tokenizer (input_ids, attention_mask and, where it gives them,
token_type_ids): (batch, length), of choices (batch, choices, length); the output is `logits`. Batch and
length are free. By torch.onnx; needs onnx, onnxscript and onnxruntime, which no other command does.
"""
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoTokenizer

from lib.commands import exit_code

from arguments import OneLineParser
from bookkeeping.errors import InputError, TrainingError, one_line
from bookkeeping.export import auto_class
from bookkeeping.probe import difference
from predict import find_model

EXTRAS = {"onnx": "1.23.2", "onnxscript": "0.7.2", "onnxruntime": "1.32.0"}  # tried with torch 2.13
CLOSE = 1e-4  # largest difference of logits, relative to their largest or to 1
TEXTS = ["The street is wet", "It has rained all night and the river is high", "No", "A dog sleeps in it"]


class Logits(torch.nn.Module):
    """A classifier as a function of tensors in a row. names: of its inputs."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs):
        return self.model(**dict(zip(self.names, inputs))).logits


def inputs_of(tokenizer, choices, count):
    """`count` examples of pairs of TEXTS as tensors; of choices `choices` inputs each."""
    rows = count * (choices or 1)
    pairs = [(TEXTS[n % len(TEXTS)], TEXTS[(n + count) % len(TEXTS)]) for n in range(rows)]
    given = tokenizer(*map(list, zip(*pairs)), padding=True, truncation=True, return_tensors="pt")
    return {name: value.view(count, choices, -1) if choices else value for name, value in given.items()}


def export(path):
    """Write model.onnx, and hold it against the model at other sizes than it was traced with."""
    folder, facts = find_model(path)
    if facts["class"] is None:
        raise InputError(f"{folder}: plain transformers has no class for this model"
                         f" ({facts['why_no_class']}); it cannot be written as ONNX")
    choices = len(facts["labels"]) if facts["kind"] == "multiple_choice" else 0
    model = auto_class(facts["kind"]).from_pretrained(folder, attn_implementation="eager",
                                                      dtype=torch.float32, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    given = inputs_of(tokenizer, choices, 2)
    names, target = list(given), folder / "model.onnx"
    length = torch.export.Dim("length", min=2, max=facts["max_seq_length"])
    sizes = {0: torch.export.Dim("batch", min=1, max=4096), (2 if choices else 1): length}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(Logits(model, names), tuple(given.values()), input_names=names,
                                        output_names=["logits"], dynamo=True, verbose=False,
                                        dynamic_shapes=(tuple(dict(sizes) for _ in names),))
    except Exception as error:  # the exporter's many kinds: an operator that it does not know, a shape
        raise InputError(f"{folder}: torch.onnx cannot write {facts['class']} ({one_line(error)})") from None
    program.save(str(target))
    check(target, tokenizer, model, choices)


@torch.no_grad()
def check(target, tokenizer, model, choices):
    """TrainingError, and no file, where onnxruntime gives other logits than the model."""
    import onnxruntime
    session, worst = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"]), 0.0
    for count in (1, 3):
        given = inputs_of(tokenizer, choices, count)
        found = session.run(["logits"], {name: value.numpy() for name, value in given.items()})[0]
        worst = max(worst, difference(model(**given).logits, torch.from_numpy(found), 1.0))
    if not worst <= CLOSE:
        target.unlink()
        raise TrainingError(f"{target}: onnxruntime gives other logits than the model (by {worst:.1e}, at"
                            f" most {CLOSE:.0e} expected); the file is removed")
    print(f"{target}: {target.stat().st_size / 2 ** 20:.1f} MiB, the model's logits at other sizes (largest"
          f" difference {worst:.0e})")


def main(argv=None):
    parser = OneLineParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("model", type=Path, metavar="FOLDER",
                        help="of a finished run, or of one of its models/<row>")
    args = parser.parse_args(argv)
    missing = [name for name in EXTRAS if find_spec(name) is None]
    if missing:
        wanted = " ".join(f"{name}=={version}" for name, version in EXTRAS.items())
        parser.error(f"{', '.join(missing)} not installed; pip install {wanted}")
    return exit_code(export, args.model)


if __name__ == "__main__":
    sys.exit(main())

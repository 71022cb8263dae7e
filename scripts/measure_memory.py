"""Predicted and measured memory of a training step, and what --gradient_checkpointing saves and costs.

    python scripts/measure_memory.py minilm bert-base deberta-base
    python scripts/measure_memory.py xxlarge xxlarge-12 --predict --precision bf16

For each size, with and without checkpointing, a fresh process makes a random encoder, takes two steps of
phase 1 (AdamW's moments are there in the second) on --rows x --tokens, and evaluates 16 rows. Measured is the
largest resident memory that the process ever had (ru_maxrss) less what was resident before the encoder was
made, after a tiny one of the same family had taken the same steps, which loads libraries. glibc gives every
block of 64 KiB and more back to the system at once, so that resident is what is used; with --as_run freed
memory is kept, as in a run on a CPU (machine.keep_freed_memory), and its gaps count. With --timed N one more
process takes N steps of either kind in turn, after one of each, and says the ratio of their seconds: median,
smallest and largest.
"""
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModel, BertConfig, DebertaV2Config

import lib

from arguments import COUNT, OneLineParser
from bookkeeping.machine import keep_freed_memory, peak_memory_bytes
from bookkeeping.memory import Step, batch_of, predict_need
from meta_policy import apply_gradients, backward, make_optimizer
from models import Encoder, Model, checkpoint_layers
from tasks import TASKS

SETTINGS = SimpleNamespace(weight_decay=0.01, weight_decay_on="matrices", zero_grad="none")
LOOK = 16  # rows of the batch that is evaluated


def bert(layers, hidden, **more):
    return BertConfig(num_hidden_layers=layers, hidden_size=hidden, intermediate_size=4 * hidden,
                      **{"num_attention_heads": hidden // 64, **more})


def deberta(layers, hidden, **more):
    """As DeBERTa-v2-xxlarge in all but its size."""
    return DebertaV2Config(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=4 * hidden,
        max_position_embeddings=512, type_vocab_size=0, relative_attention=True, max_relative_positions=-1,
        pos_att_type=["p2c", "c2p"], position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True,
        conv_kernel_size=3, conv_act="gelu",
        **{"num_attention_heads": hidden // 64, "vocab_size": 128100, **more})


SIZES = {
    "minilm": lambda: bert(6, 384, num_attention_heads=12), "bert-base": lambda: bert(12, 768),
    "bert-large": lambda: bert(24, 1024), "deberta-base": lambda: deberta(12, 768),
    "xxlarge": lambda: deberta(48, 1536), "xxlarge-12": lambda: deberta(12, 1536),
}
TINY = {"num_attention_heads": 2, "vocab_size": 100}


def make_model(config, bf16, checkpointing):
    """A random Model in training mode, and its optimizer."""
    body = AutoModel.from_config(config, dtype=torch.float32)
    model = Model(Encoder(body, bf16), [TASKS["CB"]], 0, "measured").train()
    if checkpointing:
        checkpoint_layers(model)
    return model, make_optimizer(model, 1e-5, SETTINGS)


def train_step(model, optimizer, rows, tokens):
    """A step of phase 1."""
    batch = batch_of(rows, tokens)
    loss = TASKS["CB"].rules.loss(model("CB", batch)[0], batch.labels)
    backward(loss, model, 1.0)
    apply_gradients(optimizer, SETTINGS)


def train_and_look(config, args, checkpointing):
    """Two steps and an evaluation."""
    model, optimizer = make_model(config, args.precision == "bf16", checkpointing)
    for _ in range(2):
        train_step(model, optimizer, args.rows, args.tokens)
    with torch.no_grad():
        model.eval()("CB", batch_of(LOOK, args.tokens))


def resident():
    """Bytes of this process that are in memory now."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line)
    return int(line.split()[1]) * 1024


def measure(args, name, checkpointing):
    """The growth in bytes of this process's memory, which must be a fresh one."""
    if args.as_run:
        keep_freed_memory()
    train_and_look((bert if SIZES[name]().model_type == "bert" else deberta)(2, 32, **TINY), args,
                   checkpointing)
    before = resident()
    train_and_look(SIZES[name](), args, checkpointing)
    return peak_memory_bytes() - before


def seconds(args, name):
    """[seconds of a step with checkpointing over those of one without], of steps in turn."""
    keep_freed_memory()
    sides, found = [make_model(SIZES[name](), args.precision == "bf16", kind) for kind in (True, False)], []
    for _ in range(args.timed + 1):
        took = []
        for model, optimizer in sides:
            start = time.perf_counter()
            train_step(model, optimizer, args.rows, args.tokens)
            took.append(time.perf_counter() - start)
        found.append(took[0] / took[1])
    return found[1:]


def ask(args, name, job):
    """What a fresh process answers to a job."""
    words = [name, "--rows", args.rows, "--tokens", args.tokens, "--precision", args.precision,
             "--timed", args.timed, "--job", job]
    words += ["--as_run"] * args.as_run
    malloc = {} if args.as_run or job == "seconds" else {"MALLOC_MMAP_THRESHOLD_": "65536"}
    program = lib.ROOT / "scripts" / "measure_memory.py"
    done = subprocess.run([sys.executable, program, *map(str, words)], stdout=subprocess.PIPE, check=True,
                          env=os.environ | malloc)
    return json.loads(done.stdout)


def main(argv=None):
    parser = OneLineParser(prog="measure_memory.py", allow_abbrev=False,
                           description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="+", choices=SIZES, help="random encoders to train")
    parser.add_argument("--rows", type=COUNT, default=8, help="of a batch")
    parser.add_argument("--tokens", type=COUNT, default=128, help="of a row")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--predict", action="store_true", help="measure nothing")
    parser.add_argument("--as_run", action="store_true", help="keep freed memory, as a run does")
    parser.add_argument("--timed", type=int, default=0, help="steps of either kind to time")
    parser.add_argument("--job", choices=("plain", "recomputed", "seconds"),
                        help="what a process that this command started is to measure, and print as JSON")
    args = parser.parse_args(argv)
    if args.job:
        name = args.sizes[0]
        print(json.dumps(seconds(args, name) if args.job == "seconds"
                         else measure(args, name, args.job == "recomputed")))
        return
    print("GiB\n\n| encoder, batch | checkpointing | weights | kept | saved by forward | peak, predicted |"
          " measured | predicted / measured |\n|---|---|---|---|---|---|---|---|")
    step = Step(args.rows, args.tokens, (LOOK, args.tokens))
    for name in args.sizes:
        for job in ("plain", "recomputed"):
            need = predict_need(SIZES[name](), [TASKS["CB"]], step, bf16=args.precision == "bf16",
                                checkpointing=job == "recomputed")
            cells = [f"{size / 2 ** 30:.2f}" for size in (need.weights, need.kept, need.saved, need.peak)]
            measured = None if args.predict else ask(args, name, job)
            cells += [f"{measured / 2 ** 30:.2f}", f"{need.peak / measured:.3f}"] if measured else ["", ""]
            print(f"| {name}, {args.rows} x {args.tokens}, {args.precision} |"
                  f" {'no' if job == 'plain' else 'yes'} | {' | '.join(cells)} |", flush=True)
        if args.timed:
            ratios = ask(args, name, "seconds")
            print(f"{name}: a step with checkpointing takes {statistics.median(ratios):.2f}"
                  f" ({min(ratios):.2f} to {max(ratios):.2f}) times as long", flush=True)


if __name__ == "__main__":
    main()

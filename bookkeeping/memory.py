"""How much memory a run needs. A training step's is predicted from an encoder's configuration: the step
itself is run on fake tensors (torch's FakeTensorMode), which have sizes but no content, and the bytes alive
at a time are counted.

torch's own MemTracker gives the same figures to 0.3% (a DeBERTa-v2 of 12 layers x 768, with and without
checkpointing) in eight times the seconds, because it keeps books by module too.
"""
import math
import weakref
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModel

from bookkeeping.checkpoints import count_weights, load_config
from bookkeeping.errors import one_line
from data_utils import Batch, batches_by_length
from models import EVAL_TOKENS, Encoder, Model, Pooler, checkpoint_layers, cut_config, own_dense


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is on, each storage once, until it is freed.
    live: now; peak: the largest so far."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.seen = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self.count(value.untyped_storage())
        return out

    def count(self, storage):
        """Take a storage, unless it was counted already."""
        if storage not in self.seen:
            self.seen.add(storage)
            size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.release, size)

    def release(self, size):
        self.live -= size


@dataclass(frozen=True)
class Need:
    """Bytes of a training step. weights: of the Model; kept: what stays from step to step (weights, AdamW's
    two moments, and the gradients where they are kept); saved: what the forward pass leaves for the backward
    one; peak: the largest sum at a time, `kept` included."""
    weights: int
    kept: int
    saved: int
    peak: int


@dataclass(frozen=True)
class Step:
    """What is trained on at a time. rows, tokens: of a batch; look: (rows, tokens) of a batch that is only
    evaluated; states: whether the [CLS] states of all layers are read too; keeps_gradients: whether gradients
    stay where they are between steps (zero_grad=zeros, student_update=each_episode)."""
    rows: int
    tokens: int
    look: tuple | None = None
    states: bool = False
    keeps_gradients: bool = False


def pooler_by_shape(body):
    """What stands for models.pooler_for, which looks at values: the body's own pooler or ours. The family's
    would be about as large, one matrix (hidden, hidden)."""
    return None if own_dense(body) is not None else Pooler(body.config)


def predict_need(config, tasks, step, nlayers=None, bf16=False, checkpointing=False):
    """The Need of a Step of an encoder with heads for `tasks`, trained by fused AdamW in float32 with clipped
    gradients. config: transformers' configuration, of which `nlayers` layers are taken (None: all).

    Operators are those of a CPU; a GPU's attention and autocast may keep other things. RuntimeError where the
    encoder asks for values of its inputs, which fake tensors do not have. The global random generators stay
    as they were.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.random.fork_rng(devices=[]), fake, LiveBytes() as bytes_of:
        body = AutoModel.from_config(cut_config(config, nlayers), dtype=torch.float32,
                                     trust_remote_code=False)
        model = Model(Encoder(body, bf16, pooler_by_shape), tasks, 0, "predicted").train()
        weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        if checkpointing:
            checkpoint_layers(model)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for weight in model.parameters():  # the moments are there from the first step's end on
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        optimizer.zero_grad(set_to_none=not step.keeps_gradients)
        kept = bytes_of.live

        pooled, states = model.encoder(batch_of(step.rows, step.tokens), layers=step.states)
        loss = model.heads(tasks[0].name, pooled).square().mean()
        if step.states:
            loss = loss + states.square().mean()
        saved = bytes_of.live - kept
        del pooled, states
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=not step.keeps_gradients)
        if step.look:
            model.eval()
            with torch.no_grad():
                model(tasks[0].name, batch_of(*step.look))
        return Need(weights, kept, saved, bytes_of.peak)


def batch_of(rows, tokens):
    """A Batch of this shape."""
    ids = torch.ones(rows, tokens, dtype=torch.int64)
    return Batch(ids, torch.ones_like(ids), torch.zeros_like(ids), torch.zeros(rows, dtype=torch.int64))


# --- of a run -----------------------------------------------------------------------------------------------

SMALL = 2 ** 30  # bytes of weights, gradients, moments and best weights up to which nothing is predicted


def shape_of(split, examples, most_tokens=None):
    """(rows, tokens) of the longest batch of so many examples of a split; most_tokens: as in
    batches_by_length."""
    first = batches_by_length(split, examples, most_tokens)[0]
    return len(first) * split.task.rows, split.pad_to or int(split.lengths()[first].max())


def steps_of_run(inputs, eval_batch_size):
    """The largest Step of the teacher's training, and of the student's in phases 2 and 4."""
    args, protocol = inputs.args, inputs.protocol
    most = EVAL_TOKENS.get(inputs.device.type)
    look = max((shape_of(split, eval_batch_size, most) for split in inputs.evaluated.values()), key=math.prod)
    train = shape_of(inputs.data["train"], args.train_dataloader_size)
    shapes = [train, *(shape_of(split, args.val_dataloader_size) for split in inputs.quiz.values())]
    zeros, summed = protocol.zero_grad == "zeros", protocol.student_update == "each_episode"
    return (Step(*train, look, keeps_gradients=zeros),
            Step(*max(shapes, key=math.prod), look, states=args.beta > 0, keeps_gradients=zeros or summed))


def need_of_run(inputs, eval_batch_size, methods, outputs):
    """(bytes that a run needs on its device, in words how they were found): those of the phase that needs
    most, the teacher's training or the student's. A student has beside it what its method of `methods`, the
    baselines.METHODS to compare with, has of the teacher. On a CPU count besides the best weights, which lie
    in the host's memory, and once more as much for the gaps that glibc leaves (docs/TIMING.md). outputs:
    bytes of the frozen teacher's outputs that lie on the device. Small encoders, up to SMALL, are estimated
    by their weights, which takes no time."""
    args, checkpoints, on_cpu = inputs.args, inputs.checkpoints, inputs.device.type == "cpu"
    copies = max((method.teacher_copies for method in methods), default=0)
    teacher, student = (4 * count_weights(checkpoints.teacher),
                        4 * count_weights(checkpoints.student, args.nlayers))
    times = 4 + on_cpu  # weights, gradients and both moments; best weights
    least = max(times * max(teacher, student), times * student + copies * teacher + outputs)
    if 5 * max(teacher, student) <= SMALL:
        return least, "at least, by weights alone"
    of_teacher, of_student = steps_of_run(inputs, eval_batch_size)
    ways = {"bf16": args.precision == "bf16", "checkpointing": args.gradient_checkpointing}
    try:
        taught, learnt = (
            predict_need(load_config(folder, flag), inputs.tasks, step, layers, **ways)
            for folder, flag, step, layers in (
                (checkpoints.teacher, "--teacher_model", of_teacher, None),
                (checkpoints.student, "--student_model", of_student, args.nlayers)))
    except RuntimeError as error:  # how torch says, with many types, that an operator wants values
        return least, f"at least, by weights alone: this encoder takes no fake tensors, {one_line(error)}"
    if copies > 1:  # a teacher that learns too: both stay in memory, and each takes its step
        beside = max(learnt.peak + taught.kept, taught.peak + learnt.kept)
    else:
        beside = learnt.peak + copies * taught.weights
    size = max(taught.peak + 2 * on_cpu * taught.weights, beside + 2 * on_cpu * learnt.weights + outputs)
    if any(method.keeps_more for method in methods):
        return size, ("at least: predicted, but for what a virtual step, layers of the teacher in the student"
                      " or attention scores keep besides")
    return size, "predicted"

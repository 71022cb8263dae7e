"""The machine: its device and memory, what a run needs of them, what a run says of them."""
import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

from bookkeeping.checkpoints import count_weights
from bookkeeping.errors import InputError
from bookkeeping.memory import need_of_run
from bookkeeping.phases import RESIDENT_BYTES

PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "numpy", "scikit-learn", "safetensors")
EVAL_BATCH_SIZES = {"cpu": 16, "cuda": 128}
HERE = Path(__file__).resolve().parents[1]


def resolve_precision(device, precision):
    """What --precision auto means on the device that --device means: bf16 where that multiplies it in
    hardware, else fp32. Another precision is itself."""
    if precision != "auto":
        return precision
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return "bf16" if (torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu
                      else cpu_has_bf16()) else "fp32"


def resolve_device(device, precision):
    """The torch device for --device; InputError where it, or the precision on it, is not there. A CPU without
    bf16 instructions computes it all the same, and is warned of."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device found; use --device cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if (precision == "bf16" and device == "cuda"
            and not torch.cuda.is_bf16_supported(including_emulation=False)):
        raise InputError("--precision bf16: this GPU has no bfloat16 instructions; use --precision fp32")
    if precision == "tf32" and (device == "cpu" or torch.cuda.get_device_capability() < (8, 0)):
        where = "a CPU" if device == "cpu" else "a GPU before Ampere"
        raise InputError(f"--precision tf32: found on {where}, which has no TF32; use --precision fp32, or"
                         " auto")
    if precision == "bf16" and device == "cpu" and not cpu_has_bf16():
        print(
            "warning: --precision bf16: this CPU has no bfloat16 instructions, and is several times slower"
            " with it than with --precision fp32", file=sys.stderr)
    return torch.device(device)


def set_arithmetic(device, precision, nondeterministic):
    """How a GPU multiplies float32, and whether it may use kernels that do not give the same bytes twice; on
    a CPU there is nothing to set. Before the GPU is first used: cuBLAS reads its setting then."""
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if not nondeterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(not nondeterministic)
    # else every new tensor is written over once more, for programs that read what nobody wrote
    torch.utils.deterministic.fill_uninitialized_memory = False


def faster_precision(device, precision):
    """A line that says what would be faster on this machine; None if nothing is known to be."""
    if device.type == "cpu" and precision == "fp32" and cpu_has_bf16():
        return ("this CPU multiplies bfloat16 in hardware: --precision bf16 is faster here (docs/TIMING.md"
                " says by how much, and what it does to results)")


def keep_freed_memory():
    """Have glibc keep large blocks that are freed: else it returns them to the system, and every training
    step faults the embeddings' gradients in again, page by page. Changes no result; does nothing with another
    C library."""
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


def available_memory(device):
    """Bytes that can still be had on the device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        line = next(line for line in Path("/proc/meminfo").read_text().splitlines()
                    if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def say_needs(inputs, kept_layers, eval_batch_size, methods, say):
    """Say how much memory and disk the run will need, about, and warn where there is less. Memory:
    memory.need_of_run, beside what the process has already. Disk: artefacts, states, the frozen teacher's
    outputs, which are of each example of train the pooled one and the [CLS] states of the first `kept_layers`
    layers. methods: those of baselines.METHODS that the run compares with."""
    args, checkpoints, device, train = inputs.args, inputs.checkpoints, inputs.device, inputs.data["train"]
    teacher, student = count_weights(checkpoints.teacher), count_weights(checkpoints.student, args.nlayers)
    students = 2 + args.undistilled + args.kd_200 + args.kd_quiz + len(args.baselines)
    outputs = 4 * len(train) * train.task.rows * (1 + kept_layers) * checkpoints.hidden_size
    disk = 4 * (teacher + students * student + 2 * 4 * max(teacher, student)) + outputs
    resident = outputs if device.type == "cuda" and outputs <= RESIDENT_BYTES else 0
    memory, how = need_of_run(inputs, eval_batch_size, methods, resident)
    there = available_memory(device)
    free = shutil.disk_usage(args.phase_dir.absolute().parent).free
    for what, needed, found, where in (("memory", memory, there, f"on {device.type} ({how})"),
                                       ("disk", disk, free, f"at {args.phase_dir}")):
        short = found is not None and found < needed
        say(f"{'warning: ' if short else ''}about {needed / 2 ** 20:.0f} MiB of {what} needed {where}" +
            ("" if found is None else f", {found / 2 ** 20:.0f} MiB free") +
            (": it may not be enough" if short else ""))


NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def say_torch_error(error, checkpointing):
    """What a RuntimeError of torch's means for a run, in one line with the way out: no memory left, or a
    kernel that does not give the same bytes twice; None for others. checkpointing: whether layers are
    recomputed already."""
    text = str(error)
    if "does not have a deterministic implementation" in text:
        return (f"--device cuda: {text.split(' does not have')[0].strip()} has no kernel that gives the same"
                " bytes twice; with --nondeterministic and another --output_dir another kernel is used")
    if not isinstance(error, torch.OutOfMemoryError) and not any(words in text for words in NO_MEMORY):
        return None
    asked = re.search(r"allocate ([\d.]+ (?:[KMG]i?B|bytes))", text)
    kind = "this machine" if NO_MEMORY[0] in text else "the GPU"
    more = f" ({asked[1]} more were asked for)" if asked else ""
    same = "" if checkpointing else ", or with --gradient_checkpointing, which changes no result"
    return (f"out of memory on {kind}{more}; what was saved is whole, and the same command goes on where"
            f" there is more{same}. Less is needed, in a run of its own (--output_dir), with smaller"
            " --train_dataloader_size and --val_dataloader_size (in all runs that are compared), a smaller"
            " --eval_batch_size or --max_seq_length")


def environment(on_gpu=True):
    """Versions, machine and, when there is one, git commit. on_gpu: whether a GPU is used where there is
    one."""
    def git(*words):
        try:
            return subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True,
                                  check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    commit = git("rev-parse", "HEAD")
    gpu = torch.cuda.get_device_name(0) if on_gpu and torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        **{name: version_of(name) for name in PACKAGES}, "platform": platform.platform(), "cpu": cpu_name(),
        "cores": os.cpu_count(), "cpu_threads": torch.get_num_threads(), "gpu": gpu,
        "deterministic": torch.are_deterministic_algorithms_enabled() if gpu else None,
        "cuda": torch.version.cuda if gpu else None, "git_commit": commit,
        # of code alone: tables and notes that lie beside it change no figure
        "git_changes": bool(git("status", "--porcelain", "--", "*.py")) if commit else None,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")
    }


def version_of(package):
    """Its version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name():
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def peak_memory_bytes():
    """Largest memory of this process so far: on the GPU where there is one, else resident; None where the
    system does not say."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""A GPU that is not there. Its tensors say cuda:0 and are computed on the CPU; what a GPU would refuse
(tensors of two devices in one operation, NumPy views of its memory) is refused; what a GPU would be given to
do (launches) and where the host would wait for it (waits) is counted.

What it cannot say: how long anything takes, what a GPU rounds otherwise, whether kernels are deterministic.
"""
import os
import traceback
from collections import Counter
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU, PROJECT = torch.device("cuda", 0), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# they make a new view of what is there, or room for something: nothing is launched
FREE = {"view", "_unsafe_view", "reshape", "expand", "expand_as", "transpose", "permute", "t", "select",
        "slice", "squeeze", "unsqueeze", "detach", "alias", "as_strided", "split", "split_with_sizes",
        "chunk", "unbind", "_reshape_alias", "lift_fresh", "unfold", "diagonal", "view_as", "is_same_size",
        "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "resize_", "set_",
        "_has_same_storage_numel"}
# the size of what comes out, or a value, must be known on the host
WAITING = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2",
           "unique_dim", "unique_consecutive", "bincount"}
INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index"}


class Counts:
    """launches; waits: {(what, where in the project): how often}."""

    def __init__(self):
        self.begin()

    def begin(self):
        self.launches, self.waits = 0, Counter()

    def wait(self, what):
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PROJECT)
                  and f"{os.sep}tests{os.sep}" not in frame.filename]
        where = f"{os.path.basename(frames[-1].filename)}:{frames[-1].name}" if frames else "elsewhere"
        self.waits[what, where] += 1


COUNTS = Counts()


class OnGPU(torch.Tensor):
    """A tensor of the pretended GPU. inner: the tensor on the CPU that has its values."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device="cpu", requires_grad=False)

    def __init__(self, inner):
        self.inner = inner

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)

    def __repr__(self, *more, **named):
        return f"OnGPU({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, given=(), named=None):
        return dispatch(operation, given, named or {})

    # what does not go through the dispatcher

    def to(self, *given, non_blocking=False, copy=False, **named):
        device = dtype = None
        for value in (*given, *named.values()):
            if isinstance(value, (str, torch.device)):
                device = torch.device(value)
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, torch.Tensor):
                device, dtype = value.device, value.dtype
        if device is not None and device.type == "cpu":
            found = ToHost.apply(self, non_blocking)
            return found if dtype is None else found.to(dtype)
        if dtype in (None, self.dtype):
            return self.clone() if copy else self
        return torch.ops.aten._to_copy.default(self, dtype=dtype)

    def cpu(self, *given, **named):
        return self.to("cpu")

    def tolist(self):
        COUNTS.wait("tolist")
        return self.inner.detach().tolist()

    def numpy(self, *given, **named):
        raise TypeError("a tensor of a GPU has no NumPy view")

    def data_ptr(self):
        return self.inner.data_ptr()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = OnGPU(self.inner.detach().clone())
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]


class ToHost(torch.autograd.Function):
    """A copy on the CPU."""

    @staticmethod
    def forward(context, tensor, non_blocking):
        if not non_blocking:
            COUNTS.wait("to the host")
        return tensor.inner.detach().clone()

    @staticmethod
    def backward(context, gradient):
        return OnGPU(gradient), None


def dispatch(operation, given, named):
    """An operation that has to do with the GPU: refused, counted, computed on the CPU."""
    name = operation._schema.name.split("::")[1]
    if operation is torch.ops.prim.device.default:
        return GPU
    flat = tree_flatten((given, named))[0]
    there = [value for value in flat if isinstance(value, OnGPU)]
    here = [value for value in flat if isinstance(value, torch.Tensor) and not isinstance(value, OnGPU)]
    target = torch.device(named["device"]) if named.get("device") is not None else None
    goes_there = bool(there) or (target is not None and target.type == "cuda")
    refuse_mixture(operation, name, there, [tensor for tensor in here if tensor.dim()], flat)
    if name in WAITING and there:
        COUNTS.wait(name)
    if name == "copy_" and isinstance(given[0], OnGPU) != isinstance(given[1], OnGPU):
        COUNTS.wait("copy_ between devices")
    if name == "_to_copy" and not there and goes_there and not (
            named.get("non_blocking") and getattr(given[0], "is_pinned_here", False)):
        COUNTS.wait("from pageable memory")
    if name in INDEXING and there:
        for index in given[1] if len(given) > 1 and isinstance(given[1], (list, tuple)) else ():
            if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
                COUNTS.wait("index by a mask")
            elif isinstance(index, torch.Tensor) and not isinstance(index, OnGPU):
                COUNTS.wait("index from pageable memory")
    if goes_there and name not in FREE:
        COUNTS.launches += 1
    named = {key: value for key, value in named.items() if key not in ("pin_memory", "non_blocking")}
    if target is not None:
        named["device"] = torch.device("cpu")
    inside = tree_map(lambda value: value.inner if isinstance(value, OnGPU) else value, (given, named))
    found = operation(*inside[0], **inside[1])
    known = {id(tensor.inner): tensor for tensor in there}

    def outside(value):
        if not isinstance(value, torch.Tensor) or name == "_local_scalar_dense":
            return value
        return known.get(id(value)) if id(value) in known else OnGPU(value) if goes_there else value

    return tree_map(outside, found)


def refuse_mixture(operation, name, there, here, flat):
    """RuntimeError, as CUDA has it, for tensors or generators of two devices in one operation."""
    if there and here and name not in ("copy_", "_to_copy", *INDEXING):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu in"
                           f" {operation}: on the CPU {[tuple(tensor.shape) for tensor in here]}")
    if there and any(isinstance(value, torch.Generator) and value.device.type == "cpu" for value in flat):
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' in {operation}")


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, given=(), named=None):
        named, flat = named or {}, tree_flatten((given, named or {}))[0]
        asked = named.get("device") is not None and torch.device(named["device"]).type == "cuda"
        if asked or any(isinstance(value, OnGPU) for value in flat):
            return dispatch(operation, given, named)
        return operation(*given, **named)


class WithIndex(TorchFunctionMode):
    """"cuda" means cuda:0: a torch without CUDA cannot ask which card is meant."""

    def __torch_function__(self, function, types, given=(), named=None):
        def whole(value):
            meant = isinstance(value, str) and value == "cuda" or (
                isinstance(value, torch.device) and value.type == "cuda")
            return GPU if meant else value
        return function(*map(whole, given), **{key: whole(value) for key, value in (named or {}).items()})


class Event:
    """Of torch.cuda."""

    def record(self):
        pass

    def synchronize(self):
        COUNTS.wait("event")


def pinned(tensor, device=None):
    """A tensor on the host whose copies nobody waits for."""
    copied = tensor.clone()
    copied.is_pinned_here = True
    return copied


@contextmanager
def pretended():
    """The Counts, while there is a GPU, for a `with`."""
    state, plain = {"rng": torch.zeros(16, dtype=torch.uint8)}, torch.autocast
    facts = {"_lazy_init": None, "is_available": True, "is_initialized": True, "is_bf16_supported": True,
             "mem_get_info": (80 << 30, 80 << 30), "get_device_name": "pretended", "device_count": 1,
             "max_memory_allocated": 123, "synchronize": None, "current_device": 0, "manual_seed_all": None,
             "get_device_capability": (9, 0), "is_current_stream_capturing": False}
    changes = [patch.object(torch.cuda, name, lambda *_, value=value, **__: value)
               for name, value in facts.items()]
    changes += [patch.object(torch.cuda, "get_rng_state", lambda *_: state["rng"].clone()),
                patch.object(torch.cuda, "set_rng_state", lambda new, *_: state.update(rng=new.clone())),
                # many tensors at once, as on a GPU; their device is asked where no property is seen
                patch.object(clip_grad, "_has_foreach_support", lambda *_: True),
                patch.object(clip_grad, "_group_tensors_by_device_and_dtype", lambda lists: {
                    (lists[0][0].device, lists[0][0].dtype): (lists, None)}),
                patch.object(torch.cuda, "Event", Event), patch.object(torch.Tensor, "pin_memory", pinned),
                patch.object(torch, "autocast", lambda device_type, **named: plain("cpu", **named))]
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    for change in changes:
        change.start()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    deterministic = torch.are_deterministic_algorithms_enabled()
    COUNTS.begin()
    try:
        with WithIndex(), Dispatched():
            yield COUNTS
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_float32_matmul_precision("highest")
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        for change in changes:
            change.stop()

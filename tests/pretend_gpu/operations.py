"""One operation on the pretended GPU: what CUDA refuses, where the host waits, what is launched, and the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.pretend_gpu.log import LOG, RefusedError, where
from tests.pretend_gpu.streams import STREAMS
from tests.pretend_gpu.tensors import DEVICE, Pretend, is_pinned, on_gpu, pinned, raw

aten = torch.ops.aten
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Operations on tensors of both devices that CUDA takes.
_MIXED = _INDEXING | {aten.copy_.default, aten._to_copy.default, aten._unsafe_index.Tensor, aten.set_.source_Tensor}
# Those that take no 0-dimensional CPU tensor either.
_STRICT = {
    *("cat", "stack", "index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_select", "scatter"),
    *("scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "gather", "mm", "addmm", "bmm", "baddbmm", "topk"),
    *("convolution", "embedding", "searchsorted", "bucketize", "masked_select", "sort", "linear", "mv", "dot"),
}
# Those that launch nothing.
_VIEWS = {
    *("view", "slice", "select", "expand", "as_strided", "detach", "alias", "t", "transpose", "permute", "unsqueeze"),
    *("squeeze", "split", "split_with_sizes", "unbind", "_unsafe_view", "_reshape_alias", "diagonal", "unfold"),
    *("lift_fresh", "narrow", "view_as_real", "chunk", "empty", "empty_like", "new_empty", "empty_strided"),
    *("new_empty_strided", "_local_scalar_dense", "is_pinned", "_has_compatible_shallow_copy_type"),
}
_WAITING = {
    *("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal", "allclose"),
    *("repeat_interleave", "_local_scalar_dense", "is_nonzero", "histc"),
}
_NEW = {"new_empty", "new_zeros", "new_full", "new_ones", "new_empty_strided"}


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run one operation, below autograd and functorch."""
    if func is torch.ops.prim.device.default:
        return DEVICE
    if func is aten._pin_memory.default:
        return pinned(args[0].clone())
    name = func._schema.name.removeprefix("aten::")
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Pretend)]
    device = kwargs.get("device")
    # C++ gives the CPU as the device of a Pretend; copies between devices are made in tensors.py.
    on_device = device is not None and torch.device(device).type == "cuda"
    makes = on_device or (bool(ours) and (device is None or name in _NEW or func is aten._to_copy.default))
    if not ours and not makes:
        if kwargs.get("pin_memory"):
            return pinned(func(*args, **kwargs | {"pin_memory": False}))
        return func(*args, **kwargs)
    written = _written(func, args, kwargs)
    _refuse(func, name, tensors, written, kwargs.get("generator") if makes else None)
    _note_wait(func, name, args, kwargs, makes)
    STREAMS.tick()
    if name not in _VIEWS:
        LOG.launch()
        _touch(func, ours, written)
    result = _computed(func, args, kwargs, ours, makes)
    return _wrapped(func, args, kwargs, result) if makes or name == "copy_" else result


def _refuse(func: Any, name: str, tensors: Sequence[Tensor], written: Sequence[Any], generator: Any) -> None:
    """Raise RefusedError as CUDA does. A number on the CPU is read by its kernels, but not written."""
    if generator is not None and generator.device.type == "cpu":
        raise RefusedError(f"Expected a 'cuda' device type for generator but found 'cpu': {func} at {where()}")
    foreign = [tensor for tensor in tensors if not isinstance(tensor, Pretend)]
    is_mixed = 0 < len(foreign) < len(tensors) and func not in _MIXED
    if is_mixed and (name in _STRICT or any(own.dim() or any(own is out for out in written) for own in foreign)):
        shapes = [tuple(tensor.shape) for tensor in foreign]
        raise RefusedError(f"at least two devices, {DEVICE} and cpu: {func} with CPU tensors {shapes} at {where()}")


def _note_wait(func: Any, name: str, args: Any, kwargs: Any, makes: bool) -> None:
    """Note a wait of the host, if there is one."""
    if func is aten._to_copy.default:
        _note_copy(isinstance(args[0], Pretend), makes, args[0], bool(kwargs.get("non_blocking")), is_pinned(args[0]))
    elif func is aten.copy_.default:
        to, source = args[:2]
        is_async = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        host = source if isinstance(to, Pretend) else to
        _note_copy(isinstance(source, Pretend), isinstance(to, Pretend), source, is_async, is_pinned(host))
    elif func in _INDEXING:
        indices = [index for index in args[1] if index is not None]
        fills = func is not aten.index.Tensor and args[2].numel() == 1 and len(indices) == 1
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices) and not fills:
            LOG.wait("boolean index (nonzero)")
        elif any(not isinstance(index, Pretend) and index.numel() for index in indices):
            LOG.wait("CPU index (host to device copy)")
    elif name in _WAITING:
        LOG.wait("item/bool/float/tolist" if name == "_local_scalar_dense" else name)


def _note_copy(from_device: bool, to_device: bool, source: Tensor, is_async: bool, is_page_locked: bool) -> None:
    if from_device == to_device or not source.numel() or (is_async and is_page_locked):
        return
    LOG.wait("device to host copy" if from_device else "host to device copy, pageable")


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """List the arguments that the operation writes."""
    written: list[Any] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[place] if place < len(args) else None)
            written += value if isinstance(value, (list, tuple)) else [value]
    return written


def _touch(func: Any, ours: Sequence[Tensor], written: Sequence[Any]) -> None:
    """Tell the streams what the operation reads and writes."""
    for tensor in ours:
        storage = raw(tensor).untyped_storage()
        if storage.nbytes() and tensor.numel():
            is_written = any(tensor is other for other in written)
            STREAMS.touch(storage.data_ptr(), storage.nbytes(), is_written, f"{func} at {where()}")


def _computed(func: Any, args: Any, kwargs: Any, ours: Sequence[Tensor], makes: bool) -> Any:
    """Compute on the CPU."""
    if "device" in kwargs and makes:
        kwargs = kwargs | {"device": torch.device("cpu")}
    with torch._C._DisableTorchDispatch():
        if func is not aten._to_copy.default or len(ours) == (1 if makes else 0):
            return func(*tree_map_only(Pretend, raw, args), **tree_map_only(Pretend, raw, kwargs))
        source = raw(args[0])  # of another device
        plain = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking")}
        result = aten._to_copy(source, **plain)
        shares = result.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
        return result.clone() if shares else result


def _wrapped(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """Return results as tensors of the device; what was written in place is what was given."""
    given: dict[str, Any] = {}
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[place] if place < len(args) else None)
            given |= dict.fromkeys(argument.alias_info.before_set, value)

    def wrap(value: Any, schema: Any) -> Any:
        info = schema.alias_info if schema is not None else None
        for before in info.before_set if info is not None and info.is_write else ():
            if before in given:
                old = given[before]
                if isinstance(old, Tensor) and isinstance(value, Tensor) and old.shape != value.shape:
                    raise RefusedError(f"{func} resized its output at {where()}")
                return old
        return tree_map_only(Tensor, on_gpu, value)

    returns = func._schema.returns
    if isinstance(result, tuple) and len(returns) > 1:
        return tuple(wrap(value, schema) for value, schema in zip(result, returns))
    return wrap(result, returns[0] if returns else None)

"""Tensors with real numbers in host memory that say they are on a GPU, and their way between the devices."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from tests.pretend_gpu.log import LOG, RefusedError, where
from tests.pretend_gpu.streams import STREAMS

DEVICE = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_holders: list[Counter[int]] = [Counter()]  # tensors by the address of their storage, of this block of `pretend_gpu`
_pinned: set[int] = set()  # addresses of host memory that the device reads and writes by itself


class Pretend(Tensor):
    """Real numbers in host memory that say they are on a GPU."""

    @staticmethod
    def __new__(cls, data: Tensor) -> Pretend:
        with torch._C._DisableTorchDispatch():
            self = Tensor._make_subclass(cls, data, data.requires_grad)
        with torch._C.DisableTorchFunctionSubclass():
            pointer = self.untyped_storage().data_ptr()
        if pointer:
            _holders[-1][pointer] += 1
            weakref.finalize(self, _let_go, _holders[-1], pointer)
        return self

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return DEVICE.index

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy, at {where()}")

    __array__ = numpy

    def tolist(self) -> Any:
        LOG.wait("item/bool/float/tolist")
        return raw(self.detach()).tolist()

    def record_stream(self, stream: Any) -> None:
        block = STREAMS.blocks.get(raw(self).untyped_storage().data_ptr())
        if block is not None:
            block.recorded.add(stream.number)

    def pin_memory(self, *args: Any) -> Any:
        raise RefusedError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"Pretend({raw(self)!r})"

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    def __deepcopy__(self, memo: Any) -> Any:
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied = torch.nn.Parameter(copied.detach(), self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return raw(self.detach()).clone().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        moved = moved_by(func, args, kwargs or {})
        if moved is not NotImplemented:
            return moved
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        from tests.pretend_gpu.operations import run

        return run(func, args, kwargs or {})


def _let_go(holders: Counter[int], pointer: int) -> None:
    holders[pointer] -= 1
    if holders[pointer] <= 0:
        del holders[pointer]
        if holders is _holders[-1]:
            STREAMS.free(pointer)


def forget_holders() -> None:
    """Begin a block: what lives on from one before, maybe with other memory by now, holds nothing here."""
    _holders[-1] = Counter()


def raw(tensor: Tensor) -> Tensor:
    """Return the memory of a Pretend as the CPU tensor that it is."""
    if not isinstance(tensor, Pretend):
        return tensor
    with torch._C.DisableTorchFunctionSubclass(), torch._C._DisableTorchDispatch():
        plain = torch.empty(0, dtype=tensor.dtype)
        return plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def to_gpu(tensor: Tensor) -> Tensor:
    """Copy a tensor to the pretended GPU, as a test does that no product waits for."""
    return tensor if isinstance(tensor, Pretend) else Pretend(tensor.detach().clone())


def on_gpu(value: Tensor) -> Tensor:
    """Take over new memory as the device's, allocated on the current stream."""
    if isinstance(value, Pretend):
        return value
    storage = value.untyped_storage()
    wrapped = Pretend(value)
    if storage.nbytes() and storage.data_ptr() not in STREAMS.blocks:
        STREAMS.touch(storage.data_ptr(), storage.nbytes(), True, "new")
    return wrapped


def pinned(tensor: Tensor) -> Tensor:
    """Note that a CPU tensor is in page-locked memory, which asynchronous copies do not wait for."""
    pointer = tensor.untyped_storage().data_ptr()
    _pinned.add(pointer)
    weakref.finalize(tensor, _pinned.discard, pointer)
    return tensor


def is_pinned(tensor: Tensor) -> bool:
    return raw(tensor).untyped_storage().data_ptr() in _pinned


def moved_by(func: Any, args: Any, kwargs: Any) -> Any:
    """Do Tensor.to, .cpu, .cuda and .pin_memory, of whose devices the dispatcher does not know; else NotImplemented."""
    if func is Tensor.pin_memory and not isinstance(args[0], Pretend):
        return pinned(args[0].clone())
    if func not in (Tensor.cpu, Tensor.to, Tensor.cuda):
        return NotImplemented
    tensor = args[0]
    device, dtype, non_blocking = _target(func, tensor, args[1:], kwargs)
    if not isinstance(tensor, Pretend) and device.type != "cuda":
        return NotImplemented
    if device.type == "cuda":
        if device.index not in (None, DEVICE.index):
            raise RefusedError(f"{device} is another rank's GPU, this one has {DEVICE}: {where()}")
        device = DEVICE
    if device != tensor.device:
        return _across(tensor, device, dtype, non_blocking)
    if dtype == tensor.dtype and not kwargs.get("copy", False):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return torch.ops.aten._to_copy(tensor, dtype=dtype)


def _target(func: Any, tensor: Tensor, rest: Any, kwargs: Any) -> tuple[torch.device, torch.dtype, bool]:
    """Read device, dtype and non_blocking from the arguments of a move."""
    if func is Tensor.cpu:
        return _CPU, tensor.dtype, False
    if func is Tensor.cuda:
        return DEVICE, tensor.dtype, bool(kwargs.get("non_blocking", False))
    if rest and isinstance(rest[0], Tensor):
        return rest[0].device, rest[0].dtype, False
    given = {name: value for name, value in kwargs.items() if name not in ("copy", "memory_format")}
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*rest, **given)
    return tensor.device if device is None else device, dtype or tensor.dtype, non_blocking


def _across(tensor: Tensor, device: torch.device, dtype: torch.dtype, non_blocking: bool) -> Tensor:
    """Copy to the other device. Autograd sees nothing of it, which no part of the product asks for."""
    to_device = device.type == "cuda"
    if tensor.numel() and not (non_blocking and to_device and is_pinned(tensor)):
        LOG.wait("host to device copy, pageable" if to_device else "device to host copy")
    STREAMS.tick()
    LOG.launch()
    plain = raw(tensor.detach())
    storage = plain.untyped_storage()
    if not to_device and storage.nbytes():
        STREAMS.touch(storage.data_ptr(), storage.nbytes(), False, "copy to host")
    with torch._C._DisableTorchDispatch():
        copied = plain.to(dtype, copy=True)
    return on_gpu(copied) if to_device else copied

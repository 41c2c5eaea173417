"""Flat vector <-> named tensors: the ground that everything else stands on.

Parameters, model deltas and residuals are one contiguous float32 vector each. A `ParameterLayout` says which slice of
such a vector is which tensor, so memory can be addressed by parameter *name* wherever it outlives a process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class Entry:
    """One named tensor's place in the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        return self.offset + self.numel


@dataclass(frozen=True)
class ParameterLayout:
    """The order, shapes and offsets of named tensors in a flat vector of `total` entries."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, named: Iterable[tuple[str, Tensor]]) -> ParameterLayout:
        """The layout of named tensors, in the order given."""
        entries, offset = [], 0
        for name, tensor in named:
            entries.append(Entry(name, tuple(tensor.shape), offset))
            offset += tensor.numel()
        return cls(tuple(entries))

    @property
    def total(self) -> int:
        return self.entries[-1].end if self.entries else 0

    def views(self, vector: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, view) for each tensor; writing to a view writes to `vector` (shape [total])."""
        if vector.shape != (self.total,):
            raise ValueError(f"expected a vector of {self.total} entries, got shape {tuple(vector.shape)}")
        for entry in self.entries:
            yield entry.name, vector[entry.offset : entry.end].view(entry.shape)

    def describe(self) -> list[list[object]]:
        """[[name, [sizes]], …]: what a checkpoint keeps, so that a vector in it can be read by parameter name."""
        return [[entry.name, list(entry.shape)] for entry in self.entries]


def parameter_layout(model: nn.Module) -> ParameterLayout:
    """The layout of the trainable parameters of `model`."""
    return ParameterLayout.of((name, p) for name, p in model.named_parameters() if p.requires_grad)


def buffer_layout(model: nn.Module) -> ParameterLayout:
    """The layout of the floating-point buffers of `model` (BatchNorm's running statistics).

    Buffers that are not finite in float32 to begin with are constants, e.g. attention masks, and left out.
    """
    named = ((name, b) for name, b in model.named_buffers() if b.is_floating_point())
    return ParameterLayout.of((name, b) for name, b in named if b.float().isfinite().all())


def dtypes_of(model: nn.Module) -> dict[str, torch.dtype]:
    """The dtypes of what `model` is saved as, by name."""
    return {name: value.dtype for name, value in model.state_dict().items()}


def bind_parameters(model: nn.Module, layout: ParameterLayout) -> tuple[Tensor, Tensor]:
    """Move the parameters of `model` and their gradients into one flat vector each; the model then lives in them.

    Returns (parameters, gradient), float32 vectors of `layout.total` entries on the parameters' device. Raises
    ValueError where a parameter is not float32 (train in lower precision by autocast, not by casting the weights).
    """
    named = dict(model.named_parameters())
    device = next(iter(named.values())).device
    parameters = torch.empty(layout.total, device=device)
    gradient = torch.zeros(layout.total, device=device)
    for (name, value), (_, slot) in zip(layout.views(parameters), layout.views(gradient)):
        parameter = named[name]
        if parameter.dtype != torch.float32:
            raise ValueError(f"parameter {name} is {parameter.dtype}; flat vectors need float32 parameters")
        value.copy_(parameter.detach())
        parameter.data = value
        parameter.grad = slot
    return parameters, gradient


def separate_buffers(model: nn.Module) -> None:
    """Give each entry of expanded buffers memory of its own, for they will be written to."""
    for buffer in model.buffers():
        if 0 in buffer.stride():
            buffer.data = buffer.contiguous()


def bind_buffers(model: nn.Module, layout: ParameterLayout) -> Tensor:
    """Move the float32 buffers of `model` into one flat vector and return it, with copies of the other floating ones.

    Those keep their dtype, which the model's operations may ask for; whoever reads or writes the vector copies them
    (`in_own_dtype`).
    """
    named = dict(model.named_buffers())
    device = next(model.parameters()).device
    vector = torch.empty(layout.total, device=device)
    for name, value in layout.views(vector):
        buffer = named[name]
        value.copy_(buffer)
        if buffer.dtype == torch.float32:
            buffer.data = value
    return vector


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Give `model` back as it came: parameters, buffers of any type, training flags and plain attributes.

    A deep copy would not do: activations that a module keeps, and the weights of `torch.nn.utils.weight_norm`, cannot
    be copied. What a module makes at its first call stays: the parameters of lazy modules, and new submodules.
    """
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if not is_lazy(tensor)]
    values = [tensor.detach().clone() for tensor in tensors]
    before = [_Members(part) for part in model.modules()]
    try:
        yield
    finally:
        for members in before:
            members.restore()
        with torch.no_grad():
            for tensor, value in zip(tensors, values):
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


class _Members:
    """The tensors and plain attributes that a module holds by name."""

    def __init__(self, part: nn.Module) -> None:
        self.part = part
        self.training = part.training
        self.is_lazy = isinstance(part, LazyModuleMixin) and part.has_uninitialized_params()
        self.names = _names_in(part)
        self.attributes = dict(vars(part))
        # A scripted module has tables of its own kind, which take nothing back.
        tables = [vars(part).get(name) for name in ("_parameters", "_buffers")]
        self.tables = [(table, dict(table)) for table in tables if isinstance(table, dict)]

    def restore(self) -> None:
        """Put everything back, unless the module has made something at its first call."""
        if self.part.training != self.training:
            self.part.training = self.training
        if self.is_lazy or _names_in(self.part) - self.names:
            return
        for table, entries in self.tables:
            table.update(entries)
        own = vars(self.part)
        for name in own.keys() - self.attributes.keys():
            del own[name]
        own.update(self.attributes)


def _names_in(part: nn.Module) -> set[str]:
    """The names of a module's own parameters, buffers (also those that are None as yet) and submodules."""
    tables = (part._parameters, part._buffers, part._modules)
    return {name for table in tables for name, _ in table.items()}


def in_own_dtype(value: Tensor, initial: Tensor) -> Tensor:
    """`value`, of a flat vector, in the dtype of the buffer that was `initial` when the run began.

    What is as it was is all of `initial`: a float64 constant does not lose what float32 cannot hold.
    """
    if initial.dtype != torch.float64:
        return value.to(initial.dtype)
    return torch.where(value == initial.float(), initial, value.double())

"""Flat vector <-> named tensors: the ground that everything else stands on.

Parameters, model deltas and residuals are one contiguous float32 vector each. A `ParameterLayout` says which slice of
such a vector is which tensor, so memory that outlives a process can be addressed by parameter *name*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from flare_dist.fixed import fixed_of

TRAINED = (torch.float32, torch.bfloat16)  # weights that training may step


@dataclass(frozen=True)
class Entry:
    """Give the place of one named tensor in the flat vector.

    >>> Entry("weight", (2, 3), 10).end
    16
    """

    name: str
    shape: tuple[int, ...]
    offset: int

    @cached_property
    def numel(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def end(self) -> int:
        return self.offset + self.numel


@dataclass(frozen=True)
class ParameterLayout:
    """Give the order, shapes and offsets of named tensors in a flat vector of `total` entries."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, named: Iterable[tuple[str, Tensor]]) -> ParameterLayout:
        """Lay named tensors out in the order given."""
        entries: list[Entry] = []
        offset = 0
        for name, tensor in named:
            entries.append(Entry(name, tuple(tensor.shape), offset))
            offset += tensor.numel()
        return cls(tuple(entries))

    @property
    def total(self) -> int:
        return self.entries[-1].end if self.entries else 0

    def within(self, mask: Tensor) -> ParameterLayout:
        """Lay out the entries at which a mask, bool [total], is true; a tensor that is kept whole keeps its shape."""
        entries = []
        offset = 0
        for entry in self.entries:
            count = int(mask[entry.offset : entry.end].count_nonzero())
            entries.append(Entry(entry.name, entry.shape if count == entry.numel else (count,), offset))
            offset += count
        return ParameterLayout(tuple(entries))

    def views(self, vector: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, view) for each tensor; writing to a view writes to `vector` (shape [total]).

        Raises ValueError if `vector` has another shape.
        """
        if vector.shape != (self.total,):
            raise ValueError(f"expected a vector of {self.total} entries, got shape {tuple(vector.shape)}")
        for entry in self.entries:
            yield entry.name, vector[entry.offset : entry.end].view(entry.shape)

    def describe(self) -> list[list[object]]:
        """Return [[name, [sizes]], …] for a checkpoint, so that a vector in it can be read by parameter name."""
        return [[entry.name, list(entry.shape)] for entry in self.entries]


def parameter_layout(model: nn.Module) -> ParameterLayout:
    """Lay out the trainable parameters of `model`."""
    return ParameterLayout.of((name, p) for name, p in model.named_parameters() if p.requires_grad)


def buffer_layout(model: nn.Module) -> ParameterLayout:
    """Lay out the floating-point buffers of `model` that training changes (BatchNorm's running statistics).

    Left out are buffers that are not saved (persistent=False), as tables of positions are, those that are known to be
    constants, and those that are not finite in float32 at first, e.g. attention masks.
    """
    constants = fixed_of(model).constants | not_persistent(model)
    named = ((name, b) for name, b in model.named_buffers() if b.is_floating_point() and name not in constants)
    return ParameterLayout.of((name, b) for name, b in named if b.float().isfinite().all())


def not_persistent(model: nn.Module) -> set[str]:
    """Name the buffers that are not in `model.state_dict()`."""
    found = set()
    for prefix, part in model.named_modules():
        found |= {f"{prefix}.{name}" if prefix else name for name in getattr(part, "_non_persistent_buffers_set", ())}
    return found


def dtypes_of(model: nn.Module) -> dict[str, torch.dtype]:
    """Return the dtypes of the entries of `model.state_dict()`, by name."""
    return {name: value.dtype for name, value in model.state_dict().items()}


def bind_parameters(model: nn.Module, layout: ParameterLayout) -> tuple[Tensor, Tensor]:
    """Move the parameters of `model` and their gradients into one flat vector each; the model then lives in them.

    Returns (parameters, gradient), float32 vectors of `layout.total` entries on the parameters' device. Parameters of
    bfloat16 stay where they are, and the vector holds copies of them. Raises ValueError for other precisions.

    On a GPU cuDNN takes the weights of a GRU or LSTM from one piece in an order of its own, and so copies them at every
    forward pass, with a warning (from PyTorch's source; nobody has measured it here).
    """
    named = dict(model.named_parameters())
    device = next(iter(named.values())).device
    parameters = torch.empty(layout.total, device=device)
    gradient = torch.zeros(layout.total, device=device)
    for (name, value), (_, own_gradient) in zip(layout.views(parameters), layout.views(gradient)):
        parameter = named[name]
        if parameter.dtype not in TRAINED:
            raise ValueError(f"parameter {name} is {parameter.dtype}; flat vectors take float32 or bfloat16 parameters")
        value.copy_(parameter.detach())
        if parameter.dtype != torch.float32:
            continue
        parameter.data = value
        parameter.grad = own_gradient
    return parameters, gradient


def separate_buffers(model: nn.Module) -> None:
    """Give each entry of expanded buffers memory of its own, since they will be written to."""
    for buffer in model.buffers():
        if 0 in buffer.stride():
            buffer.data = buffer.contiguous()


def bind_buffers(model: nn.Module, layout: ParameterLayout) -> Tensor:
    """Move the float32 buffers of `model` into one flat vector and return it, with copies of the other floating ones.

    Those keep their dtype, on which the model's operations may depend; whoever reads or writes the vector copies them
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


def in_own_dtype(value: Tensor, initial: Tensor) -> Tensor:
    """Convert `value`, a view of a flat vector, to the dtype of the buffer that was `initial` when the run began.

    Entries that have not changed are those of `initial`: a float64 constant loses no digit that float32 cannot hold.
    """
    if initial.dtype != torch.float64:
        return value.to(initial.dtype)
    return torch.where(value == initial.float(), initial, value.double())

"""Keep a client's optimizer between rounds: its state as one flat vector among what the client remembers.

What `Optimizer.state_dict` would have lies there byte by byte, so that nothing is rounded: the tensors and numbers of
each parameter, and the settings that an optimizer counts on in its groups.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from flare_dist.clients.local_model import LocalModel

OPTIMIZER = "optimizer"  # its name among the vectors that a client remembers
KEY = "clients.keep_optimizer"
_OF_ROUND = ("lr",)  # settings of groups that a schedule changes
_ALIGNMENT = 8  # bytes: no number is longer
_DTYPES: dict[type, torch.dtype] = {bool: torch.bool, int: torch.int64, float: torch.float64}  # of plain numbers


class Slot(NamedTuple):
    """The place of one tensor or number of an optimizer."""

    of_group: bool  # or of a parameter's state
    owner: int  # number of the parameter or the group
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    device: str
    is_number: bool

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class KeptOptimizer:
    """Write the state of a model's optimizer into a vector, float32 [size], and read it back.

    A vector of zeros is that of a client which has not trained yet.
    """

    def __init__(self, optimizer: Optimizer, slots: list[Slot]) -> None:
        self._optimizer = optimizer
        self._slots = slots
        self._settings = [dict(group) for group in optimizer.param_groups]  # as a client begins
        what = f"{type(optimizer).__qualname__} {[slot._replace(device='') for slot in slots]}"
        self._mark = zlib.crc32(what.encode()) + 1  # tells this optimizer's state from none, and from another's
        starts = [_ALIGNMENT]
        for slot in slots:
            starts.append(starts[-1] + -(-slot.nbytes // _ALIGNMENT) * _ALIGNMENT)
        self._starts = starts[:-1]
        self.size = starts[-1] // 4

    @classmethod
    def of(cls, model: LocalModel) -> KeptOptimizer:
        """Find what the model's optimizer keeps, by a step whose gradient is zero; the model stays as it is.

        Raises ValueError if it keeps nothing, or something else than tensors and numbers.
        """
        optimizer = model.optimizer
        before = model.parameters.clone()
        settings = [dict(group) for group in optimizer.param_groups]
        optimizer.step()
        found = list(_found(optimizer, _counted(optimizer, settings)))
        model.parameters.copy_(before)
        model.reset()
        if not found:
            raise ValueError(
                f"{KEY}: {type(optimizer).__qualname__} keeps nothing between two steps, got true; set false"
            )
        return cls(optimizer, [slot for slot, _ in found])

    def write(self, vector: Tensor) -> None:
        """Write the state as it is after a client's last step; zeros if it has taken none since it began afresh."""
        vector.zero_()
        if not self._optimizer.state:
            return
        counted = [(slot.owner, slot.name) for slot in self._slots if slot.of_group]
        found = list(_found(self._optimizer, counted))
        changed = {each for each in _counted(self._optimizer, self._settings) if each[1] not in _OF_ROUND}
        if [slot for slot, _ in found] != self._slots or not changed.issubset(counted):
            raise ValueError(
                f"{KEY}: {type(self._optimizer).__qualname__} keeps other tensors or settings than after a first step, "
                "got true; set false"
            )
        content = vector.view(torch.uint8)
        self._mark_in(content).fill_(self._mark)
        for start, (slot, value) in zip(self._starts, found):
            content[start : start + slot.nbytes].copy_(value.reshape(-1).view(torch.uint8))

    def read(self, vector: Tensor) -> None:
        """Give the optimizer, which must have been reset, the state that was written; it shares nothing with it."""
        content = vector.view(torch.uint8)
        mark = int(self._mark_in(content))
        if not mark:
            return
        if mark != self._mark:
            raise ValueError(
                f"clients.optimizer: clients have kept the state of another optimizer, got that of "
                f"{type(self._optimizer).__qualname__}; go on with the one that the run was started with"
            )
        groups = self._optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        for start, slot in zip(self._starts, self._slots):
            value = content[start : start + slot.nbytes].view(slot.dtype).view(slot.shape)
            own = groups[slot.owner] if slot.of_group else self._optimizer.state[parameters[slot.owner]]
            own[slot.name] = value.item() if slot.is_number else value.to(slot.device, copy=True)

    def _mark_in(self, content: Tensor) -> Tensor:
        return content[:_ALIGNMENT].view(torch.int64)


def _counted(optimizer: Optimizer, before: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Name the settings of groups that a step has changed, by the group's number."""
    groups = enumerate(zip(optimizer.param_groups, before))
    return [
        (number, name)
        for number, (group, own) in groups
        for name, value in group.items()
        if type(value) in _DTYPES and value != own.get(name)
    ]


def _found(optimizer: Optimizer, counted: list[tuple[int, str]]) -> Iterator[tuple[Slot, Tensor]]:
    """Yield all that an optimizer keeps, with its slots: its parameters' state, then `counted` settings of groups."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for number, parameter in enumerate(parameters):
        state: Mapping[str, Any] = optimizer.state.get(parameter, {})
        for name, value in state.items():
            if value is not None:
                yield _slot(optimizer, False, number, name, value)
    for number, name in counted:
        yield _slot(optimizer, True, number, name, optimizer.param_groups[number][name])


def _slot(optimizer: Optimizer, of_group: bool, owner: int, name: str, value: Any) -> tuple[Slot, Tensor]:
    """Describe one value, and return it as a tensor; raises ValueError if it is neither a tensor nor a number."""
    is_number = type(value) in _DTYPES
    if not is_number and type(value) is not Tensor:
        raise ValueError(
            f"{KEY}: {type(optimizer).__qualname__} keeps {name}, a {type(value).__name__}, and only tensors and "
            "numbers can be kept, got true; set false"
        )
    tensor = torch.tensor(value, dtype=_DTYPES[type(value)]) if is_number else value.detach()
    return Slot(of_group, owner, name, tensor.dtype, tuple(tensor.shape), str(tensor.device), is_number), tensor

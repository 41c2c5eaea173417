"""Bookkeeping of the exchanged gradients that an optimizer has applied, so that the others can be taken back."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import cache
from typing import Any
from weakref import WeakSet

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class OptimizerSteps:
    """A number that changes with every optimizer step on some of `parameters`.

    PyTorch reports each step of any torch.optim.Optimizer, fused kernels and writes to `.data` included, which leave
    the version counters of the parameters as they were. A script without an optimizer writes to its parameters itself,
    which only the version counters show: they count as long as no optimizer has stepped, for an embedding with max_norm
    changes its own at every forward. Writes to `.data` by hand are not noticed.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = frozenset(parameters)
        self._steps = 0
        _listen()
        _LISTENERS.add(self)

    def __call__(self) -> tuple[int, int]:
        """Return a token to compare with an earlier one."""
        return self._steps, 0 if self._steps else sum(parameter._version for parameter in self._parameters)

    def note(self, optimizer: Optimizer) -> None:
        """Count a step of `optimizer` if it holds any of the parameters."""
        if any(parameter in self._parameters for group in optimizer.param_groups for parameter in group["params"]):
            self._steps += 1


# PyTorch walks through its hooks while garbage collection may remove one of them; a WeakSet stands that.
_LISTENERS: WeakSet[OptimizerSteps] = WeakSet()


@cache
def _listen() -> None:
    """Register with PyTorch, once in a process."""
    register_optimizer_step_post_hook(_tell)


def _tell(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for listener in _LISTENERS:
        listener.note(optimizer)


class Unapplied:
    """The synchronised backwards since the last optimizer step; `updates` is a token that changes with each step."""

    def __init__(self, updates: Callable[[], Hashable]) -> None:
        self.updates = updates
        self._last = updates()
        self.clear()

    def clear(self) -> None:
        """Begin to count anew."""
        self._count = 0  # backwards, the one that is going on among them
        self._kept: Tensor | None = None  # how many before it the memory has taken over, on the device

    def begin(self, failed: Tensor | None) -> None:
        """Count a backward that begins; the one before it `failed`, or None if it left nothing in the memory."""
        last = self.updates()
        if last != self._last:
            self._last = last
            self.clear()
        elif self._count and failed is not None:
            self._kept = (~failed).int() if self._kept is None else self._kept + ~failed
        self._count += 1

    @property
    def has_any(self) -> bool:
        """Tell if there was a backward since the last step, without waiting for a GPU."""
        return self._count > 0 and self.updates() == self._last

    def count(self) -> tuple[int, int]:
        """Return the backwards since the last optimizer step, and how many the memory took over (waits for a GPU)."""
        if self.updates() != self._last:
            return 0, 0
        return self._count, 0 if self._kept is None else int(self._kept)

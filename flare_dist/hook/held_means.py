"""A watch for gradients that are added to an exchanged mean, which a preconditioner would take for gradients."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from functools import partial

from torch import Tensor
from torch.utils.hooks import unserializable_hook


class HeldMeans:
    """The names of parameters whose .grad holds what the last exchange returned, as far as anybody has looked.

    A hook of each parameter looks before a backward adds to its .grad. If that is a tensor, and not None as after
    zero_grad(), it is read, which waits for a GPU.
    """

    def __init__(self, names: Mapping[Tensor, str]) -> None:
        self._held: set[str] = set()
        self._handles = []
        for parameter, name in names.items():  # the hook must not keep the parameter
            look = partial(_refuse_addition, self._held, name, weakref.ref(parameter))
            self._handles.append(parameter.register_hook(unserializable_hook(look)))

    def stop(self) -> None:
        """Look no more, for a loop that is known to clear its gradients, though not to None."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def note(self, names: Iterable[str]) -> None:
        """Note that the gradients of these parameters are being exchanged."""
        if self._handles:
            self._held.update(names)


def holds_mean(name: str, unsynchronised: str) -> RuntimeError:
    """Return the error of a backward that would add to an exchanged mean; `unsynchronised` is what keeps it from it."""
    return RuntimeError(
        f"gradients.preconditioner: adds updates and not gradients, got a second backward while .grad of {name} holds "
        f"an exchanged mean; run all but the last backward of a step under {unsynchronised}, or call zero_grad first"
    )


def _refuse_addition(held: set[str], name: str, parameter: weakref.ref[Tensor], gradient: Tensor) -> None:
    """Raise RuntimeError if this gradient would be added to an exchanged mean."""
    if name not in held:
        return
    owner = parameter()
    if owner is not None and owner.grad is not None and owner.grad.any():
        raise holds_mean(name, "no_sync")
    held.discard(name)

"""Trials of a model that leave no trace: after the block the model is as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore `model` after the block: parameters, buffers of any type, training flags and plain attributes.

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
    """Remember the tensors and plain attributes that a module holds by name."""

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
    """Collect the names of a module's own parameters, buffers (also those that are None as yet) and submodules."""
    tables = (part._parameters, part._buffers, part._modules)
    return {name for table in tables for name, _ in table.items()}

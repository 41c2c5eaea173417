"""Keep a model's floating-point buffers in one flat vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flare_dist.fixed import fixed_of
from flare_dist.layout import bind_buffers, buffer_layout, dtypes_of, in_own_dtype


class FlatBuffers:
    """Bind the buffers that training changes to `vector`, float32 [b], and again after a forward that replaced one."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layout = buffer_layout(module)
        self.vector = bind_buffers(module, self.layout)
        self._dtypes = dtypes_of(module)
        self._views = dict(self.layout.views(self.vector))
        # The other buffers, as they are at first. BatchNorm counts its batches; from the start for every client, so
        # that bits do not depend on who came before.
        float32 = {name for name in self._views if self._dtypes.get(name) == torch.float32}
        self._initial = {name: b.clone() for name, b in module.named_buffers() if name not in float32}
        self._constants = fixed_of(module).constants

    def load(self, buffers: Tensor) -> None:
        """Give the model these values, and the buffers that no vector holds their initial ones."""
        self.vector.copy_(buffers)
        for name, value in self._views.items():
            buffer = self.module.get_buffer(name)
            if name not in self._initial and buffer.data_ptr() != value.data_ptr():  # replaced in an evaluation
                buffer.data = value
        for name, initial in self._initial.items():
            kept = self._views.get(name)
            self.module.get_buffer(name).copy_(initial if kept is None else in_own_dtype(kept, initial))

    def collect(self) -> None:
        """Bring buffers that are not in the flat vector, or that the model replaced, back into it."""
        named = dict(self.module.named_buffers())
        for name, value in self._views.items():
            if named[name].data_ptr() != value.data_ptr():
                value.copy_(named[name])
                if name not in self._initial:
                    named[name].data = value
        for name in self._constants:
            if not torch.equal(named[name], self._initial[name]):
                raise ValueError(
                    f"model.name: training changes its buffer {name}, and a first step did not; let each step change "
                    "some buffer of the same module, as BatchNorm counts its batches, or register it persistent=False"
                )

"""Start a DeepSpeed engine, and keep its model's buffers in a flat vector beside it."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from deepspeed import DeepSpeedEngine as DeepSpeedEngine
from torch import Tensor, nn
from torch.optim import Optimizer

from flare_dist.engines.deepspeed_groups import HostGroups
from flare_dist.layout import buffer_layout, in_own_dtype
from flare_dist.tasks.batch import cast


def start_engine(
    settings: dict[str, Any], model: nn.Module, optimizer: Optimizer, groups: HostGroups | None, device: torch.device
) -> DeepSpeedEngine:
    """Put a model and the optimizer of its parameters in an engine of these groups (None = all ranks are one).

    The model takes its inputs in the engine's precision, and gives outputs of float32.
    """
    _compile_nothing(device)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings, mpu=groups, dist_init_required=False
    )
    dtype = next(p.dtype for p in model.parameters() if p.requires_grad)
    if dtype != torch.float32:
        model.register_forward_pre_hook(lambda module, inputs: cast(inputs, dtype))
        model.register_forward_hook(lambda module, inputs, outputs: cast(outputs, torch.float32))
    return engine


def has_left_out(engine: DeepSpeedEngine) -> bool:
    """Tell whether the last step was left out because the gradient was not finite: a divergence but for a loss scale.

    DeepSpeed does so without a word, whatever the precision is.
    """
    return not engine.fp16_enabled() and bool(getattr(engine.optimizer, "overflow", False))


class EngineBuffers:
    """Hold the buffers that training changes in `vector`, float32 [b]: copies, for the engine has its own precision.

    Made before the engine, which may round what the buffers began with.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = module
        self.layout = buffer_layout(module)
        self._initial = {name: b.detach().clone() for name, b in module.named_buffers()}
        self.vector = torch.empty(self.layout.total, device=device)
        for name, view in self.layout.views(self.vector):
            view.copy_(self._initial[name])

    def load(self, buffers: Tensor) -> None:
        """Give the model these values, and the buffers that no vector holds their initial ones."""
        self.vector.copy_(buffers)
        averaged = dict(self.layout.views(self.vector))
        for name, buffer in self.module.named_buffers():
            initial = self._initial[name]
            buffer.copy_(in_own_dtype(averaged[name], initial) if name in averaged else initial)

    def collect(self) -> None:
        """Read the model's buffers into the flat vector."""
        named = dict(self.module.named_buffers())
        for name, value in self.layout.views(self.vector):
            value.copy_(named[name])


def _compile_nothing(device: torch.device) -> None:
    """Take from DeepSpeed the operator that it compiles on CPUs, for a minute or two, and that serves inference."""
    if device.type == "cpu":  # on a GPU looking at the operators asks for a CUDA toolkit
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

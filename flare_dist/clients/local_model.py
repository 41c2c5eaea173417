"""The model that clients train, as every engine offers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flare_dist.cuts import ModelShard
from flare_dist.layout import ParameterLayout
from flare_dist.tasks.task import Batch, Count


class LocalModel(Protocol):
    """An engine's model: flat vectors to read and write, and a training step."""

    module: nn.Module  # to evaluate
    layout: ParameterLayout
    buffer_layout: ParameterLayout
    parameters: Tensor  # float32 [total], the model's current values
    buffers: Tensor  # float32 [b]
    dtypes: dict[str, torch.dtype]  # of parameters and buffers by name, as the user has made them
    optimizer: Optimizer
    base: str | None  # digest of what is frozen and lies in files of its own
    is_rounded: bool  # `load` rounds parameters to the precision that the model computes in

    @property
    def shard(self) -> ModelShard | None:
        """Return what this rank holds of a model that its host has divided; None if it has all."""

    def load(self, parameters: Tensor, buffers: Tensor) -> None:
        """Give the model these values, and all other buffers those that they began with."""

    def collect(self) -> None:
        """Bring `parameters` and `buffers` up to date after training."""

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """Return the optimizer's state for a checkpoint, if it outlives a round; ranks that share it call together."""

    def load_optimizer_state(self, name: str, saved: dict[str, Any]) -> None:
        """Take over what `optimizer_state` gave; raises ValueError if it is another optimizer's."""

    def mask_(self, factor: Tensor) -> None:
        """Multiply the parameters by `factor`, float32 [total], in place."""

    def reset(self) -> None:
        """Forget what earlier clients left in the optimizer and the loss scale."""

    def step(self, batch: Batch, penalty: Callable[[Tensor, Tensor], None] | None = None) -> tuple[Tensor, Count]:
        """Take one optimizer step on a batch; returns its mean loss and how many labels count in it.

        `penalty` adds to (gradient, parameters) before the step.
        """

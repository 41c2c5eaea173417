"""Placement and mixed precision of local training by Hugging Face Accelerate.

Models are prepared without a DDP wrapper, and data loaders never: clients are private, ranks exchange model deltas.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from flare_dist.engines.config import EngineConfig


class AccelerateEngine:
    """One rank's device and precision; the process group, if any, must exist before."""

    def __init__(self, config: EngineConfig, device: torch.device) -> None:
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=config.mixed_precision)
        if self.accelerator.device.type != device.type:
            raise RuntimeError(f"Accelerate chose {self.accelerator.device} where {device} was expected")
        if config.threads is not None:
            torch.set_num_threads(config.threads)  # Accelerate sets its own number while it starts on CPUs
        scaler = self.accelerator.scaler
        self._initial_scale = copy.deepcopy(scaler.state_dict()) if scaler is not None else None

    def place(self, model: nn.Module) -> nn.Module:
        """Move the model to the device; its forward then runs under autocast where mixed precision asks for it."""
        return cast(nn.Module, self.accelerator.prepare_model(model, evaluation_mode=True))

    def prepare(self, optimizer: Optimizer) -> None:
        """Take charge of the optimizer that `step` steps. Its float32 parameters stay where they are."""
        self.plain_optimizer = optimizer
        self.optimizer = self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    def reset(self) -> None:
        """Forget the loss scale, so that a client's training does not depend on who was trained before it."""
        if self._initial_scale is not None:
            self.accelerator.scaler.load_state_dict(self._initial_scale)

    def backward(self, loss: Tensor) -> None:
        # Without a loss scale Accelerate's backward and step only divide by 1 and look for optional packages, which
        # costs a small model a tenth of its step.
        if self._initial_scale is None:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def unscale(self) -> None:
        """Take the loss scale out of the gradients before something is added to them."""
        self.accelerator.unscale_gradients(self.optimizer)

    def step(self) -> None:
        """Step the optimizer; with fp16 a step whose gradients overflowed is skipped and the scale halved."""
        if self._initial_scale is None:
            self.plain_optimizer.step()
        else:
            self.optimizer.step()

"""Placement and mixed precision of local training by Hugging Face Accelerate.

Models are prepared without a DDP wrapper, and data loaders never: clients are private, ranks exchange model deltas.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from flare_dist.comm.ddp_hook import SparseHookState
from flare_dist.comm.hook_checkpoint import load_hook_state, save_hook_state
from flare_dist.engines.attach import attach_ddp
from flare_dist.engines.config import EngineConfig
from flare_dist.layout import bind_buffers, bind_parameters, buffer_layout, parameter_layout


def place(config: EngineConfig, model: nn.Module, device: torch.device) -> tuple[Accelerator, nn.Module]:
    """The model on `device`, with its forward under autocast where the precision asks for it.

    The process group, if any, must exist before: Accelerate would start its own.
    """
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=config.mixed_precision)
    assert accelerator.device.type == device.type, f"Accelerate chose {accelerator.device}, not {device}"
    if config.threads is not None:
        torch.set_num_threads(config.threads)  # Accelerate sets its own number while it starts on CPUs
    return accelerator, accelerator.prepare_model(model, evaluation_mode=True)


class AccelerateModel:
    """A model whose parameters, gradient and floating-point buffers are one flat vector each, and its optimizer.

    `parameters` and `buffers` are the model's current values: write to them and the model has changed.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: nn.Module,
        device: torch.device,
        make_optimizer: Callable[[nn.Parameter], Optimizer],
    ) -> None:
        self._accelerator, self.module = place(config, model, device)
        self.layout = parameter_layout(model)
        self.buffer_layout = buffer_layout(model)
        self.parameters, self._gradient = bind_parameters(model, self.layout)
        self.buffers = bind_buffers(model, self.buffer_layout)
        # BatchNorm counts its batches; from the start for every client, so that bits do not depend on who came before.
        self._counters = {name: b.clone() for name, b in model.named_buffers() if not b.is_floating_point()}
        flat = nn.Parameter(self.parameters)
        flat.grad = self._gradient
        self.optimizer = make_optimizer(flat)
        self._scaled_optimizer = self._accelerator.prepare_optimizer(self.optimizer, device_placement=False)
        scaler = self._accelerator.scaler
        self._initial_scale = None if scaler is None else copy.deepcopy(scaler.state_dict())

    def distribute(self, **settings: Any) -> tuple[nn.Module, SparseHookState]:
        """The model under DistributedDataParallel with the sparse hook, whose settings are given, and its state.

        Steps go through `step` as before, with losses of what is returned here. Buffers stay each rank's own.
        """
        device = self.parameters.device
        module = DistributedDataParallel(
            self.module, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
        )
        return module, attach_ddp(module, scaler=self._accelerator.scaler, **settings)

    def load(self, parameters: Tensor, buffers: Tensor) -> None:
        """Give the model these values, and its integer buffers their initial ones."""
        self.parameters.copy_(parameters)
        self.buffers.copy_(buffers)
        for name, initial in self._counters.items():
            self.module.get_buffer(name).copy_(initial)

    def collect_buffers(self) -> None:
        """Bring buffers that the model replaced, instead of writing to them, back into the flat vector."""
        named = dict(self.module.named_buffers())
        for name, value in self.buffer_layout.views(self.buffers):
            if named[name].data_ptr() != value.data_ptr():
                value.copy_(named[name])
                named[name].data = value

    def reset(self) -> None:
        """Forget the optimizer's state and the loss scale, so that no client depends on the one trained before it."""
        self.optimizer.state.clear()
        if self._initial_scale is not None:
            self._accelerator.scaler.load_state_dict(self._initial_scale)

    def step(self, loss: Tensor, penalty: Callable[[Tensor, Tensor], None] | None) -> None:
        """Backward and optimizer step; `penalty` adds to (gradient, parameters) in between, on unscaled gradients.

        With fp16 a step whose gradients overflowed is skipped and the loss scale halved.
        """
        # Without a loss scale Accelerate's backward and step only divide by 1 and look for optional packages, which
        # costs a small model a tenth of its step.
        scaled = self._initial_scale is not None
        self._gradient.zero_()
        self._accelerator.backward(loss) if scaled else loss.backward()
        if penalty is not None:
            self._accelerator.unscale_gradients(self._scaled_optimizer)
            penalty(self._gradient, self.parameters)
        self._scaled_optimizer.step() if scaled else self.optimizer.step()


def attach_accelerator(accelerator: Accelerator, model: nn.Module, **settings: Any) -> SparseHookState:
    """The sparse hook on a model that `accelerator` prepared; its memory goes with save_state and load_state.

    Accelerate itself would drop a hook that it does not know, and saves what is registered with it on one rank only.
    """
    state = attach_ddp(model, scaler=accelerator.scaler, **settings)
    accelerator.register_save_state_pre_hook(lambda models, weights, directory: save_hook_state(state, directory))
    accelerator.register_load_state_pre_hook(lambda models, directory: load_hook_state(state, directory))
    return state

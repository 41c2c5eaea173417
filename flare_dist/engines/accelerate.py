"""Train a model locally, placed and in mixed precision by Hugging Face Accelerate.

Models are prepared without a DDP wrapper, and data loaders never: clients are private, ranks exchange model deltas.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

from flare_dist.comm.config import GradientsConfig
from flare_dist.engines.accumulation import backward_in_pieces, cut
from flare_dist.engines.config import EngineConfig
from flare_dist.engines.data_parallel import register_hook, wrap
from flare_dist.engines.flat_model import FlatModel
from flare_dist.engines.placement import place
from flare_dist.engines.recorded import Recordings, why_not_recorded
from flare_dist.fixed import base_digest
from flare_dist.hook.library import LibraryHookState
from flare_dist.hook.state import SparseHookState
from flare_dist.server.optimizers import load_optimizer_state, optimizer_state, settings_of
from flare_dist.tasks.losses import counts_all, mean_loss
from flare_dist.tasks.task import Batch, Count, Task


class AccelerateModel:
    """Step a model whose parameters, gradient and floating-point buffers are one flat vector each.

    `parameters` and `buffers` are the model's current values, which `load` and `collect` (flat_model.py) write and
    read. `make_optimizer` is given the flat vector, or if `by_name` a (name, parameter) pair of each tensor. Plain SGD
    does without the flat gradient.
    """

    shard = None

    def __init__(
        self,
        config: EngineConfig,
        model: nn.Module,
        device: torch.device,
        make_optimizer: Callable[[list[Any]], Optimizer],
        task: Task,
        gradient_clipping: float | None = None,
        smallest_batch: int = 1,
        by_name: bool = False,
    ) -> None:
        self._accelerator, self.module = place(config, model, device)
        self._task = task
        self._pieces = config.gradient_accumulation_steps
        self._smallest_batch = smallest_batch
        self._gradient_clipping = gradient_clipping
        self._rank_weight: Callable[[Count], Count] | None = None
        self._parallel: DistributedDataParallel | None = None  # around the module, once distributed
        self._flat = FlatModel(self.module)
        self.layout = self._flat.layout
        self.buffer_layout = self._flat.buffer_layout
        self.dtypes = self._flat.dtypes
        self.parameters = self._flat.parameters
        self.buffers = self._flat.buffers
        self.base = base_digest(self.module)
        self.is_rounded = self._flat.is_rounded
        self.load = self._flat.load
        self.collect = self._flat.collect
        stepped = self._flat.stepped(by_name)
        self._trained = list(stepped.values())
        self.optimizer = make_optimizer(list(stepped.items()) if by_name else self._trained)
        self._settings = settings_of(self.optimizer) if by_name else []
        self._scaled_optimizer = self._accelerator.prepare_optimizer(self.optimizer, device_placement=False)
        self._scaler = self._accelerator.scaler
        self._initial_scale = None if self._scaler is None else copy.deepcopy(self._scaler.state_dict())
        is_whole = self._pieces == 1
        is_unscaled = self._scaler is None and gradient_clipping is None and not self.is_rounded
        self._steps_plainly = not by_name and _is_plain_sgd(self.optimizer) and is_whole and is_unscaled
        is_plain = device.type == "cpu" and config.mixed_precision == "no" and is_whole
        is_recordable = config.recorded == "auto" and task.criterion is not None and is_plain and not self.is_rounded
        records = is_recordable and why_not_recorded(self.module) is None
        self._recordings = Recordings(self.module, self._flat.tensors, task) if records else None

    def distribute(
        self, gradients: GradientsConfig, seed: int, rank_weight: Callable[[Count], Count], **settings: Any
    ) -> SparseHookState | LibraryHookState:
        """Let each further `step` take the mean gradient of all ranks, exchanged by the hook that is asked for.

        `rank_weight` gives this rank's weight in the mean, from how many of its labels count; `settings` are those of
        the sparse hook. All ranks call it, and `step`, together. Buffers stay each rank's own.
        """
        self._rank_weight = None if counts_all(self._task) else rank_weight
        self._recordings = None  # a recording has no backward pass for the hook to take part in
        self._parallel = wrap(self.module, gradients, self.parameters.device)
        return register_hook(self._parallel, gradients, seed, self._scaler, **settings)

    def mask_(self, factor: Tensor) -> None:
        """Multiply the parameters by `factor`, in place."""
        self.parameters.mul_(factor)
        if self.is_rounded:
            self._flat.refresh()

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """Return what a checkpoint keeps of the optimizer of this name, if one outlives a round."""
        scale = {} if self._scaler is None else {"scaler": self._scaler.state_dict()}
        return optimizer_state(self.optimizer, name) | scale

    def load_optimizer_state(self, name: str, saved: dict[str, Any]) -> None:
        """Take over what `optimizer_state` returned; raises ValueError if it is another optimizer's."""
        load_optimizer_state(self.optimizer, name, saved, "clients.optimizer")
        if self._scaler is not None and "scaler" in saved:
            self._scaler.load_state_dict(saved["scaler"])

    def reset(self) -> None:
        """Forget the optimizer's state and the loss scale, so that no client depends on the one trained before it."""
        self.optimizer.state.clear()
        for group, settings in zip(self.optimizer.param_groups, self._settings):
            group.update(copy.deepcopy(settings))  # some keep what they have counted there
        if self._scaler is not None:
            self._scaler.load_state_dict(self._initial_scale)

    def step(self, batch: Batch, penalty: Callable[[Tensor, Tensor], None] | None = None) -> tuple[Tensor, Count]:
        """Take one optimizer step on a batch, in `engine.gradient_accumulation_steps` pieces.

        Returns the mean loss, once distributed as this rank's part of the mean over ranks, and how many labels count.

        `penalty` adds to (gradient, parameters) before the step, on unscaled gradients. With fp16 a step whose
        gradients overflowed is skipped and the loss scale halved.
        """
        if self._steps_plainly and penalty is None and self._parallel is None:
            return self._plain_step(batch)
        loss, count = self._backward(batch)
        if penalty is not None or self._gradient_clipping is not None:
            self._accelerator.unscale_gradients(self._scaled_optimizer)
        if penalty is not None:
            penalty(self._flat.gradient, self.parameters)
        if self._gradient_clipping is not None:
            nn.utils.clip_grad_norm_(self._trained, self._gradient_clipping)
        # Without a loss scale Accelerate's step only looks for optional packages, which costs a small model time.
        (self.optimizer if self._scaler is None else self._scaled_optimizer).step()
        self._flat.refresh()
        return loss, count

    def _plain_step(self, batch: Batch) -> tuple[Tensor, Count]:
        """Take the step of SGD without anything else, with the same bits.

        It is taken on the tensors one by one, with gradients of their own: adding these to a vector of zeros, and
        torch.optim's bookkeeping, take a small model a third of its step.
        """
        values = self._flat.values
        recorded = self._recordings.step(values, batch) if self._recordings else None
        if recorded:
            loss, gradients, count = recorded
        else:
            tensors = self._flat.tensors
            for parameter in tensors:
                parameter.grad = None
            loss, count = mean_loss(self._task, self.module, batch)
            loss.backward()
            loss = loss.detach()
            gradients = [parameter.grad for parameter in tensors if parameter.grad is not None]
            if len(gradients) < len(values):  # some are of what was not used
                values = [value for value, parameter in zip(values, tensors) if parameter.grad is not None]
            self._flat.take_back()
        torch._foreach_add_(values, gradients, alpha=-self.optimizer.param_groups[0]["lr"])
        return loss, count

    def _backward(self, batch: Batch) -> tuple[Tensor, Count]:
        """Compute the flat gradient of a batch; returns the mean loss and how many labels count."""
        recorded = self._recordings.step(self._flat.values, batch) if self._recordings else None
        if recorded:
            loss, gradients, count = recorded
            self._flat.gradient.zero_()
            torch._foreach_add_(self._flat.gradients, gradients)
            return loss, count
        self._flat.bind_gradients()
        loss, count = backward_in_pieces(
            self._task,
            self._parallel or self.module,
            cut(batch, self._pieces, self._smallest_batch),
            self._flat.gradient,
            self._backward_from,
            self._rank_weight,
        )
        self._flat.take_back()
        return loss, count

    def _backward_from(self, loss: Tensor) -> None:
        """Add the gradient of a loss to the flat one, scaled as fp16 needs it."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()


def _is_plain_sgd(optimizer: Optimizer) -> bool:
    """Tell whether a step is the gradient times the rate and nothing else."""
    settings = optimizer.param_groups[0]
    return type(optimizer) is SGD and not (settings["momentum"] or settings["weight_decay"])

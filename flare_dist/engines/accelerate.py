"""Local training, placed and in mixed precision by Hugging Face Accelerate.

Models are prepared without a DDP wrapper, and data loaders never: clients are private, ranks exchange model deltas.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

from flare_dist.comm.config import GradientsConfig
from flare_dist.data.batches import piece_sizes
from flare_dist.engines.attach import attach_ddp
from flare_dist.engines.config import EngineConfig
from flare_dist.engines.recorded import Recordings, why_not_recorded
from flare_dist.hook.library import ONE_BUCKET_MB, LibraryHookState, library_hook
from flare_dist.hook.state import SparseHookState
from flare_dist.layout import (
    bind_buffers,
    bind_parameters,
    buffer_layout,
    dtypes_of,
    in_own_dtype,
    parameter_layout,
)
from flare_dist.server.optimizers import load_optimizer_state, optimizer_state
from flare_dist.tasks.builtin import CLASSIFICATION
from flare_dist.tasks.task import Count, Task, at_least_one, counted, counts_all, mean_loss

# By these `accelerate launch` says what to wrap the model in; but the launcher only starts ranks, we choose the engine.
WRAPPERS = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_DYNAMO_")


def place(config: EngineConfig, model: nn.Module, device: torch.device) -> tuple[Accelerator, nn.Module]:
    """The model on `device`, with its forward under autocast where the precision asks for it.

    Sets torch's number of threads, and forgets what `accelerate launch` says of wrappers. The process group, if any,
    must exist before: Accelerate would start its own.
    """
    for name in [name for name in os.environ if name.startswith(WRAPPERS)]:
        del os.environ[name]
    if "OMP_NUM_THREADS" not in os.environ:  # Accelerate would warn of it, and choose a number of its own
        os.environ["OMP_NUM_THREADS"] = str(config.threads or 1)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=config.mixed_precision)
    assert accelerator.device.type == device.type, f"Accelerate chose {accelerator.device}, not {device}"
    if config.threads is not None:
        torch.set_num_threads(config.threads)  # Accelerate sets its own number while it starts on CPUs
    return accelerator, accelerator.prepare_model(model, evaluation_mode=True)


class AccelerateModel:
    """A model whose parameters, gradient and floating-point buffers are one flat vector each, and its optimizer.

    `parameters` and `buffers` are the model's current values. `make_optimizer` is given the flat vector. Plain SGD goes
    without the flat gradient.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: nn.Module,
        device: torch.device,
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        gradient_clipping: float | None = None,
        smallest_batch: int = 1,
        task: Task = CLASSIFICATION,
    ) -> None:
        self._accelerator, self.module = place(config, model, device)
        self._task = task
        self._rank_weight: Callable[[Count], Count] | None = None
        self._parallel: DistributedDataParallel | None = None  # around the module, once distributed
        self._micro_batches, self._smallest_batch = config.gradient_accumulation_steps, smallest_batch
        self._gradient_clipping = gradient_clipping
        self.layout = parameter_layout(model)
        self.buffer_layout = buffer_layout(model)
        self.dtypes = dtypes_of(model)
        self.parameters, self._gradient = bind_parameters(model, self.layout)
        named = dict(model.named_parameters())
        self._tensors = [named[entry.name] for entry in self.layout.entries]
        self._values = [value for _, value in self.layout.views(self.parameters)]
        self._slots = [slot for _, slot in self.layout.views(self._gradient)]
        self.buffers = bind_buffers(model, self.buffer_layout)
        self._buffer_views = dict(self.buffer_layout.views(self.buffers))
        # The other buffers, as they are at first. BatchNorm counts its batches; from the start for every client, so
        # that bits do not depend on who came before.
        float32 = {name for name in self._buffer_views if self.dtypes.get(name) == torch.float32}
        self._initial = {name: b.clone() for name, b in model.named_buffers() if name not in float32}
        flat = nn.Parameter(self.parameters)
        flat.grad = self._gradient
        self._flat = flat
        self.optimizer = make_optimizer([flat])
        self._scaled_optimizer = self._accelerator.prepare_optimizer(self.optimizer, device_placement=False)
        scaler = self._accelerator.scaler
        self._initial_scale = None if scaler is None else copy.deepcopy(scaler.state_dict())
        settings, whole = self.optimizer.param_groups[0], config.gradient_accumulation_steps == 1
        is_sgd = type(self.optimizer) is SGD and not (settings["momentum"] or settings["weight_decay"])
        self._steps_plainly = is_sgd and whole and scaler is None and gradient_clipping is None
        is_plain = device.type == "cpu" and config.mixed_precision == "no" and whole
        is_wanted = config.recorded == "auto" and task.criterion is not None
        records = is_wanted and is_plain and why_not_recorded(self.module) is None
        self._recordings = Recordings(self.module, self._tensors, task) if records else None

    def distribute(
        self, gradients: GradientsConfig, seed: int, rank_weight: Callable[[Count], Count], **settings: Any
    ) -> SparseHookState | LibraryHookState:
        """From now on each `step` takes the mean gradient of all ranks, exchanged by the hook that is asked for.

        `rank_weight` gives this rank's weight in the mean, from how many of its labels count; `settings` are those of
        the sparse hook. All ranks call it, and `step`, together. Buffers stay each rank's own.
        """
        self._rank_weight = None if counts_all(self._task) else rank_weight
        device = self.parameters.device
        one_bucket = ONE_BUCKET_MB if gradients.hook == "powersgd" else None
        with warnings.catch_warnings():  # newer versions of torch have another name for it, older ones only this
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            self._parallel = DistributedDataParallel(
                self.module,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,
                find_unused_parameters=gradients.find_unused_parameters,
                bucket_cap_mb=one_bucket,
            )
        if gradients.hook == "sparse":
            return attach_ddp(self._parallel, scaler=self._accelerator.scaler, seed=seed, **settings)
        state = LibraryHookState(gradients, self._parallel.process_group, seed)
        self._parallel.register_comm_hook(state, library_hook)
        return state

    def load(self, parameters: Tensor, buffers: Tensor) -> None:
        """Give the model these values, and the buffers that no vector holds their initial ones."""
        self._take_back()
        self.parameters.copy_(parameters)
        self.buffers.copy_(buffers)
        for name, value in self._buffer_views.items():
            buffer = self.module.get_buffer(name)
            if name not in self._initial and buffer.data_ptr() != value.data_ptr():  # replaced in an evaluation
                buffer.data = value
        for name, initial in self._initial.items():
            kept = self._buffer_views.get(name)
            self.module.get_buffer(name).copy_(initial if kept is None else in_own_dtype(kept, initial))

    def mask_(self, factor: Tensor) -> None:
        """Multiply the parameters by `factor`, in place."""
        self.parameters.mul_(factor)

    def _take_back(self) -> None:
        """Move parameters that a forward pass put elsewhere (`weight.data = ...`, as limits on norms do) back."""
        for parameter, value in zip(self._tensors, self._values):
            if parameter.data_ptr() != value.data_ptr():
                value.copy_(parameter.detach())
                parameter.data = value

    def collect(self) -> None:
        """Bring buffers that are not in the flat vector, or that the model replaced, back into it."""
        named = dict(self.module.named_buffers())
        for name, value in self._buffer_views.items():
            if named[name].data_ptr() != value.data_ptr():
                value.copy_(named[name])
                if name not in self._initial:
                    named[name].data = value

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """What a checkpoint keeps of the optimizer of this name, where one outlives a round."""
        scaler = self._accelerator.scaler
        return optimizer_state(self.optimizer, name) | ({} if scaler is None else {"scaler": scaler.state_dict()})

    def load_optimizer_state(self, name: str, saved: dict[str, Any]) -> None:
        """Take over what `optimizer_state` gave; ValueError where it is another optimizer's."""
        load_optimizer_state(self.optimizer, name, saved, "clients.optimizer")
        if self._accelerator.scaler is not None and "scaler" in saved:
            self._accelerator.scaler.load_state_dict(saved["scaler"])

    def reset(self) -> None:
        """Forget the optimizer's state and the loss scale, so that no client depends on the one trained before it."""
        self.optimizer.state.clear()
        if self._initial_scale is not None:
            self._accelerator.scaler.load_state_dict(self._initial_scale)

    def step(
        self, inputs: Tensor, labels: Tensor, penalty: Callable[[Tensor, Tensor], None] | None = None
    ) -> tuple[Tensor, Count]:
        """Take one optimizer step on a batch, in `engine.gradient_accumulation_steps` pieces.

        Returns the mean loss, once distributed as this rank's part of the mean over ranks, and how many labels count.

        `penalty` adds to (gradient, parameters) before the step, on unscaled gradients. With fp16 a step whose
        gradients overflowed is skipped and the loss scale halved.
        """
        if self._steps_plainly and penalty is None and self._parallel is None:
            return self._plain_step(inputs, labels)
        scaler = self._accelerator.scaler
        loss, count = self._backward(inputs, labels)
        if penalty is not None or self._gradient_clipping is not None:
            self._accelerator.unscale_gradients(self._scaled_optimizer)
        if penalty is not None:
            penalty(self._gradient, self.parameters)
        if self._gradient_clipping is not None:
            nn.utils.clip_grad_norm_([self._flat], self._gradient_clipping)
        # Without a loss scale Accelerate's step only looks for optional packages, which costs a small model time.
        (self.optimizer if scaler is None else self._scaled_optimizer).step()
        return loss, count

    def _recorded(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor], Count] | None:
        """Mean loss, gradients and count of a batch by a recording; None if the step has to be taken by autograd."""
        if self._recordings is None or self._parallel is not None:
            return None
        recording = self._recordings.of(inputs, labels)
        if recording is None:
            return None
        loss, *gradients = recording(*self._values, inputs, labels)
        return loss, gradients, counted(labels, self._task.ignored)

    def _plain_step(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Count]:
        """`step` for SGD without anything else, with the same bits.

        It is taken on the tensors one by one, with gradients of their own: adding these to a vector of zeros, and
        torch.optim's bookkeeping, take a small model a third of its step.
        """
        values = self._values
        recorded = self._recorded(inputs, labels)
        if recorded is not None:
            loss, gradients, count = recorded
        else:
            for parameter in self._tensors:
                parameter.grad = None
            loss, count = mean_loss(self._task, self.module, (inputs, labels))
            loss.backward()
            loss = loss.detach()
            gradients = [parameter.grad for parameter in self._tensors if parameter.grad is not None]
            if len(gradients) < len(values):  # some are of what was not used
                values = [value for value, p in zip(values, self._tensors) if p.grad is not None]
            self._take_back()
        torch._foreach_add_(values, gradients, alpha=-self.optimizer.param_groups[0]["lr"])
        return loss, count

    def _mean_loss(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Count]:
        """The mean loss of a batch, or of a piece of one, and how many labels count in it."""
        try:
            return mean_loss(self._task, self._parallel or self.module, (inputs, labels))
        except RuntimeError as error:
            if "find_unused_parameters" not in str(error):
                raise
            raise RuntimeError(
                "gradients.find_unused_parameters: must be true for this model, some of whose parameters took no part "
                "in a step"
            ) from error

    def _backward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Count]:
        """The gradient of a batch, in pieces, into the flat vector; returns the mean loss and how many labels count."""
        scaler = self._accelerator.scaler
        self._gradient.zero_()
        recorded = self._recorded(inputs, labels)
        if recorded is not None:
            loss, own, count = recorded
            torch._foreach_add_(self._slots, own)
            return loss, count
        for parameter, slot in zip(self._tensors, self._slots):
            parameter.grad = slot
        losses: list[Tensor] = []
        seen: Count = 0
        sizes = piece_sizes(labels.shape[0], self._micro_batches, self._smallest_batch)
        pieces = list(zip(inputs.split(sizes), labels.split(sizes)))
        for number, (some_inputs, some_labels) in enumerate(pieces, 1):
            waits = number < len(pieces)  # gradients are exchanged with the last piece only
            with self._parallel.no_sync() if waits and self._parallel else nullcontext():
                loss, count = self._mean_loss(some_inputs, some_labels)
                seen = seen + count
                if len(pieces) > 1 and counts_all(self._task):
                    loss = loss * (count / labels.numel())
                elif len(pieces) > 1:  # only now is it known how much the earlier pieces weigh
                    earlier = (seen - count) / at_least_one(seen)
                    self._gradient.mul_(earlier)
                    losses = [each * earlier for each in losses]
                    loss = loss * (count / at_least_one(seen))
                losses.append(loss.detach())
                if self._rank_weight is not None and not waits:
                    weight = self._rank_weight(seen)
                    self._gradient.mul_(weight)
                    losses = [each * weight for each in losses]
                    loss = loss * weight
                (loss if scaler is None else scaler.scale(loss)).backward()
        self._take_back()
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum(), seen

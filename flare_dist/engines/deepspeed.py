"""Models in DeepSpeed engines: each rank's own for federated clients, or one of a data-parallel group."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import deepspeed
import torch
from deepspeed import DeepSpeedEngine as DeepSpeedEngine
from deepspeed.utils import safe_get_full_grad, safe_set_full_grad
from torch import Tensor, nn
from torch.optim import Optimizer

from flare_dist.comm.collectives import ProcessGroup, all_gather_async, alone_group, rank_and_size
from flare_dist.comm.config import GradientsConfig
from flare_dist.data.batches import piece_sizes
from flare_dist.engines.deepspeed_hook import attach_engine
from flare_dist.hook.state import SparseHookState
from flare_dist.layout import buffer_layout, dtypes_of, in_own_dtype, parameter_layout
from flare_dist.tasks.builtin import CLASSIFICATION
from flare_dist.tasks.task import Count, Task, at_least_one, counted, counts_all, mean_loss


class DeepSpeedModel:
    """A model in a DeepSpeed engine of ZeRO stage 0 to 2, with the flat vectors that the round reads and writes.

    `parameters` are the float32 master weights, whatever precision the model computes in; they and `buffers` are
    brought up to date by `collect`. With `alone` the engine knows no other rank, so each rank's trains clients of its
    own; otherwise it is one of a data-parallel group, to be made sparse by `distribute`.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        model: nn.Module,
        device: torch.device,
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        alone: bool,
        smallest_batch: int = 1,
        task: Task = CLASSIFICATION,
    ) -> None:
        self._smallest_batch = smallest_batch
        self._task = task
        self._rank_weight: Callable[[Count], Count] | None = None
        self.layout, self.buffer_layout = parameter_layout(model), buffer_layout(model)
        self.dtypes = dtypes_of(model)
        self.module = model.to(device)
        named = dict(model.named_parameters())
        self._parameters = [named[entry.name] for entry in self.layout.entries]
        self._initial = {name: b.detach().clone() for name, b in model.named_buffers()}
        self.parameters = torch.cat([p.detach().flatten() for p in self._parameters])
        self.buffers = torch.empty(self.buffer_layout.total, device=device)
        for name, view in self.buffer_layout.views(self.buffers):
            view.copy_(self._initial[name])
        # The one operator that DeepSpeed compiles on CPUs, for a minute or two at its first start, serves inference.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(self._parameters),
            config=settings,
            mpu=_Alone() if alone else None,
            dist_init_required=False,
        )
        self.optimizer: Optimizer = self._engine.basic_optimizer
        self._dtype = self._parameters[0].dtype
        if self._dtype != torch.float32:
            model.register_forward_pre_hook(lambda module, inputs: tuple(map(self._to_model, inputs)))
            model.register_forward_hook(lambda module, inputs, outputs: outputs.float())
        self._shards = 1 if alone or not self._engine.zero_optimization_stage() else self._engine.dp_world_size
        self._initial_scale = copy.deepcopy(getattr(self._engine.optimizer, "loss_scaler", None))
        pieces = self._engine.gradient_accumulation_steps()
        if task.criterion is None and pieces > 1:
            raise ValueError(
                f"engine.gradient_accumulation_steps: must be 1 with engine.name=deepspeed, got {pieces}: the task "
                "has no criterion, and DeepSpeed must know in advance how many labels count"
            )

    def _to_model(self, value: Any) -> Any:
        """Floating-point inputs in the model's precision."""
        return value.to(self._dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def distribute(
        self, gradients: GradientsConfig, seed: int, rank_weight: Callable[[Count], Count], **settings: Any
    ) -> SparseHookState:
        """From now on each `step` takes the mean gradient of all ranks, exchanged sparsely by these settings.

        `rank_weight` gives this rank's weight in the mean, from how many of its labels count.
        """
        assert gradients.hook == "sparse", "the others are hooks of DistributedDataParallel"
        self._rank_weight = None if counts_all(self._task) else rank_weight
        return attach_engine(self._engine, seed=seed, **settings)

    def load(self, parameters: Tensor, buffers: Tensor) -> None:
        """Give the model these values, and the buffers that no vector holds their initial ones."""
        self.parameters.copy_(parameters)
        self.buffers.copy_(buffers)
        self._scatter(self.parameters, self._stepped())
        for (_, value), parameter in zip(self.layout.views(self.parameters), self._parameters):
            parameter.data.copy_(value)
        averaged = dict(self.buffer_layout.views(self.buffers))
        for name, buffer in self.module.named_buffers():
            initial = self._initial[name]
            buffer.copy_(in_own_dtype(averaged[name], initial) if name in averaged else initial)

    def mask_(self, factor: Tensor) -> None:
        """Multiply the parameters by `factor`, in place: the master weights, and those that the model computes with."""
        for own, share in self._shares(self._stepped(), factor):
            own.mul_(share)
        if self._dtype == torch.float32 and not self._engine.zero_optimization_stage():
            return  # they are the same
        for (_, view), parameter in zip(self.layout.views(factor), self._parameters):
            parameter.data.mul_(view)

    def collect(self) -> None:
        """Read the master weights and the buffers into the flat vectors; ranks of one group call it together."""
        self.parameters.copy_(self._gather(self._stepped()))
        named = dict(self.module.named_buffers())
        for name, value in self.buffer_layout.views(self.buffers):
            value.copy_(named[name])

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """What a checkpoint keeps of the optimizer, as of one flat vector; ranks of one group call it together."""
        parts = [self.optimizer.state[part] for part in self._stepped()]
        whole = {
            key: self._gather([part[key] for part in parts]) if isinstance(value, Tensor) and value.dim() else value
            for key, value in parts[0].items()
        }
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        return {"name": name, "state": {0: whole} if whole else {}, "scaler": dict(vars(scaler)) if scaler else {}}

    def load_optimizer_state(self, name: str, saved: dict[str, Any]) -> None:
        """Take over what `optimizer_state` gave, on any number of ranks; ValueError where it is another optimizer's."""
        if saved.get("scaler"):
            vars(self._engine.optimizer.loss_scaler).update(saved["scaler"])
        if not saved["state"]:
            return
        if saved["name"] != name:
            raise ValueError(f"clients.optimizer: the checkpoint holds the state of {saved['name']}, not of {name}")
        stepped = self._stepped()
        for key, value in saved["state"][0].items():
            is_vector = isinstance(value, Tensor) and value.dim()
            values = [torch.zeros_like(part.data) if is_vector else copy.deepcopy(value) for part in stepped]
            if is_vector:
                self._scatter(value, values)
            for part, own in zip(stepped, values):
                self.optimizer.state[part][key] = own

    def _stepped(self) -> list[Tensor]:
        """The float32 tensors that the optimizer steps: one for each parameter, or a flat one of this rank's shard."""
        return [part for group in self.optimizer.param_groups for part in group["params"]]

    def _gather(self, parts: list[Tensor]) -> Tensor:
        """One vector of what lies in the layout's order in `parts`, and in those of the other ranks."""
        own = torch.cat([part.detach().flatten() for part in parts]).to(self.parameters.device)
        if self._shards > 1:
            own, arrival = all_gather_async(own, None)
            arrival.wait()
        return own[: self.layout.total].clone()

    def _scatter(self, vector: Tensor, parts: list[Tensor]) -> None:
        """Write this rank's share of a whole vector to `parts`."""
        for own, share in self._shares(parts, vector):
            own.copy_(share)

    def _shares(self, parts: list[Tensor], vector: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What of `parts` and of a whole vector belongs together on this rank, without the padding behind its end."""
        start = rank_and_size(None)[0] * parts[0].numel() if self._shards > 1 else 0
        for part in parts:
            share = vector[start : start + part.numel()]
            yield part.data.view(-1)[: len(share)], share
            start += part.numel()

    def reset(self) -> None:
        """Forget the optimizer's state and the loss scale, so that no client depends on the one trained before it."""
        self.optimizer.state.clear()
        self._engine.zero_grad()
        self._engine.micro_steps = 0
        if self._initial_scale is not None:
            vars(self._engine.optimizer.loss_scaler).update(copy.deepcopy(vars(self._initial_scale)))

    def step(
        self, inputs: Tensor, labels: Tensor, penalty: Callable[[Tensor, Tensor], None] | None = None
    ) -> tuple[Tensor, Count]:
        """Take one optimizer step on a batch, in `gradient_accumulation_steps` pieces.

        Returns the mean loss, once distributed as this rank's part of the mean over ranks, and how many labels count.

        `penalty` adds to (gradient, parameters) before the step, on unscaled float32 copies.
        """
        loss_sum = torch.zeros((), device=labels.device)
        sizes = piece_sizes(len(labels), self._engine.gradient_accumulation_steps(), self._smallest_batch)
        pieces = list(zip(inputs.split(sizes), labels.split(sizes)))
        for number, (some_inputs, some_labels) in enumerate(pieces, 1):
            self._engine.set_gradient_accumulation_boundary(number == len(pieces))
            loss, count = mean_loss(self._task, self._engine, (some_inputs, some_labels))
            if number == 1:  # and the only one, if the loss alone tells how many labels count
                total = count if self._task.criterion is None else counted(labels, self._task.ignored)
                weight = 1.0 if self._rank_weight is None else self._rank_weight(total)
            loss = loss * (count / at_least_one(total)) * weight
            self._engine.backward(loss, scale_wrt_gas=False)
            if penalty is not None and number == len(pieces):
                self._penalise(penalty)
            self._engine.step()
            loss_sum += loss.detach()
        return loss_sum, total

    def _penalise(self, penalty: Callable[[Tensor, Tensor], None]) -> None:
        optimizer = self._engine.optimizer
        scale = optimizer.loss_scale if self._engine.fp16_enabled() else 1.0
        self.collect()
        gradients = [safe_get_full_grad(parameter) for parameter in self._parameters]
        flat = torch.cat([gradient.flatten().float() for gradient in gradients]).div_(scale)
        penalty(flat, self.parameters)
        for parameter, (_, view) in zip(self._parameters, self.layout.views(flat.mul_(scale))):
            safe_set_full_grad(parameter, view)
            if getattr(optimizer, "cpu_offload", False):  # has taken the norms, for clipping, with backward
                optimizer.norm_for_param_grads[optimizer.get_param_id(parameter)] = view.double().norm()


class _Alone:
    """The groups of a rank that trains by itself, as DeepSpeed asks for them."""

    def __init__(self) -> None:
        self._rank, self._group = alone_group()

    def get_data_parallel_group(self) -> ProcessGroup:
        return self._group

    get_model_parallel_group = get_data_parallel_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return [self._rank]

    def get_data_parallel_rank(self) -> int:
        return 0

    def get_data_parallel_world_size(self) -> int:
        return 1

    get_model_parallel_rank = get_data_parallel_rank
    get_model_parallel_world_size = get_data_parallel_world_size

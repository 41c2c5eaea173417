"""Train a model in a DeepSpeed engine: a rank's own for federated clients, or one of a data-parallel group."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad, safe_set_full_grad
from torch import Tensor, nn
from torch.optim import Optimizer

from flare_dist.comm.config import GradientsConfig
from flare_dist.comm.host import Host
from flare_dist.engines.accumulation import cut
from flare_dist.engines.deepspeed_engine import EngineBuffers, has_left_out, start_engine
from flare_dist.engines.deepspeed_groups import HostGroups
from flare_dist.engines.deepspeed_hook import attach_engine
from flare_dist.engines.deepspeed_shards import Shards
from flare_dist.engines.deepspeed_slices import forget_state
from flare_dist.fixed import base_digest
from flare_dist.hook.state import SparseHookState
from flare_dist.layout import dtypes_of, parameter_layout
from flare_dist.tasks.batch import pair
from flare_dist.tasks.losses import at_least_one, counted, counts_all, mean_loss
from flare_dist.tasks.task import Batch, Count, Task


class DeepSpeedModel:
    """Step a model in a DeepSpeed engine of ZeRO stage 0 to 2, with the flat vectors that the round reads and writes.

    `parameters` are the float32 master weights; they and `buffers` are brought up to date by `collect`. With `alone`
    the engine trains its rank's clients; otherwise it is one of a group, to be made sparse by `distribute`.
    """

    shard = None

    def __init__(
        self,
        settings: dict[str, Any],
        model: nn.Module,
        device: torch.device,
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        task: Task,
        alone: bool,
        smallest_batch: int = 1,
    ) -> None:
        self._smallest_batch = smallest_batch
        self._task = task
        self._is_alone = alone
        self._has_left_out = False
        self._rank_weight: Callable[[Count], Count] | None = None
        self.layout = parameter_layout(model)
        self.dtypes = dtypes_of(model)
        self.base = base_digest(model)
        self.is_rounded = False
        self.module = model.to(device)
        named = dict(model.named_parameters())
        self._parameters = [named[entry.name] for entry in self.layout.entries]
        self.parameters = torch.cat([p.detach().flatten() for p in self._parameters])
        self._buffers = EngineBuffers(model, device)
        self.buffer_layout = self._buffers.layout
        self.buffers = self._buffers.vector
        groups = HostGroups(Host()) if alone else None
        self._engine = start_engine(settings, model, make_optimizer(self._parameters), groups, device)
        self.optimizer: Optimizer = self._engine.basic_optimizer
        self._dtype = self._parameters[0].dtype
        is_whole = alone or not self._engine.zero_optimization_stage()
        shards = 1 if is_whole else self._engine.dp_world_size
        self._shards = Shards(self.optimizer, self.layout.total, shards, self.parameters.device)
        self._initial_scale = copy.deepcopy(getattr(self._engine.optimizer, "loss_scaler", None))
        self._check_pieces()

    def _check_pieces(self) -> None:
        """Raise ValueError if a batch goes through in pieces whose weights are not known in advance."""
        pieces = self._engine.gradient_accumulation_steps()
        if self._task.criterion is None and pieces > 1:
            raise ValueError(
                "engine.gradient_accumulation_steps: must be 1 with engine.name=deepspeed and a task without "
                f"criterion, got {pieces}; DeepSpeed needs the number of labels that count in advance"
            )

    def distribute(
        self, gradients: GradientsConfig, seed: int, rank_weight: Callable[[Count], Count], **settings: Any
    ) -> SparseHookState:
        """Let each further `step` take the mean gradient of all ranks, exchanged sparsely by these settings.

        `rank_weight` gives this rank's weight in the mean, from how many of its labels count.
        """
        assert gradients.hook == "sparse", "the others are hooks of DistributedDataParallel"
        self._rank_weight = None if counts_all(self._task) else rank_weight
        return attach_engine(self._engine, seed=seed, **vars(gradients.preconditioning), **settings)

    def load(self, parameters: Tensor, buffers: Tensor) -> None:
        """Give the model these values, and the buffers that no vector holds their initial ones."""
        self.parameters.copy_(parameters)
        self._has_left_out = False
        self._shards.scatter(self.parameters, self._shards.weights)
        for (_, value), parameter in zip(self.layout.views(self.parameters), self._parameters):
            parameter.data.copy_(value)
        self._buffers.load(buffers)

    def mask_(self, factor: Tensor) -> None:
        """Multiply the parameters by `factor`, in place: the master weights, and those that the model computes with."""
        for own, share in self._shards.shares(factor, self._shards.weights):
            own.mul_(share)
        if self._dtype == torch.float32 and not self._engine.zero_optimization_stage():
            return  # they are the same
        for (_, view), parameter in zip(self.layout.views(factor), self._parameters):
            parameter.data.mul_(view)

    def collect(self) -> None:
        """Read the master weights and the buffers into the flat vectors; ranks of one group call it together.

        The parameters are NaN if a client's step was left out because the gradient was not finite.
        """
        self.parameters.copy_(self._shards.gather(self._shards.weights))
        self._buffers.collect()
        if self._has_left_out:
            self.parameters.fill_(torch.nan)

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """Return what a checkpoint keeps of the optimizer, as of one flat vector; ranks of one group call together."""
        whole = self._shards.optimizer_state()
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        return {"name": name, "state": {0: whole} if whole else {}, "scaler": dict(vars(scaler)) if scaler else {}}

    def load_optimizer_state(self, name: str, saved: dict[str, Any]) -> None:
        """Take over what `optimizer_state` returned, on any number of ranks.

        Raises ValueError if it is another optimizer's.
        """
        if saved.get("scaler"):
            vars(self._engine.optimizer.loss_scaler).update(saved["scaler"])
        if not saved["state"]:
            return
        if saved["name"] != name:
            raise ValueError(f"clients.optimizer: the checkpoint holds the state of {saved['name']}, not of {name}")
        self._shards.load_optimizer_state(saved["state"][0])

    def reset(self) -> None:
        """Forget the optimizer's state and the loss scale, so that no client depends on the one trained before it."""
        forget_state(self._engine)
        self._engine.zero_grad()
        self._engine.micro_steps = 0
        if self._initial_scale is not None:
            vars(self._engine.optimizer.loss_scaler).update(copy.deepcopy(vars(self._initial_scale)))

    def step(self, batch: Batch, penalty: Callable[[Tensor, Tensor], None] | None = None) -> tuple[Tensor, Count]:
        """Take one optimizer step on a batch, in `gradient_accumulation_steps` pieces.

        Returns the mean loss, once distributed as this rank's part of the mean over ranks, and how many labels count.

        `penalty` adds to (gradient, parameters) before the step, on unscaled float32 copies.
        """
        loss_sum = torch.zeros((), device=self.parameters.device)
        weight: Count = 1.0
        pieces = cut(batch, self._engine.gradient_accumulation_steps(), self._smallest_batch)
        for number, piece in enumerate(pieces, 1):
            self._engine.set_gradient_accumulation_boundary(number == len(pieces))
            loss, count = mean_loss(self._task, self._engine, piece)
            if number == 1:  # and the only one, if the loss alone tells how many labels count
                total = count if self._task.criterion is None else counted(pair(batch)[1], self._task.ignored)
                if self._rank_weight is not None:
                    weight = self._rank_weight(total)
            loss = loss * (count / at_least_one(total)) * weight
            self._engine.backward(loss, scale_wrt_gas=False)
            if penalty is not None and number == len(pieces):
                self._penalise(penalty)
            self._engine.step()
            self._has_left_out |= self._is_alone and has_left_out(self._engine)
            loss_sum += loss.detach()
        return loss_sum, total

    def _penalise(self, penalty: Callable[[Tensor, Tensor], None]) -> None:
        """Let `penalty` add to the gradients that the next step takes."""
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

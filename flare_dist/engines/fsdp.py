"""Train a client's model on the ranks of one host, each of which holds a shard of it (FSDP2).

The flat vectors that the round reads and writes are those of this rank's rows; whoever else holds rows of the model is
asked only while it computes. All ranks of a host call every method together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import Optimizer

from flare_dist.comm.host import Host
from flare_dist.cuts import Cut, ModelShard
from flare_dist.engines.config import EngineConfig
from flare_dist.engines.flat_buffers import FlatBuffers
from flare_dist.engines.flow import Held, make_positive, positive
from flare_dist.engines.host_step import HostLoss, end_alike, loss_of_host
from flare_dist.fixed import base_digest
from flare_dist.layout import ParameterLayout, dtypes_of, parameter_layout
from flare_dist.server.optimizers import load_optimizer_state, optimizer_state
from flare_dist.tasks.task import Batch, Count, Task


class ShardedModel:
    """Step a model of which this rank holds a shard; `parameters` are its rows, float32 [total of this rank]."""

    is_rounded = False

    def __init__(
        self,
        config: EngineConfig,
        model: nn.Module,
        device: torch.device,
        make_optimizer: Callable[[list[Any]], Optimizer],
        task: Task,
        host: Host,
        gradient_clipping: float | None = None,
    ) -> None:
        self._task = task
        self._host = host
        self._gradient_clipping = gradient_clipping
        self.base = base_digest(model)
        whole = parameter_layout(model)
        cuts = tuple(Cut.of_shard(entry.shape, host.shard, host.shards) for entry in whole.entries)
        self.shard = ModelShard(host.shard, host.shards, whole, cuts)
        self.module = _sharded(config, model, host, device)
        self.dtypes = dtypes_of(self.module)
        named: dict[str, Any] = dict(self.module.named_parameters())
        self._parameters = [named[entry.name] for entry in whole.entries]
        self._frozen = [parameter for parameter in named.values() if not parameter.requires_grad]
        self.layout = ParameterLayout.of((e.name, p.to_local()) for e, p in zip(whole.entries, self._parameters))
        self.parameters = torch.cat([p.to_local().detach().flatten() for p in self._parameters])
        self._gradient = torch.zeros_like(self.parameters)
        stepped = nn.Parameter(self.parameters)
        stepped.grad = self._gradient
        self.optimizer = make_optimizer([stepped])
        self._buffers = FlatBuffers(self.module)
        self.buffer_layout = self._buffers.layout
        self.buffers = self._buffers.vector

    def load(self, parameters: Tensor, buffers: Tensor) -> None:
        """Give the model these values, and all other buffers those that they began with."""
        self.parameters.copy_(parameters)
        self._refresh()
        self._buffers.load(buffers)

    def collect(self) -> None:
        """Take the mean of the buffers over the shards; what is not finite on one of them is NaN on all."""
        self._buffers.collect()
        end_alike(self._host, self.parameters, self.buffers)

    def mask_(self, factor: Tensor) -> None:
        """Multiply the parameters by `factor`, in place."""
        self.parameters.mul_(factor)
        self._refresh()

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """Return what a checkpoint keeps of the optimizer of this name, if one outlives a round."""
        return optimizer_state(self.optimizer, name)

    def load_optimizer_state(self, name: str, saved: dict[str, Any]) -> None:
        """Take over what `optimizer_state` returned; raises ValueError if it is another optimizer's."""
        load_optimizer_state(self.optimizer, name, saved, "clients.optimizer")

    def reset(self) -> None:
        """Forget the optimizer's state, so that no client depends on the one trained before it."""
        self.optimizer.state.clear()

    def step(self, batch: Batch, penalty: Callable[[Tensor, Tensor], None] | None = None) -> tuple[Tensor, Count]:
        """Take one optimizer step on a batch, of which each shard computes a part.

        Returns the mean loss of the whole batch, and how many of its labels count. `penalty` adds to (gradient,
        parameters) of this rank's rows before the step.
        """
        loss = self._backward(batch)
        if penalty is not None:
            penalty(self._gradient, self.parameters)
        if self._gradient_clipping is not None:
            self._clip(self._gradient_clipping)
        self.optimizer.step()
        self._refresh()
        return loss.mean, loss.examples

    def gradient_of(self, batch: Batch) -> tuple[Tensor, Count]:
        """Return the gradient of a whole batch's mean loss by this rank's rows, and how many labels count in it."""
        loss = self._backward(batch)
        return self._gradient, loss.examples

    def flow_of(self, inputs: Tensor, scale: float) -> Tensor:
        """Return the gradient of `scale` times the sum of the outputs under |W| and no biases, by this rank's rows."""
        with positive(_rows_of(self._frozen)):
            make_positive(_rows_of(self._parameters))
            (self.module(inputs).sum() * scale).backward()
            self._take_gradient()
        self._refresh()
        return self._gradient

    def _backward(self, batch: Batch) -> HostLoss:
        """Leave the gradient of a batch, of which each shard computes a part."""
        loss = loss_of_host(self._task, self.module, batch, self._host)
        loss.own.backward()
        self._take_gradient()
        return loss

    def _take_gradient(self) -> None:
        """Move the gradients of this rank's rows to the flat one."""
        for parameter, (_, own) in zip(self._parameters, self.layout.views(self._gradient)):
            if parameter.grad is None:  # not used by this batch
                own.zero_()
            else:
                own.copy_(parameter.grad.to_local())
            parameter.grad = None

    def _clip(self, limit: float) -> None:
        """Clip the gradient of the whole model at this norm, as torch.nn.utils.clip_grad_norm_ does."""
        squares = self._host.sum_(self._gradient.double().square().sum())
        self._gradient.mul_((limit / (squares.sqrt() + 1e-6)).clamp(max=1).float())

    @torch.no_grad()
    def _refresh(self) -> None:
        """Give the model the values of the flat vector."""
        for parameter, (_, own) in zip(self._parameters, self.layout.views(self.parameters)):
            parameter.to_local().copy_(own)


def _sharded(config: EngineConfig, model: nn.Module, host: Host, device: torch.device) -> nn.Module:
    """Shard the blocks that the configuration names, and the rest with the root; nothing stays gathered."""
    mesh = DeviceMesh.from_group(host.group, device.type, mesh_dim_names=("shard",))
    half = torch.bfloat16 if config.mixed_precision == "bf16" else None
    policy = MixedPrecisionPolicy(half, torch.float32 if half else None, torch.float32 if half else None)
    names = config.shard_blocks or getattr(model, "_no_split_modules", None) or ()
    blocks = [part for part in model.modules() if type(part).__name__ in names and part is not model]
    if config.shard_blocks and not blocks:
        kinds = ", ".join(sorted({type(part).__name__ for part in model.modules()}))
        raise ValueError(
            f"engine.shard_blocks: the model has no layer of these classes, got {', '.join(config.shard_blocks)}; "
            f"choose from {kinds}"
        )
    for part in (*blocks, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    return model


def _rows_of(parameters: Sequence[Any]) -> list[Held]:
    return [(parameter.to_local().detach(), parameter.dim()) for parameter in parameters]

"""Train a client's model on the ranks of one host, each of which holds a shard of it (DeepSpeed's ZeRO 1 to 3).

The flat vectors that the round reads and writes are those of this rank's slices, as ZeRO has cut them. All ranks of a
host call every method together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flare_dist.comm.host import Host
from flare_dist.cuts import ModelShard
from flare_dist.engines.deepspeed_engine import EngineBuffers, has_left_out, start_engine
from flare_dist.engines.deepspeed_groups import HostGroups
from flare_dist.engines.deepspeed_slices import SLICES, Slices, check_within, forget_state, held_of
from flare_dist.engines.flow import make_positive, positive
from flare_dist.engines.host_step import end_alike, loss_of_host
from flare_dist.fixed import base_digest
from flare_dist.layout import ParameterLayout, dtypes_of, parameter_layout
from flare_dist.tasks.task import Batch, Count, Task


class ZeroModel:
    """Step a model of which this rank holds a shard; `parameters` are its slices, float32 [total of this rank].

    They are copies of the engine's master weights, brought up to date by `collect`.
    """

    is_rounded = False

    def __init__(
        self,
        settings: dict[str, Any],
        model: nn.Module,
        device: torch.device,
        make_optimizer: Callable[[list[Any]], Optimizer],
        task: Task,
        host: Host,
    ) -> None:
        self._task = task
        self._host = host
        self.base = base_digest(model)
        self.dtypes = dtypes_of(model)
        whole = parameter_layout(model)
        self.module = model.to(device)
        named = dict(model.named_parameters())
        parameters = [named[entry.name] for entry in whole.entries]
        self._buffers = EngineBuffers(model, device)
        self.buffer_layout = self._buffers.layout
        self.buffers = self._buffers.vector
        self._engine = start_engine(settings, model, make_optimizer(parameters), HostGroups(host), device)
        check_within(host, self._engine)
        self.optimizer: Optimizer = self._engine.basic_optimizer
        stage = self._engine.zero_optimization_stage()
        self._slices: Slices = SLICES[stage](self._engine.optimizer, parameters)
        self._frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        self.shard = ModelShard(host.shard, host.shards, whole, self._slices.cuts)
        names = [entry.name for entry in whole.entries]
        self.layout = ParameterLayout.of(zip(names, self._slices.weights))
        self.parameters = torch.cat(self._slices.weights)
        self._gradient = torch.zeros_like(self.parameters)
        self._has_left_out = False

    def load(self, parameters: Tensor, buffers: Tensor) -> None:
        """Give the model these values, and the buffers that no vector holds their initial ones."""
        self.parameters.copy_(parameters)
        self._has_left_out = False
        for own, (_, value) in zip(self._slices.weights, self.layout.views(self.parameters)):
            own.copy_(value)
        self._slices.refresh()
        self._buffers.load(buffers)

    def collect(self) -> None:
        """Read the master weights, and take the mean of the buffers over the ranks of the host.

        All parameters become NaN if one of them is not finite, or if a step was left out because the gradient was not.
        """
        self._read()
        self._buffers.collect()
        end_alike(self._host, self.parameters, self.buffers, is_usable=not self._has_left_out)

    def _read(self) -> None:
        """Copy the master weights to the flat vector."""
        torch.cat(self._slices.weights, out=self.parameters)

    def mask_(self, factor: Tensor) -> None:
        """Multiply the parameters by `factor`, in place: the master weights, and those that the model computes with."""
        for own, (_, share) in zip(self._slices.weights, self.layout.views(factor)):
            own.mul_(share)
        self._slices.refresh()

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """Return an empty state: it belongs to a client, and ends with its round."""
        return {"name": name, "state": {}}

    def load_optimizer_state(self, name: str, saved: dict[str, Any]) -> None:
        """Raise ValueError if there is a state to take over."""
        if saved["state"]:
            raise ValueError(f"clients.optimizer: hosts of DeepSpeed begin without a state, got one of {saved['name']}")

    def reset(self) -> None:
        """Forget the optimizer's state, so that no client depends on the one trained before it."""
        forget_state(self._engine)
        self._engine.optimizer.zero_grad()
        self._engine.micro_steps = 0

    def step(self, batch: Batch, penalty: Callable[[Tensor, Tensor], None] | None = None) -> tuple[Tensor, Count]:
        """Take one optimizer step on a batch, of which each rank computes a part.

        Returns the mean loss of the whole batch, and how many of its labels count. `penalty` adds to (gradient,
        parameters) of this rank's slices before the step.
        """
        loss = loss_of_host(self._task, self._engine, batch, self._host)
        self._backward(loss.own)
        if penalty is not None:
            self._penalise(penalty)
        self._engine.step()
        self._has_left_out |= has_left_out(self._engine)
        return loss.mean, loss.examples

    def gradient_of(self, batch: Batch) -> tuple[Tensor, Count]:
        """Return the gradient of a whole batch's mean loss by this rank's slices, and how many labels count in it."""
        loss = loss_of_host(self._task, self._engine, batch, self._host)
        self._backward(loss.own)
        return self._taken_gradient(), loss.examples

    def flow_of(self, inputs: Tensor, scale: float) -> Tensor:
        """Return the gradient of `scale` times the sum of the outputs under |W| and no biases, by own slices."""
        dims = [len(entry.shape) for entry in self.shard.whole.entries]
        with positive([held_of(parameter) for parameter in self._frozen]):
            make_positive(list(zip(self._slices.weights, dims)))
            self._slices.refresh()
            self._backward(self._engine(inputs).sum() * scale)
            found = self._taken_gradient()
        self.load(self.parameters, self.buffers.clone())
        return found

    def _backward(self, loss: Tensor) -> None:
        """Leave the gradient of a loss in the engine."""
        self._slices.clear_gradients()
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.backward(loss, scale_wrt_gas=False)

    def _taken_gradient(self) -> Tensor:
        """Return the gradient that no step will take, and clear it from the engine."""
        self._read_gradient()
        self.reset()
        return self._gradient

    def _read_gradient(self) -> None:
        """Copy the gradients to the flat one."""
        torch.cat([own.float() for own in self._slices.gradients()], out=self._gradient)

    def _penalise(self, penalty: Callable[[Tensor, Tensor], None]) -> None:
        """Let `penalty` add to the gradients that the next step takes."""
        self._read()
        self._read_gradient()
        penalty(self._gradient, self.parameters)
        for number, (_, value) in enumerate(self.layout.views(self._gradient)):
            self._slices.set_gradient(number, value)

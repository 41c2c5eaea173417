"""One client's round: local training from the global parameters to a model delta.

A rank has one `LocalTrainer` and lends it to the clients it hosts, one after another. Model, gradient and optimizer
live in flat vectors that are allocated once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from flare_dist.clients.config import ClientsConfig
from flare_dist.clients.objectives import OBJECTIVES
from flare_dist.clients.optimizers import OPTIMIZERS
from flare_dist.data.batches import BatchSource
from flare_dist.layout import bind_buffers, bind_parameters, buffer_layout, parameter_layout
from flare_dist.schedules import parse_schedule
from flare_dist.seeding import derive_seed, generator


class Engine(Protocol):
    """Placement and mixed precision, injected by the run."""

    def place(self, model: nn.Module) -> nn.Module:
        """Once: the model on the training device; its parameters stay the same objects."""

    def prepare(self, optimizer: Optimizer) -> None:
        """Once: the optimizer that `step` steps."""

    def reset(self) -> None:
        """Before each client: forget what earlier clients left in the engine."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, possibly scaled, to those of the parameters."""

    def unscale(self) -> None:
        """Take the scale out of the gradients; at most once a step."""

    def step(self) -> None:
        """Step the optimizer on the gradients."""


@dataclass(frozen=True)
class LocalResult:
    """What a client brings back. The two vectors are the trainer's own and change with the next client."""

    client: int
    train_loss: float  # mean over the examples seen
    model_delta: Tensor  # float32 [total]: local - global
    buffers: Tensor  # float32 [b]: the model's floating-point buffers after training

    @property
    def is_finite(self) -> bool:
        """False where the loss, the delta or a buffer is NaN or infinite; one pass each, without a temporary."""
        vectors = [v for v in (self.model_delta, self.buffers) if v.numel()]
        extremes = torch.stack([extreme for v in vectors for extreme in (v.amax(), v.amin())])
        return math.isfinite(self.train_loss) and bool(extremes.isfinite().all())


class LocalTrainer:
    """The model of this rank, bound to flat vectors, and the local training loop.

    `parameters` and `buffers` are the model's current values as vectors: write to them and the model has changed.
    """

    def __init__(
        self, engine: Engine, model: nn.Module, source: BatchSource, config: ClientsConfig, rounds: int, seed: int
    ) -> None:
        self.engine = engine
        self.source = source
        self.config = config
        self.rounds = rounds
        self.seed = seed
        self.model = engine.place(model)
        self.layout = parameter_layout(model)
        self.buffer_layout = buffer_layout(model)
        self.parameters, self.gradient = bind_parameters(model, self.layout)
        self.buffers = bind_buffers(model, self.buffer_layout)
        # BatchNorm counts its batches; from the start for every client, so that bits do not depend on who came before.
        self.counters = [(b, b.clone()) for b in model.buffers() if not b.is_floating_point()]
        self.model_delta = torch.empty_like(self.parameters)
        self.schedule = parse_schedule(config.lr_schedule, "clients.lr_schedule")
        self.objective = OBJECTIVES[config.objective]
        flat = nn.Parameter(self.parameters)
        flat.grad = self.gradient
        self.optimizer = OPTIMIZERS[config.optimizer](flat, config.lr, config.momentum, config.weight_decay)
        engine.prepare(self.optimizer)

    def load(self, parameters: Tensor, buffers: Tensor) -> None:
        """Give the model these values, and its integer buffers their initial ones."""
        self.parameters.copy_(parameters)
        self.buffers.copy_(buffers)
        for counter, initial in self.counters:
            counter.copy_(initial)

    def train(
        self,
        client: int,
        round_: int,
        examples: Tensor,
        global_parameters: Tensor,
        global_buffers: Tensor,
        state: dict[str, Tensor],
    ) -> LocalResult:
        """Train on `examples` (int64 indices) from the global model; `state` is the client's memory, read only."""
        self.load(global_parameters, global_buffers)
        self.optimizer.state.clear()
        self.engine.reset()
        train_loss = self.run_steps(client, round_, examples, global_parameters, state)
        torch.sub(self.parameters, global_parameters, out=self.model_delta)
        return LocalResult(client, train_loss, self.model_delta, self.buffers)

    def run_steps(
        self, client: int, round_: int, examples: Tensor, global_parameters: Tensor, state: dict[str, Tensor]
    ) -> float:
        """The local steps of one round from wherever the model stands; returns the mean training loss."""
        torch.manual_seed(derive_seed(self.seed, "dropout", round_, client))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self.schedule(round_, self.rounds)
        penalty = self.objective(self.config, global_parameters, state, round_)
        self.model.train()
        loss_sum, seen = torch.zeros((), device=self.parameters.device), 0
        for step, (inputs, labels) in enumerate(self._batches(client, round_, examples)):
            self.gradient.zero_()
            loss = F.cross_entropy(self.model(inputs), labels)
            self.engine.backward(loss)
            if penalty is not None:
                self.engine.unscale()
                penalty(self.gradient, self.parameters, step)
            self.engine.step()
            loss_sum.add_(loss.detach(), alpha=len(labels))
            seen += len(labels)
        return loss_sum.item() / seen

    def _batches(self, client: int, round_: int, examples: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """`local_epochs` passes, or passes until `local_steps` batches were drawn, each freshly shuffled."""
        shuffle = generator(self.seed, "shuffle", round_, client)
        remaining = self.config.local_steps
        epochs = self.config.local_epochs if remaining is None else math.inf
        epoch = 0
        while epoch < epochs:
            for batch in self.source.batches(examples, self.config.batch_size, shuffle):
                yield batch
                if remaining is not None:
                    remaining -= 1
                    if not remaining:
                        return
            epoch += 1

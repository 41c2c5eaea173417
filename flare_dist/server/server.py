"""The parameter server: draws the cohort and steps the global parameters.

Rank 0's server is the one that counts. Where its step is stateless the other ranks, which hold the same mean delta,
take it themselves and nothing needs to be sent back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flare_dist.schedules import parse_schedule
from flare_dist.seeding import generator
from flare_dist.server.config import ServerConfig
from flare_dist.server.optimizers import OPTIMIZERS, load_optimizer_state, optimizer_state


def sample_cohort(seed: int, round_: int, num: int, per_round: int) -> list[int]:
    """`per_round` of `num` clients, drawn without replacement for this round, ascending."""
    return sorted(torch.randperm(num, generator=generator(seed, "cohort", round_))[:per_round].tolist())


class Server:
    """Global parameters (a flat float32 vector) and the optimizer that steps them."""

    def __init__(self, parameters: Tensor, buffers: Tensor, config: ServerConfig, rounds: int) -> None:
        self.parameters = nn.Parameter(parameters.clone())
        self.buffers = buffers.clone()
        self.config = config
        self.rounds = rounds
        self.schedule = parse_schedule(config.lr_schedule, "server.lr_schedule")
        self.optimizer = OPTIMIZERS[config.optimizer](self.parameters, config.lr, config.momentum)

    @property
    def is_stateless(self) -> bool:
        """True where the step depends on the mean delta alone, so that every rank may take it by itself."""
        return self.config.optimizer == "sgd" and not self.config.momentum

    def step(self, round_: int, mean_delta: Tensor) -> None:
        """One optimizer step on the pseudo-gradient, minus the mean delta (which is negated in place)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self.schedule(round_, self.rounds)
        self.parameters.grad = mean_delta.neg_()
        self.optimizer.step()
        self.parameters.grad = None

    def state_dict(self) -> dict[str, Any]:
        """References, not copies: what a checkpoint saves."""
        optimizer = optimizer_state(self.optimizer, self.config.optimizer)
        return {"parameters": self.parameters.data, "buffers": self.buffers, "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy parameters, buffers and the optimizer's state; its settings stay those of the configuration.

        Raises ValueError where the state is another optimizer's.
        """
        load_optimizer_state(self.optimizer, self.config.optimizer, state["optimizer"], "server.optimizer")
        self.parameters.data.copy_(state["parameters"])
        self.buffers.copy_(state["buffers"])

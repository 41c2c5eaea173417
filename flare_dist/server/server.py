"""The parameter server: draws the cohort and steps the global parameters.

Rank 0's server is the one that counts. If its step is stateless, the other ranks, which hold the same mean delta,
take it themselves and nothing needs to be sent back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flare_dist.algorithms.algorithm import FEDAVG, Algorithm
from flare_dist.compression.payload import Dense, Payload
from flare_dist.devices import roomy
from flare_dist.layout import ParameterLayout
from flare_dist.schedules import parse_schedule, set_lr
from flare_dist.seeding import generator
from flare_dist.server.aggregation import DeltaSum, SparseSum, mean
from flare_dist.server.config import ServerConfig
from flare_dist.server.optimizers import find_optimizer, load_optimizer_state, optimizer_state


def sample_cohort(seed: int, round_: int, num: int, per_round: int) -> list[int]:
    """Draw `per_round` of `num` clients for this round, without replacement, ascending."""
    return sorted(torch.randperm(num, generator=generator(seed, "cohort", round_))[:per_round].tolist())


class Server:
    """Global parameters (a flat float32 vector) and the optimizer that steps them.

    `memory` holds the vectors that `algorithm` needs by name, and `told` those of them that every rank holds.
    `is_plain` tells that a step adds the mean delta, times the learning rate, and does nothing else: it depends on the
    round's payloads alone, so every rank may take it by itself.
    """

    def __init__(
        self,
        parameters: Tensor,
        buffers: Tensor,
        config: ServerConfig,
        rounds: int,
        algorithm: Algorithm = FEDAVG,
        layout: ParameterLayout | None = None,
    ) -> None:
        self.parameters = nn.Parameter(parameters.clone())
        self.buffers = buffers.clone()
        self.config = config
        self.rounds = rounds
        self.schedule = parse_schedule(config.lr_schedule, "server.lr_schedule", config.lr_schedule_options)
        self.estimate = algorithm.estimate
        self.estimates: dict[int, Tensor] = {}  # by client
        self.memory = {name: torch.zeros_like(parameters) for name in algorithm.server}
        self.told = {name: self.memory[name] for name in algorithm.told}
        kind = find_optimizer(config.optimizer, config.optimizer_options)
        # What the optimizer steps: one flat vector, or each parameter by its name, a view of it.
        self._layout = layout if layout and kind.by_name else ParameterLayout.of([("parameters", parameters)])
        self._stepped = {"parameters": self.parameters}
        if kind.by_name:
            self._stepped = {name: nn.Parameter(view) for name, view in self._layout.views(self.parameters.data)}
        self.optimizer = kind.make(list(self._stepped.items()) if kind.by_name else self.parameters, config.settings)
        self.is_plain = not (config.has_memory or self.estimate or algorithm.remembers_alone)

    def new_sum(self, most_kept: int) -> DeltaSum:
        """Open the sum of a round's payloads, of at most `most_kept` entries in all.

        It is a vector, unless the entries take less memory and the step is plain.
        """
        if self.is_plain and 3 * most_kept <= self.parameters.numel():  # an entry is an int64 and a float32
            return SparseSum()
        return torch.zeros_like(self.parameters.data)

    def receive(self, total: DeltaSum, client: int, payload: Payload, weight: float) -> None:
        """Add what one client sent, times its weight, to `total` in place; call in client order, for the bits' sake."""
        if self.estimate and not isinstance(payload, Dense):
            if client not in self.estimates:
                self.estimates[client] = torch.zeros_like(self.parameters.data, device=self._home())
            own = self.estimates[client]
            changed = self.estimate(own, payload.indices.to(own.device), payload.values.to(own.device))
            payload = Dense(changed.to(self.parameters.device))
        mean(total, payload, weight)

    def step(self, round_: int, mean_delta: DeltaSum) -> None:
        """Take one optimizer step on the pseudo-gradient, minus the mean delta (changed in place)."""
        lr = self.config.lr * self.schedule(round_, self.rounds)
        if isinstance(mean_delta, SparseSum):
            assert self.is_plain, "only a plain step can be taken entry by entry"
            mean_delta.add_to_(self.parameters.data, lr)
            return
        set_lr(self.optimizer, lr)
        stepped = self._stepped.values()
        gradients = mean_delta.neg_().split([parameter.numel() for parameter in stepped])
        for parameter, gradient in zip(stepped, gradients):
            parameter.grad = gradient.view_as(parameter)
        self.optimizer.step()
        for parameter in self._stepped.values():
            parameter.grad = None

    def forget_outside(self, mask: Tensor) -> int:
        """Reset the optimizer's state outside `mask`, bool [total]; returns how many entries had moved there."""
        forgotten = 0
        initial = getattr(self.optimizer, "initial", {})
        for parameter, (_, own) in zip(self._stepped.values(), self._layout.views(mask)):
            for name, vector in self.optimizer.state.get(parameter, {}).items():
                if isinstance(vector, Tensor) and vector.shape == own.shape:
                    moved = (vector != initial.get(name, 0.0)).logical_and_(~own)
                    forgotten += int(moved.count_nonzero())
                    vector.masked_fill_(~own, initial.get(name, 0.0))
        return forgotten

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint saves; references, not copies."""
        optimizer = optimizer_state(self.optimizer, self.config.optimizer)
        return {
            "parameters": self.parameters.data,
            "buffers": self.buffers,
            "optimizer": optimizer,
            "estimates": self.estimates,
            "algorithm": self.memory,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy parameters, buffers, memory and the optimizer's state; its settings stay those of the configuration.

        Raises ValueError if the state is another optimizer's.
        """
        if state["buffers"].shape != self.buffers.shape:
            raise ValueError(
                f"checkpoint.resume: the run holds {len(state['buffers'])} entries of buffers, and training changes "
                f"{len(self.buffers)} of what model.name builds; an older version began it: start over with never"
            )
        load_optimizer_state(self.optimizer, self.config.optimizer, state["optimizer"], "server.optimizer")
        self.parameters.data.copy_(state["parameters"])
        self.buffers.copy_(state["buffers"])
        if self.estimate:
            saved = state.get("estimates", {})
            self.estimates = {client: estimate.to(self._home(), copy=True) for client, estimate in saved.items()}
        saved = state.get("algorithm", state)  # older checkpoints have these vectors beside the rest
        for name, vector in self.memory.items():
            if saved.get(name) is not None:
                vector.copy_(saved[name])

    def _home(self) -> torch.device:
        """Choose where the estimate of one more client is kept: on the GPU as long as there is room."""
        return roomy(self.parameters.device, self.parameters.nbytes)

"""How the server turns the clients' mean model delta into new global parameters."""

from __future__ import annotations

from dataclasses import dataclass

from flare_dist.schedules import parse_schedule
from flare_dist.server.aggregation import AGGREGATORS
from flare_dist.server.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class ServerConfig:
    """How the server turns the clients' mean model delta into new global parameters.

    Args:
        optimizer: sgd, adam, adamw, adagrad or rmsprop of torch.optim, on the pseudo-gradient (minus the mean delta);
            sgd with lr 1 is FedAvg, sgd with momentum is FedAvgM.
        lr: server learning rate.
        momentum: momentum of sgd and rmsprop.
        lr_schedule: factor on lr over the rounds: constant, linear, cosine, exponential:FINAL or step:FACTOR@ROUND,...
        aggregator: how the clients' deltas become one: mean, weighted by clients.weighting.
    """

    optimizer: str = "sgd"
    lr: float = 1.0
    momentum: float = 0.0
    lr_schedule: str = "constant"
    aggregator: str = "mean"

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"server.optimizer: unknown optimizer {self.optimizer!r} (choose from {', '.join(OPTIMIZERS)})"
            )
        if not 0 < self.lr < 1e38:  # the range of float32
            raise ValueError(f"server.lr: must be positive and below 1e38, got {self.lr}")
        if not 0 <= self.momentum < 1e38:
            raise ValueError(f"server.momentum: must be finite and not negative, got {self.momentum}")
        if self.momentum and self.optimizer not in ("sgd", "rmsprop"):
            raise ValueError(f"server.momentum: {self.optimizer} has none (only sgd and rmsprop do)")
        if self.aggregator not in AGGREGATORS:
            raise ValueError(
                f"server.aggregator: unknown aggregator {self.aggregator!r} (choose from {', '.join(AGGREGATORS)})"
            )
        parse_schedule(self.lr_schedule, "server.lr_schedule")

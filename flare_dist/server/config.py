"""How the server turns the clients' mean model delta into new global parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

from flare_dist.algorithms.methods import aggregator_of
from flare_dist.compatibility import EXCLUSIONS
from flare_dist.errors import check_range
from flare_dist.exclusion import refuse
from flare_dist.named import Options
from flare_dist.schedules import parse_schedule
from flare_dist.server.optimizers import Kind, Settings, find_optimizer, sgd


@dataclass(frozen=True)
class ServerConfig:
    """How the server turns the clients' mean model delta into new global parameters.

    Args:
        optimizer: what steps on the pseudo-gradient (minus the mean delta): sgd (with lr 1 FedAvg), fedavgm,
            fedadagrad, fedadam or fedyogi (Reddi et al. 2021), adam, adamw, adagrad or rmsprop of torch.optim, or
            another of its optimizers as torch:NAME, e.g. torch:NAdam, or your own as package.module:callable, which is
            called with (named_parameters, lr, **options) and returns a torch.optim.Optimizer.
        optimizer_options: keyword arguments of your own optimizer, or of torch:NAME.
        lr: server learning rate.
        momentum: momentum of sgd and rmsprop (0 if not given) and of fedavgm (0.9).
        nesterov: whether sgd and fedavgm step by Nesterov's momentum, which looks one step ahead; as DiLoCo does with
            sgd, lr 0.7 and momentum 0.9.
        betas: decay of the first and the second moment of optimizers that have them; if not given, those of the
            optimizer: of fedadam and fedyogi 0.9 and 0.99, of fedadagrad 0 and none.
        tau: how adaptive fedadagrad, fedadam and fedyogi are, added to the root of the second moment, which begins with
            its square; smaller = more.
        lr_schedule: factor on lr over the rounds: constant, linear, cosine, exponential:FINAL[@ROUNDS] or
            step:FACTOR@ROUND,..., or your own as package.module:callable, called with (round, rounds, **options).
        lr_schedule_options: keyword arguments of your own schedule.
        aggregator: how the clients' deltas become one: mean, weighted by clients.weighting, or fednova (of deltas by
            the local step, times the mean number of these, so that clients with many steps do not weigh more), or your
            own as package.module:callable, which is called with (**options) and returns a flare_dist.Algorithm.
        aggregator_options: keyword arguments of your own aggregator.
    """

    optimizer: str = "sgd"
    optimizer_options: Options = field(default_factory=dict, hash=False)
    lr: float = 1.0
    momentum: float | None = None
    nesterov: bool = False
    betas: tuple[float, float] | None = None
    tau: float = 1e-3
    lr_schedule: str = "constant"
    lr_schedule_options: Options = field(default_factory=dict, hash=False)
    aggregator: str = "mean"
    aggregator_options: Options = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        find_optimizer(self.optimizer, self.optimizer_options)
        check_range("server.lr", self.lr, "(0, 1e38)")  # the range of float32
        check_range("server.momentum", self.momentum, "[0, 1e38)")
        for beta in self.betas or ():
            check_range("server.betas", beta, "[0, 1)")
        check_range("server.tau", self.tau, "(0, 1e19)")  # its square is in the range of float32
        aggregator_of(self.aggregator, self.aggregator_options)
        parse_schedule(self.lr_schedule, "server.lr_schedule", self.lr_schedule_options)
        refuse(EXCLUSIONS, server=self)

    @property
    def settings(self) -> Settings:
        """Return the optimizer's settings, with its own defaults for what was not given."""
        given = Settings(self.lr, self.momentum, self.betas, self.tau, self.nesterov)
        return self.kind.with_defaults(given)

    @property
    def kind(self) -> Kind:
        return find_optimizer(self.optimizer, self.optimizer_options)

    @property
    def takes_momentum(self) -> bool:
        return self.kind.momentum is not None

    @property
    def takes_nesterov(self) -> bool:
        return self.kind.make is sgd

    @property
    def takes_betas(self) -> bool:
        return self.kind.betas is not None

    @property
    def has_memory(self) -> bool:
        """Tell whether a step depends on earlier ones."""
        return self.optimizer not in ("sgd", "fedavgm") or bool(self.settings.momentum)

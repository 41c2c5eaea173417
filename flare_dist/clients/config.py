"""Choose who takes part and how clients train."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flare_dist.algorithms.feddc import FedDCConfig
from flare_dist.algorithms.feddyn import FedDynConfig
from flare_dist.algorithms.fedprox import FedProxConfig
from flare_dist.algorithms.flare import FlareConfig
from flare_dist.algorithms.methods import algorithm_of, objective_of
from flare_dist.clients.muon import MuonConfig
from flare_dist.clients.optimizers import find_optimizer
from flare_dist.compatibility import EXCLUSIONS
from flare_dist.data.batches import batch_sizes, count_batches
from flare_dist.errors import check_choice, check_least, check_range
from flare_dist.exclusion import refuse
from flare_dist.named import Options
from flare_dist.schedules import parse_schedule

AUTO = "auto"
TOGETHER = (AUTO, "always", "never")


@dataclass(frozen=True)
class ClientsConfig:
    """Choose who takes part and how clients train.

    Args:
        num: clients of the federation, hosted by any number of ranks; auto = as many as the training examples have
            natural groups, so that with data.partition=natural client i is the i-th group by name. The run's
            configuration has what auto came to.
        per_round: clients drawn afresh for each round (null = all of them).
        local_epochs: passes over a client's examples in each round.
        local_steps: mini-batch steps in each round, instead of local_epochs (null = by epochs).
        batch_size: examples in a mini-batch.
        smallest_batch: fewest examples that a step, or a piece of one, is taken on: fewer at the end of a pass go with
            the batch before them (null = 1, or 2 if the model cannot be trained on one, as with BatchNorm on maps of
            1x1).
        optimizer: sgd, adam, adamw, muon (for matrices, with AdamW for the rest), or your own as
            package.module:callable, which is called with (named_parameters, lr, **options) and returns a
            torch.optim.Optimizer; in mode federated its state starts fresh in every round, but for keep_optimizer.
        optimizer_options: keyword arguments of your own optimizer.
        keep_optimizer: whether each client goes on with what its optimizer remembered at the end of the last round that
            it took part in, as replicas of DiLoCo do; it stays with the client as a residual does.
        muon: settings of the muon optimizer.
        lr: learning rate of the local optimizer.
        lr_schedule: factor on lr over the rounds: constant, linear, cosine, exponential:FINAL[@ROUNDS] or
            step:FACTOR@ROUND,..., or your own as package.module:callable, called with (round, rounds, **options).
        lr_schedule_options: keyword arguments of your own schedule.
        momentum: momentum of sgd.
        weight_decay: weight decay of the local optimizer.
        gradient_clipping: largest norm of the gradient that the optimizer is given, penalty included; longer ones are
            scaled down to it (null = no clipping).
        weighting: how the server weights clients: num_examples or uniform.
        step_ahead: how much of its residual a client is moved ahead before it trains, in [0, 1]; its delta is
            measured from there (SAEF: 0 = plain error feedback).
        together: whether the clients of a rank are trained as one batch: auto (if the model is small, on a GPU, and the
            other settings allow it), always (an error if they do not) or never (one after another). The result is the
            same to rounding; the run's configuration has what auto came to.
        state_dir: directory, of this run alone, in which what clients remember is kept in memory-mapped files instead
            of in memory, for more than fits into it (null = in memory).
        objective: what is added to the clients' loss: none, fedprox, feddyn, scaffold, feddc or flare, or your own
            as package.module:callable, which is called with (**options) and returns a flare_dist.Algorithm.
        objective_options: keyword arguments of your own objective.
        fedprox: settings of the fedprox objective.
        feddyn: settings of the feddyn objective.
        feddc: settings of the feddc objective.
        flare: settings of the flare objective.
    """

    num: int | str = 8  # or AUTO
    per_round: int | None = None
    local_epochs: int = 1
    local_steps: int | None = None
    batch_size: int = 32
    smallest_batch: int | None = None
    optimizer: str = "sgd"
    optimizer_options: Options = field(default_factory=dict, hash=False)
    keep_optimizer: bool = False
    muon: MuonConfig = field(default_factory=MuonConfig)
    lr: float = 0.1
    lr_schedule: str = "constant"
    lr_schedule_options: Options = field(default_factory=dict, hash=False)
    momentum: float = 0.0
    weight_decay: float = 0.0
    gradient_clipping: float | None = None
    weighting: str = "num_examples"
    step_ahead: float = 0.0
    together: str = "auto"
    state_dir: str | None = None
    objective: str = "none"
    objective_options: Options = field(default_factory=dict, hash=False)
    fedprox: FedProxConfig = field(default_factory=FedProxConfig)
    feddyn: FedDynConfig = field(default_factory=FedDynConfig)
    feddc: FedDCConfig = field(default_factory=FedDCConfig)
    flare: FlareConfig = field(default_factory=FlareConfig)

    def __post_init__(self) -> None:
        if isinstance(self.num, str) and self.num != AUTO:
            raise ValueError(f"clients.num: must be a whole number or auto, got {self.num!r}; choose one")
        check_least("clients.num", None if self.num == AUTO else self.count, 1)
        for name in ("per_round", "local_epochs", "local_steps", "batch_size", "smallest_batch"):
            check_least(f"clients.{name}", getattr(self, name), 1)
        find_optimizer(self.optimizer, self.optimizer_options)
        check_range("clients.lr", self.lr, "(0, 1e38)")  # the range of float32
        check_range("clients.momentum", self.momentum, "[0, 1e38)")
        check_range("clients.weight_decay", self.weight_decay, "[0, 1e38)")
        check_range("clients.gradient_clipping", self.gradient_clipping, "(0, 1e38)")
        objective_of(self)
        check_choice("clients.together", self.together, TOGETHER)
        if self.state_dir == "":
            raise ValueError(
                "clients.state_dir: must name a directory, got an empty path; null keeps the states in memory"
            )
        check_range("clients.step_ahead", self.step_ahead, "[0, 1]")
        parse_schedule(self.lr_schedule, "clients.lr_schedule", self.lr_schedule_options)
        refuse(EXCLUSIONS, clients=self)

    def steps_with(self, num_examples: int) -> int:
        """Count the local steps of a round on so many examples."""
        if self.local_steps is not None:
            return self.local_steps
        return self.local_epochs * self.epoch_steps(num_examples)

    def epoch_steps(self, num_examples: int) -> int:
        """Count the local steps of a pass over so many examples."""
        return count_batches(num_examples, self.batch_size, self.smallest)

    def batch_sizes(self, num_examples: int) -> list[int]:
        """Compute the sizes of the mini-batches of a pass over so many examples."""
        return batch_sizes(num_examples, self.batch_size, self.smallest)

    def largest_batch(self, sizes: Iterable[int]) -> int:
        """Compute the size of the largest mini-batch of clients with so many examples each."""
        return max(batch for size in set(sizes) for batch in self.batch_sizes(size))

    @property
    def smallest(self) -> int:
        """Return the fewest examples that a step is taken on."""
        return self.smallest_batch or 1

    @property
    def memory_names(self) -> tuple[str, ...]:
        """Name the vectors that a client remembers for its objective."""
        return algorithm_of(self).memory

    @property
    def count(self) -> int:
        """Return the number of clients, once it is resolved."""
        assert not isinstance(self.num, str), "auto is resolved when the data are loaded"
        return self.num

    @property
    def cohort_size(self) -> int:
        return self.count if self.per_round is None else self.per_round

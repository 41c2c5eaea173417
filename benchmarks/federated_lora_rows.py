"""The file of the federated LoRA study, a row for each run that is done, and the runs that each way still needs.

The server's learning rate is tuned for each way on the first seed, by the accuracy on the validation examples: the
rate of its configuration and twice that are tried, and then half and twice the best, until the best has worse ones on
both sides. The other seeds train at the best rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

SEEDS = (0, 1, 2)
MOST_RATES = 10  # of one way, should it improve for ever
USUAL_RATES = 4  # that a way needs


@dataclass(frozen=True)
class Setting:
    """What is trained, at any learning rate."""

    way: str
    more: str  # names of the configurations that are laid over it
    data: str  # numbers of examples, and a digest of them: of other data is another study


@dataclass(frozen=True)
class Run:
    """One training run of a setting."""

    setting: Setting
    lr: float
    seed: int


@dataclass(frozen=True)
class Row:
    """A run and what it gave, after the last round."""

    run: Run
    validation_accuracy: float  # 0 if it diverged
    test_accuracy: float
    test_balanced_accuracy: float
    test_loss: float
    rounds: int
    parameters: int  # that are trained, and travel
    uplink_bytes: int  # of all clients in all rounds
    seconds: float
    cpu_seconds: float
    torch: str


MEASURED = tuple(each.name for each in fields(Row)[1:])


@dataclass(frozen=True)
class Plan:
    """A setting and the learning rate that is tried first."""

    setting: Setting
    lr: float

    def missing(self, rows: Sequence[Row]) -> list[Run]:
        """List the runs that can be started now; none if all are done."""
        tried = self.tried(rows)
        wanted = [self.lr, self.lr * 2]
        if all(rate in tried for rate in wanted):
            wanted = list(beside_best(tried))
        untried = [rate for rate in wanted if rate not in tried]
        if untried and len(tried) < MOST_RATES:
            return [Run(self.setting, rate, SEEDS[0]) for rate in untried]
        done = {row.run for row in rows}
        return [run for run in (Run(self.setting, best(tried), seed) for seed in SEEDS) if run not in done]

    def tried(self, rows: Sequence[Row]) -> dict[float, float]:
        """Collect the validation accuracy of each rate on the first seed."""
        return tuning([row for row in rows if row.run.setting == self.setting])

    def left(self, rows: Sequence[Row]) -> int:
        """Estimate how many runs are left."""
        now = self.missing(rows)
        if not now or now[0].seed != SEEDS[0]:
            return len(now)
        return max(len(now), USUAL_RATES - len(self.tried(rows))) + len(SEEDS) - 1


def tuning(rows: Sequence[Row]) -> dict[float, float]:
    """Collect the validation accuracy of each rate on the first seed, of the runs of one setting."""
    return {row.run.lr: row.validation_accuracy for row in rows if row.run.seed == SEEDS[0]}


def best(tried: dict[float, float]) -> float:
    """Return the rate of the highest accuracy, the lowest of equals."""
    return max(sorted(tried), key=tried.__getitem__)


def beside_best(tried: dict[float, float]) -> tuple[float, float]:
    """Return half and twice the best rate, half and a quarter of the least if all have diverged."""
    if not any(tried.values()):
        return min(tried) / 2, min(tried) / 4
    return best(tried) / 2, best(tried) * 2

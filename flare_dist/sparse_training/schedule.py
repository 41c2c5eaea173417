"""When masks move, and how much of them: in which rounds, after which local steps, at which prune rate.

FLASH's rate falls within a round, linearly in the local steps; those of FedDST and PruneFL fall over the rounds, as
RigL's over its steps (Evci et al. 2020): alpha / 2 * (1 + cos(pi * t / T_end)).
"""

from __future__ import annotations

import math

from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.methods import METHODS


def update_steps(num_steps: int, steps_per_epoch: int) -> range:
    """Return the local steps after which the mask moves: each epoch's end but the last, or a single one's middle.

    >>> list(update_steps(12, 4)), list(update_steps(7, 7)), list(update_steps(1, 1))
    ([4, 8], [3], [])
    """
    if num_steps <= steps_per_epoch:
        return range(num_steps // 2, num_steps // 2 + 1) if num_steps > 1 else range(0)
    return range(steps_per_epoch, num_steps, steps_per_epoch)


def falling_rates(rate: float, num_steps: int, steps_per_epoch: int) -> dict[int, float]:
    """Return the local steps after which the mask moves, and their prune rates, which fall to 0 at the round's end."""
    return {step: rate * (1 - step / num_steps) for step in update_steps(num_steps, steps_per_epoch)}


class MaskSchedule:
    """When the masks of a run of so many rounds move; rounds count from 1."""

    def __init__(self, config: SparseTrainingConfig, rounds: int) -> None:
        self.config = config
        self.method = METHODS[config.method]
        self.end = config.r_end or rounds + 1  # the round in which a rate that falls over the rounds is 0

    def clients_move_in(self, round_: int) -> bool:
        """Tell whether clients move their masks while they train."""
        return self.method.clients_move and self._is_due(round_)

    def server_moves_in(self, round_: int) -> bool:
        """Tell whether the server makes a new consensus of the clients' updates."""
        return self.method.server_moves and self._is_due(round_)

    def measures_in(self, round_: int) -> bool:
        """Tell whether clients send the squares of their gradients."""
        return self.method.is_measured and self._is_due(round_)

    def _is_due(self, round_: int) -> bool:
        if round_ < 1 or (self.method.fades and round_ >= self.end):
            return False
        return (round_ - 1) % (self.config.r_int if self.method.server_moves else 1) == 0

    def rate(self, round_: int) -> float:
        """Return the prune rate with which a round begins."""
        if not self.method.fades:
            return self.config.prune_rate
        progress = min(1.0, (round_ - 1) / max(self.end - 1, 1))
        return self.config.prune_rate / 2 * (1 + math.cos(math.pi * progress))

    def rates(self, round_: int, num_steps: int, steps_per_epoch: int) -> dict[int, float]:
        """Return the local steps of a round after which a client's mask moves, and the prune rate of each."""
        if not self.clients_move_in(round_):
            return {}
        if self.method.fades:
            return dict.fromkeys(update_steps(num_steps, num_steps), self.rate(round_))
        return falling_rates(self.rate(round_), num_steps, steps_per_epoch)

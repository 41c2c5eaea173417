"""When masks move, and how much of them: in which rounds, after which local steps, at which prune rate.

FLASH's rate falls within a round, linearly in the local steps; those of FedDST and PruneFL fall over the rounds, as
RigL's over its steps (Evci et al. 2020): alpha / 2 * (1 + cos(pi * t / T_end)).
"""

from __future__ import annotations

import math
from typing import NamedTuple

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


class Moves(NamedTuple):
    """The moves of the masks in one round."""

    clients: bool  # clients move theirs while they train
    server: bool  # the server makes a new consensus of their updates
    measured: bool  # clients send the squares of their gradients for that
    rate: float  # the prune rate with which the round begins
    falls: bool  # and it falls to 0 within the round, in which clients move more than once

    def rates(self, num_steps: int, steps_per_epoch: int) -> dict[int, float]:
        """Return the local steps after which a client's mask moves, and the prune rate of each."""
        if not self.clients:
            return {}
        if self.falls:
            return falling_rates(self.rate, num_steps, steps_per_epoch)
        return dict.fromkeys(update_steps(num_steps, num_steps), self.rate)


def moves_in(round_: int, config: SparseTrainingConfig, rounds: int) -> Moves:
    """Tell what moves the masks in a round, from 1, of a run of so many."""
    method = METHODS[config.method]
    end = config.r_end or rounds + 1  # the round in which a rate that falls over the rounds is 0
    is_over = method.fades and round_ >= end
    is_due = not is_over and (round_ - 1) % (config.r_int if method.server_moves else 1) == 0
    rate = config.prune_rate
    if method.fades:
        progress = min(1.0, (round_ - 1) / max(end - 1, 1))
        rate = rate / 2 * (1 + math.cos(math.pi * progress))
    return Moves(
        method.clients_move and is_due,
        method.server_moves and is_due,
        method.is_measured and is_due,
        rate,
        falls=not method.fades,
    )

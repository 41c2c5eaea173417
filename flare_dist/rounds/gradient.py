"""mode: gradient: data-parallel training whose gradients are exchanged sparsely, once for every step.

Each rank is a client of the exchange, which runs inside backward through the hook of hook/ddp.py; every rank takes
the same optimizer step. A round is `eval_every` steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from flare_dist.comm.world import World
from flare_dist.data.batches import Draw
from flare_dist.rounds.data_parallel import DataParallel
from flare_dist.rounds.diverged import DivergedError
from flare_dist.rounds.ledger import Stopwatch, gradient_report
from flare_dist.seeding import derive_seed, generator, seed_draws
from flare_dist.tasks.task import Count


def gradient_round(round_: int, run: DataParallel) -> dict[str, Any]:
    """Take `eval_every` steps on every rank; returns the round's row."""
    world = run.world
    model = run.model
    server = run.server
    before = run.hook.traffic
    watch = Stopwatch(world)
    model.load(server.parameters.data, server.buffers)
    run.trainer.set_lr(round_)
    model.module.train()
    with watch.phase("compute"):
        steps = _Steps(run)
        for _ in range(run.config.eval_every):
            steps.take()
        model.collect()
    watch.reassign("select", steps.select_seconds)
    watch.reassign("communicate", steps.late_seconds)
    train_loss = _share(round_, run, steps.loss_sum)
    moved = run.hook.traffic.since(before)
    return gradient_report(round_, train_loss, run, moved, steps.mean_buckets(), watch, steps.late_seconds)


class _Steps:
    """The steps of one round on this rank, and what they took."""

    def __init__(self, run: DataParallel) -> None:
        self.run = run
        self.loss_sum = torch.zeros(1, device=run.world.device)
        self.buckets: list[list[tuple[float, int]]] = []  # of each step: when each was sent, and its bytes
        self.select_seconds = 0.0
        self.late_seconds = 0.0  # for how long the steps waited for their last buckets
        self._batches = run.trainer.source.each(self._draws())

    def take(self) -> None:
        """Take the hook's next step."""
        run = self.run
        hook = run.hook
        rank = run.world.host_number
        start = time.perf_counter()
        seed_draws(derive_seed(run.config.seed, "dropout", hook.step, rank), run.world.device)
        loss, _ = run.model.step(next(self._batches))
        self.loss_sum.add_(loss)
        if run.world.device.type == "cpu":  # a GPU is behind this clock
            self.buckets.append([(clock - start, wire_bytes) for clock, wire_bytes in hook.clock.sent])
            self.select_seconds += hook.clock.select_seconds
            self.late_seconds += hook.clock.late_seconds

    def _draws(self) -> Iterator[Draw]:
        """Draw this rank's batch of each step of the round."""
        run = self.run
        rank = run.world.host_number
        for step in range(run.hook.step, run.hook.step + run.config.eval_every):
            yield run.epochs.indices(step, rank), generator(run.config.seed, "augment", step, rank)

    def mean_buckets(self) -> list[tuple[float, int]]:
        """Average when each bucket was sent; empty on a GPU. DDP has other buckets in its first step."""
        if not self.buckets:
            return []
        alike = [step for step in self.buckets if len(step) == len(self.buckets[-1])]
        return [(fmean(clock for clock, _ in bucket), bucket[-1][1]) for bucket in zip(*alike)]


def _share(round_: int, run: DataParallel, loss_sum: Tensor) -> float:
    """Take over the parameters, and average buffers and losses; returns the mean loss.

    Raises DivergedError on every rank if it is not finite.
    """
    world = run.world
    model = run.model
    server = run.server
    server.parameters.data.copy_(model.parameters)
    # The mean of the changes: that of a constant's values may be another number, by rounding.
    server.buffers.add_(world.all_reduce_(model.buffers - server.buffers).div_(world.hosts))
    train_loss = (world.all_reduce_(loss_sum) / (world.hosts * run.config.eval_every)).item()
    if not world.all_true(math.isfinite(train_loss)):
        raise DivergedError(f"round {round_}: the training loss is not finite; try a lower clients.lr")
    return train_loss


def rank_weight(world: World, count: Count) -> Tensor:
    """Weigh this rank in a mean over ranks by counts; all ranks call it together."""
    own = torch.as_tensor(count, device=world.device)
    return own * world.hosts / world.all_reduce_(own.clone()).clamp(min=1)

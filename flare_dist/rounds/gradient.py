"""mode: gradient: data-parallel training whose gradients are exchanged sparsely, once for every step.

Each rank is a client of the exchange, which runs inside backward through the hook of hook/ddp.py; every rank takes
the same optimizer step. A round is `eval_every` steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.rounds.ledger import Stopwatch, gradient_report
from flare_dist.rounds.parties import DivergedError, Parties
from flare_dist.seeding import derive_seed, generator, seed_draws
from flare_dist.tasks.task import Count


def gradient_round(round_: int, config: Config, parties: Parties) -> dict[str, Any]:
    """`eval_every` steps on every rank; returns the round's report."""
    world, model, server = parties.world, parties.trainer.model, parties.server
    parallel = parties.data_parallel
    assert parallel is not None
    hook, before = parallel.hook, parallel.hook.traffic
    watch = Stopwatch(world)
    model.load(server.parameters.data, server.buffers)
    for group in model.optimizer.param_groups:
        group["lr"] = parties.trainer.lr(round_)
    model.module.train()
    loss_sum = torch.zeros(1, device=world.device)
    buckets: list[list[tuple[float, int]]] = []
    selecting, late = 0.0, 0.0
    with watch.phase("compute"):
        for _ in range(config.eval_every):
            start = time.perf_counter()
            seed_draws(derive_seed(config.seed, "dropout", hook.step, world.rank), world.device)
            indices = parallel.epochs.indices(hook.step, world.rank)
            draws = generator(config.seed, "augment", hook.step, world.rank)
            for inputs, labels in parties.trainer.source.batches(indices, len(indices), draws):
                loss, _ = model.step(inputs, labels)
                loss_sum.add_(loss)
            if world.device.type == "cpu":  # a GPU is behind this clock
                buckets.append([(clock - start, wire_bytes) for clock, wire_bytes in hook.clock.sent])
                selecting += hook.clock.select_seconds
                late += hook.clock.late_seconds
        model.collect()
    watch.rebook("select", selecting)
    watch.rebook("communicate", late)
    server.parameters.data.copy_(model.parameters)
    # The mean of the changes: that of a constant's values may be another number, by rounding.
    server.buffers.add_(world.all_reduce_(model.buffers - server.buffers).div_(world.size))
    train_loss = (world.all_reduce_(loss_sum) / (world.size * config.eval_every)).item()
    if not world.all_true(math.isfinite(train_loss)):
        raise DivergedError(f"round {round_}: the training loss is not finite; try a lower clients.lr")
    buffer_bytes = 4 * server.buffers.numel() * world.size
    steps = (world.size, config.eval_every, server.parameters.numel())
    moved, mean = hook.traffic.since(before), _mean_step(buckets)
    seconds = watch.totals() | {"late_seconds": late}
    return gradient_report(round_, train_loss, steps, moved, mean, buffer_bytes, world.traffic, seconds)


def rank_weight(world: World, count: Count) -> Tensor:
    """The weight of this rank in a mean over ranks that weighs by counts; all ranks call it together."""
    own = torch.as_tensor(count, device=world.device)
    return own * world.size / world.all_reduce_(own.clone()).clamp(min=1)


def _mean_step(steps: list[list[tuple[float, int]]]) -> list[tuple[float, int]]:
    """The mean time after which each bucket was sent, and its bytes; DDP has other buckets in its first step."""
    if not steps:
        return []
    alike = [step for step in steps if len(step) == len(steps[-1])]
    return [(fmean(clock for clock, _ in bucket), bucket[-1][1]) for bucket in zip(*alike)]


def export_memory(parties: Parties) -> dict[str, Any]:
    """What this rank's file of a checkpoint holds: its error-feedback memory, as that of a client of its number."""
    assert parties.data_parallel is not None
    memory, layout = parties.data_parallel.hook.state_dict()["memory"], parties.trainer.model.layout
    flat = {kind: torch.zeros(layout.total, device=parties.world.device) for kind in parties.states.names}
    for kind, vector in flat.items():
        for name, view in layout.views(vector):
            if name in memory:
                view.copy_(memory[name][kind].view_as(view))
    return {"clients": {parties.world.rank: flat}}


def import_memory(parties: Parties, saved: Mapping[int, dict[str, Tensor]], step: int) -> None:
    """Take over the memory that a checkpoint held, and the number of steps; all ranks call it together.

    `saved` holds, by rank, what of it is homed here. On another number of ranks than saved it, each takes the mean,
    which is the update that is still to come.
    """
    assert parties.data_parallel is not None
    layout, world = parties.trainer.model.layout, parties.world
    flat = {kind: _own_or_mean(kind, saved, layout.total, world) for kind in parties.states.names}
    memory: dict[str, dict[str, Tensor]] = {}
    for kind, vector in flat.items():
        for name, view in layout.views(vector):
            memory.setdefault(name, {})[kind] = view
    parties.data_parallel.hook.load_state_dict({"step": step, "memory": memory})


def _own_or_mean(kind: str, saved: Mapping[int, dict[str, Tensor]], total: int, world: World) -> Tensor:
    """Zero where the checkpoint holds nothing of that kind: another rule may remember more."""
    count = int(world.all_reduce_(torch.tensor([len(saved)])).item())
    if world.all_true(count == world.size and list(saved) == [world.rank]):
        return saved[world.rank].get(kind, torch.zeros(total)).to(world.device)
    mean = torch.zeros(total, device=world.device)
    for of_rank in saved.values():
        if kind in of_rank:
            mean.add_(of_rank[kind].to(world.device))
    return world.all_reduce_(mean).div_(max(1, count))

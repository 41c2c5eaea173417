"""Ranks wait for each other for longer than a collective may take, and not at all for one that has died."""

from __future__ import annotations

import dataclasses
import os
import signal
import time

import pytest
import torch

from flare_dist.comm.group import open_world
from flare_dist.comm.launch import Launch
from flare_dist.comm.world import World
from flare_dist.rounds.build_run import set_up
from flare_dist.rounds.centralised import Centralised, centralised_round
from tests.helpers.ports import free_port
from tests.helpers.rounds import DENSE
from tests.ranks import rank_processes, results_of, run_ranks

LIMIT = 4.0  # of a collective, and without a step


def train_slowly(rank: int, store: str) -> None:
    """Train on rank 0, whose first round takes twice as long as a collective may."""
    with open_world(Launch(rank, 2, rank, 2), torch.device("cpu"), LIMIT, store, collective_seconds=LIMIT) as world:
        run = set_up(dataclasses.replace(DENSE, mode="centralised"), world)
        assert isinstance(run, Centralised)
        end = time.monotonic() + 2 * LIMIT

        def step() -> None:
            world.progress.advance()
            time.sleep(min(0.3, max(0.0, end - time.monotonic())))

        run.trainer.source.on_batch = step
        with world.progress.watched():
            for round_ in range(1, 5):
                centralised_round(round_, run)
                end = 0.0


def test_rank_0_may_train_longer_than_a_collective_may_take() -> None:
    store = f"tcp://127.0.0.1:{free_port()}"
    with rank_processes(2) as pool:
        results_of(pool, [pool.submit(train_slowly, rank, store) for rank in range(2)], 120.0)


def meet_often(world: World) -> list[float]:
    """Meet a hundred times, late on another rank each time."""
    sums = []
    for turn in range(100):
        if turn % 10 == world.rank:
            time.sleep(0.01)
        world.wait_for_all()
        sums.append(world.all_reduce_(torch.tensor([float(turn)])).item())
    return sums


def test_all_leave_a_meeting_after_the_last_has_come() -> None:
    assert run_ranks(meet_often, 3) == [[3.0 * turn for turn in range(100)]] * 3


def leave_times(world: World) -> tuple[float, float]:
    if world.rank == 1:
        time.sleep(0.5)
    came = time.monotonic()
    world.meet()
    return came, time.monotonic()


def test_nobody_leaves_before_the_last_has_come() -> None:
    times = run_ranks(leave_times, 3)  # monotonic clocks of one machine are one clock
    assert min(left for _, left in times) >= max(came for came, _ in times)


def meet_or_die(world: World) -> str:
    world.meet()
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        world.meet()
    except RuntimeError as error:
        return str(error)
    return ""


def test_a_rank_that_dies_is_not_waited_for() -> None:
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match=r"terminated abruptly|Connection"):
        run_ranks(meet_or_die, 2)
    assert time.monotonic() - begun < 20

"""The collectives on real ranks, and without a process group."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from flare_dist.comm.collectives import start_reduce
from flare_dist.comm.group import open_world
from flare_dist.comm.launch import Launch
from flare_dist.comm.world import World
from tests import ranks
from tests.ranks import rank_processes, results_of, run_ranks, single


def all_collectives(world: World) -> dict[str, Tensor | list[float] | bool]:
    own = torch.arange(3.0) + world.rank
    return {
        "gathered": world.all_gather(own),
        "sum": world.all_reduce_(own.clone()),
        "broadcast": world.broadcast_(own.clone()),
        "largest": world.largest([float(world.rank), -float(world.rank)]),
        "all": world.all_true(True),
        "some": world.all_true(world.rank != 1),
    }


def test_collectives() -> None:
    base = torch.arange(3.0)
    for result in run_ranks(all_collectives, 3):
        assert torch.equal(result["gathered"], torch.stack([base, base + 1, base + 2]))
        assert torch.equal(result["sum"], 3 * base + 3)
        assert torch.equal(result["broadcast"], base)
        assert result["largest"] == [2.0, 0.0]
        assert result["all"] is True
        assert result["some"] is False


def test_one_rank_needs_no_process_group() -> None:
    result = single(all_collectives)
    base = torch.arange(3.0)
    assert torch.equal(result["gathered"], base.unsqueeze(0))
    for name in ("sum", "broadcast"):
        assert torch.equal(result[name], base)


def traffic(world: World) -> int:
    world.all_gather(torch.zeros(10, dtype=torch.uint8))
    world.all_reduce_(torch.zeros(5))
    world.broadcast_(torch.zeros(7, dtype=torch.float64))
    world.largest([1.0])  # a control message
    return world.traffic.wire_bytes


def test_wire_bytes_follow_the_formulas() -> None:
    size = 3
    expected = size * (size - 1) * 10 + 2 * (size - 1) * 20 + (size - 1) * 56
    assert run_ranks(traffic, size) == [expected] * size


class FirstEntry:
    """A callback that holds the process group, and keeps whoever drops it waiting, as a busy machine does."""

    def __init__(self) -> None:
        self.group = dist.group.WORLD

    def __call__(self, done: torch.futures.Future[list[Tensor]]) -> float:
        return done.value()[0][0].item()

    def __del__(self) -> None:
        time.sleep(0.3)


def leave_a_callback_behind(rank: int, store: str) -> float:
    with open_world(Launch(rank, 2, rank, 2), torch.device("cpu"), 30.0, store):
        large = torch.ones(3_000_000)  # still on its way where the callback is added: gloo's thread runs and drops it
        total = float(start_reduce(large, None).get_future().then(FirstEntry()).wait())
    time.sleep(1.0)
    return total


def test_a_callback_that_outlives_the_group_does_not_abort_the_process(tmp_path: Path) -> None:
    store = (tmp_path / "store").as_uri()
    with rank_processes(2) as pool:
        futures = [pool.submit(leave_a_callback_behind, rank, store) for rank in range(2)]
        assert results_of(pool, futures, 60.0) == [2.0, 2.0]


def open_again_and_again(rank: int, store: str) -> list[float]:
    """Open one group after the other on the same store, as a script under torchrun that trains several runs does."""
    sums = []
    for turn in range(8):
        with open_world(Launch(rank, 2, rank, 2), torch.device("cpu"), 30.0, store) as world:
            sums.append(world.all_reduce_(torch.tensor([float(turn + rank)])).item())
        time.sleep(0.05 * rank * (turn % 2))
    return sums


def test_a_launcher_s_ranks_may_open_several_groups(tmp_path: Path) -> None:
    store = (tmp_path / "store").as_uri()
    with rank_processes(2) as pool:
        futures = [pool.submit(open_again_and_again, rank, store) for rank in range(2)]
        assert results_of(pool, futures, 60.0) == [[2.0 * turn + 1 for turn in range(8)]] * 2


def raise_on_one(world: World) -> None:
    if world.rank == 1:
        raise RuntimeError("rank 1 gave up")


def test_an_exception_on_a_rank_reaches_the_caller() -> None:
    with pytest.raises(RuntimeError, match="rank 1 gave up"):
        run_ranks(raise_on_one, 2)


def stay_behind() -> None:
    threading.Thread(target=time.sleep, args=(60,)).start()


def test_ranks_that_do_not_end_are_shown_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SECONDS_TO_END", 0.5)
    with pytest.warns(RuntimeWarning, match=r"stayed 0\.5 s(.|\n)*in _shutdown"), rank_processes(1) as pool:
        pool.submit(stay_behind).result(30)


def test_launch_reads_the_launchers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Launch.from_environment() == Launch(0, 1, 0, 1)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert Launch.from_environment() == Launch(3, 4, 1, 2, launched=True)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("LOCAL_SIZE", "2")  # as the deepspeed launcher has it
    assert Launch.from_environment().local_size == 2
    assert Launch(3, 4, 1, 2).device("cpu") == torch.device("cpu")

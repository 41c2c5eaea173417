"""A process group that a callback holds may end: gloo's thread, which lets the callback go, is not its last holder."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.distributed as dist

from flare_dist.comm.collectives import start_gather
from tests.ranks import rank_processes, results_of


class Callback:
    """Holds the process group as the hook does, and takes its time to go."""

    def __init__(self) -> None:
        self.slow = Slow()
        self.group = dist.group.WORLD

    def __call__(self, future: torch.futures.Future[list[torch.Tensor]]) -> list[torch.Tensor]:
        return future.value()


class Slow:
    def __del__(self) -> None:
        time.sleep(0.3)


def end_early(rank: int, store: str) -> str:
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    _, work = start_gather(torch.zeros(4), None)
    work.get_future().then(Callback()).wait()
    del work
    dist.destroy_process_group()
    time.sleep(0.5)  # in which gloo's thread would have aborted the process
    return "alive"


def test_a_callback_that_goes_late_does_not_abort_the_process(tmp_path: Path) -> None:
    with rank_processes(2) as pool:
        futures = [pool.submit(end_early, rank, (tmp_path / "store").as_uri()) for rank in range(2)]
        assert results_of(pool, futures, 30.0) == ["alive", "alive"]

"""The group of a run: its ranks learn who is where, and what a failed run leaves over stands in nobody's way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from flare_dist.comm import group
from flare_dist.comm.group import is_left_over, open_world, with_neighbours
from flare_dist.comm.launch import Launch
from flare_dist.comm.places import Place
from tests.ranks import rank_processes, results_of

CPU = torch.device("cpu")


def on_each(function: object, tmp_path: Path, size: int = 2) -> list[object]:
    """Call `function(rank, size, store)` in `size` processes that meet at the store."""
    store = (tmp_path / "store").as_uri()
    with rank_processes(size) as pool:
        return results_of(pool, [pool.submit(function, rank, size, store) for rank in range(size)], 60.0)  # type: ignore[arg-type]


def find_neighbours(rank: int, size: int, store: str) -> tuple[Launch, str]:
    launch = with_neighbours(Launch(rank, size, local_size=0), 30.0, store)
    with open_world(launch, CPU, 30.0, store) as world:
        return launch, world.backend


def test_ranks_that_are_not_told_find_their_neighbours_by_the_host(tmp_path: Path) -> None:
    assert on_each(find_neighbours, tmp_path) == [(Launch(rank, 2, rank, 2), "gloo") for rank in range(2)]


def open_on_mixed_devices(rank: int, size: int, store: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        own = Place("broken", "", "cpu") if rank else Place("big", "", "cuda", "GPU-0")
        patch.setattr(group.Place, "of", lambda device: own)
        try:
            with open_world(Launch(rank, size, rank, size), CPU, 30.0, store):
                return "opened"
        except ValueError as error:
            return f"{error} {dist.is_initialized()}"


def test_mixed_devices_are_refused_on_all_ranks_before_there_is_a_group(tmp_path: Path) -> None:
    for said in on_each(open_on_mixed_devices, tmp_path):
        assert "cuda on big (rank 0), cpu on broken (rank 1)" in str(said)
        assert str(said).endswith("False")


def fail_and_open_again(rank: int, size: int, store: str) -> tuple[bool, float]:
    """Diverge on all ranks, as a caller may catch it, and go on with another run."""
    launch = Launch(rank, size, rank, size)
    try:
        with open_world(launch, CPU, 30.0, store):
            raise LookupError("diverged")
    except LookupError:
        left_over = is_left_over()
    with open_world(launch, CPU, 30.0, store) as world:
        return left_over, world.all_reduce_(torch.ones(1)).item()


def test_the_next_run_destroys_what_a_failed_one_left_over(tmp_path: Path) -> None:
    assert on_each(fail_and_open_again, tmp_path) == [(True, 2.0)] * 2


def test_a_single_rank_destroys_its_group_at_once() -> None:
    with pytest.raises(LookupError), open_world(Launch(), CPU, 30.0, alone=True):
        raise LookupError
    assert not dist.is_initialized()


class OpenedError(Exception):
    """Raised in place of a group that cannot be opened here."""


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_nccl_is_told_which_gpu_is_this_rank_s(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    def init(chosen: str, device_id: object, **settings: object) -> None:
        told.extend([chosen, device_id])
        raise OpenedError

    gpu = torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(group.Place, "of", lambda device: Place("here", "", "cuda", "GPU-3"))
    monkeypatch.setattr(group, "agree_on_backend", lambda places: backend)
    monkeypatch.setattr(dist, "init_process_group", init)
    with pytest.raises(OpenedError), open_world(Launch(), gpu, 30.0, alone=True):
        pass
    assert told == [backend, gpu if backend == "nccl" else None]

"""An error of one rank is raised by all."""

from __future__ import annotations

from flare_dist.comm.failures import on_all_ranks
from flare_dist.comm.world import World
from flare_dist.disk import DiskError
from flare_dist.errors import ReportedError
from tests.ranks import run_ranks


def fail_on_rank_1(world: World) -> str:
    try:
        with on_all_ranks(world):
            if world.rank == 1:
                raise DiskError("output_dir: cannot write /scratch/größe: no")
    except ReportedError as error:
        return str(error)
    return ""


def test_an_error_of_one_rank_is_raised_by_every_rank() -> None:
    assert run_ranks(fail_on_rank_1, 2) == ["output_dir: cannot write /scratch/größe: no"] * 2

"""Examples that ranks could not read: summed over ranks, each named by rank 0's log, and silent if there are none."""

from __future__ import annotations

import logging

import pytest
import torch

from flare_dist.comm.world import World
from flare_dist.data.collate import stack_examples
from flare_dist.data.items import Items
from flare_dist.data.lazy import LazyBatches
from flare_dist.data.reader import Reader
from flare_dist.rounds.skipped import skipped_here, skipped_on_all_ranks
from tests.helpers.batches import pixel_source
from tests.helpers.lazy import Jittered
from tests.ranks import run_ranks


def read_some(rank: int) -> LazyBatches:
    items = Items(Jittered(broken=(3, 40)), "data: train", stack_examples)
    used = LazyBatches(Reader(items, "skip"), "cpu", 0, 0)
    list(used.batches(torch.arange(rank * 32, rank * 32 + 32), 8, None))
    return used


def count_twice(world: World) -> tuple[list[dict[str, int]], list[str]]:
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logging.getLogger("flare_dist").addHandler(Kept())
    used = read_some(world.rank)
    return [skipped_on_all_ranks(world, used, "skip") for _ in range(2)], lines


def test_every_rank_counts_and_names_those_of_all() -> None:
    for rows, lines in run_ranks(count_twice, 2):
        assert rows == [{"skipped_examples": 2}, {}]
        assert [line.split(" cannot")[0] for line in lines] == [
            "left out: data: train: example 3",
            "left out: data: train: example 40",
        ]


def test_an_evaluation_counts_its_own(caplog: pytest.LogCaptureFixture) -> None:
    assert skipped_here(read_some(0)) == 1
    assert "left out: data: train: example 3 cannot be read" in caplog.text
    assert skipped_here(pixel_source()) == 0


def test_resident_tensors_cost_no_collective() -> None:
    assert skipped_on_all_ranks(World(), pixel_source(), "skip") == {}
    assert skipped_on_all_ranks(World(), read_some(0), "stop") == {}

"""Where sparse payloads stop paying."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from flare_dist.comm.world import World
from flare_dist.compression.compressor import Compressor
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.layout import ParameterLayout
from flare_dist.rounds.ledger import Stopwatch, break_even_density, log, report_break_even

LAYOUT = ParameterLayout.of([("weight", torch.empty(100_000))])


def packing(**settings: Any) -> Any:
    return Compressor(CompressionConfig(**settings), LAYOUT, 0).plan(1).packing


@pytest.mark.parametrize(("ranks", "payloads"), [(2, 1), (2, 4), (8, 1), (8, 10)])
def test_four_byte_indices_break_even_where_the_buffers_are_alike(ranks: int, payloads: int) -> None:
    """W p 8 k = 8 n: pairs of 8 bytes against twice 4 bytes an entry."""
    assert break_even_density(packing(index_codec="int32"), ranks, payloads) == pytest.approx(
        1 / (ranks * payloads), abs=2e-5
    )


def test_fewer_bits_pay_for_longer() -> None:
    limits = [break_even_density(packing(value_codec=codec), 4, 1) for codec in ("fp32", "fp16", "int8", "2bit")]
    assert limits == sorted(limits)
    assert break_even_density(packing(index_codec="int32"), 4, 1) < limits[0]
    assert break_even_density(packing(value_codec="2bit"), 2, 1) == 1


class Clock(World):
    """A rank whose time passes only if told to."""

    time = 0.0

    def now(self) -> float:
        return self.time


def test_the_slowest_client_is_the_longest_training_and_selection_of_one() -> None:
    world = Clock()
    watch = Stopwatch(world)
    for compute, select in ((1.0, 0.5), (2.0, 1.0), (2.5, 0.25)):
        with watch.client():
            with watch.phase("compute"):
                world.time += compute
            world.time += 9.0  # of neither
            with watch.phase("select"):
                world.time += select
    seconds = watch.totals()
    assert (seconds["slowest_client_seconds"], seconds["compute_seconds"], seconds["select_seconds"]) == (3, 5.5, 1.75)
    watch = Stopwatch(world)
    with watch.phase("compute"):  # of clients trained as one batch
        world.time += 1.0
    assert "slowest_client_seconds" not in watch.totals()


def test_a_density_beyond_is_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = Config(compression=CompressionConfig(density=0.3))
    clients = dataclasses.replace(config.clients, num=8, per_round=8)

    def said(ranks: int, **changes: Any) -> str:
        caplog.clear()
        changed = dataclasses.replace(config, clients=clients, **changes)
        with caplog.at_level("INFO", logger=log.name):
            log.propagate = True
            report_break_even(changed, Compressor(changed.compression, LAYOUT, 0), ranks)
        return caplog.text

    assert "with 4 payloads each, sparse pays below density 0.22" in said(2)
    assert "compression.density: at 0.3 the ranks move more" in said(2)
    assert "more" not in said(2, compression=CompressionConfig(density=0.1))
    assert "with 1 payload each, sparse" in said(2, mode="gradient")
    beyond = said(2, compression=CompressionConfig(sparsifier="dense", value_codec="int8"))
    assert "below density 0" in beyond
    assert "at 1 the ranks move more" in beyond
    assert not said(1)
    assert not said(2, compression=CompressionConfig(sparsifier="dense"))

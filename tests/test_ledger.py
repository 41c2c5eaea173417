"""The ledger counts what moved, and finds the density above which sparse payloads stop paying."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.comm import collectives
from flare_dist.comm.message import HEADER_NBYTES
from flare_dist.comm.traffic import Traffic
from flare_dist.comm.world import World
from flare_dist.compression.compressor import Compressor
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.layout import ParameterLayout
from flare_dist.rounds.break_even import break_even_density, log, report_break_even
from flare_dist.rounds.ledger import Stopwatch
from tests.helpers.rounds import DENSE, SPARSE, play
from tests.ranks import run_ranks

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
    for client, (compute, select) in enumerate(((1.0, 0.5), (2.0, 1.0), (2.5, 0.25))):
        with watch.phase("compute", client):
            world.time += compute
        world.time += 9.0  # of neither
        with watch.phase("select", client):
            world.time += select
    seconds = watch.totals([0, 2])
    assert watch.client_seconds == {0: 1.5, 2: 2.75}
    assert (seconds["slowest_client_seconds"], seconds["compute_seconds"], seconds["select_seconds"]) == (3, 5.5, 1.75)
    watch = Stopwatch(world)
    with watch.phase("compute"):  # of clients trained as one batch
        world.time += 1.0
    with watch.phase("select", client=3):
        world.time += 1.0
    assert "slowest_client_seconds" not in watch.totals()


def test_a_round_begins_with_no_traffic() -> None:
    world = Clock()
    world.traffic.wire_bytes = 5
    Stopwatch(world)
    assert world.traffic == Traffic()


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


def wire(world: World, config: Config) -> tuple[list[dict[str, Any]], int]:
    """The reports of a run, and the bytes that the gathers and reductions were really given, over all rounds."""
    moved = 0
    gather = collectives.all_gather_flat
    reduce = torch.distributed.all_reduce

    def counted_gather(output: Tensor, local: Tensor, **options: Any) -> Any:
        nonlocal moved
        moved += world.size * (world.size - 1) * local.numel() * local.element_size()
        return gather(output, local, **options)

    def counted_reduce(tensor: Tensor, *operation: Any, **group: Any) -> None:
        nonlocal moved
        if not operation:  # a maximum is a control message
            moved += 2 * (world.size - 1) * tensor.numel() * tensor.element_size()
        reduce(tensor, *operation, **group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "all_gather_flat", counted_gather)
        patch.setattr(torch.distributed, "all_reduce", counted_reduce)
        return play(world, config)[3], moved


@pytest.mark.parametrize("config", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_ledger_counts_the_buffers_that_moved(config: Config) -> None:
    reports, moved = run_ranks(wire, 2, config)[0]
    assert sum(report["wire_bytes"] for report in reports) == moved > 0
    for report in reports:
        in_turn = report["compute_seconds"] + report["select_seconds"]
        assert 0 < report["slowest_client_seconds"] <= in_turn
        assert report["dense_bytes"] == report["downlink_bytes"] == 4 * report["total"]
        header = 0 if config is DENSE else HEADER_NBYTES * report["clients"]
        if config is DENSE:
            assert report["uplink_bytes"] == 4 * report["kept"]
        else:
            assert 4 * report["kept"] < report["uplink_bytes"] - header < 8 * report["kept"]
        assert report["uplink_bytes"] <= report["wire_bytes"] or config is DENSE

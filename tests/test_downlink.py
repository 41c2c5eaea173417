"""The downlink: what clients hold follows the global parameters, and what it costs is counted to the byte."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.comm.world import World
from flare_dist.compression.config import DOWNLINKS, CompressionConfig
from flare_dist.compression.index_codecs import INDEX_CODECS
from flare_dist.config.config import Config
from flare_dist.layout import ParameterLayout
from flare_dist.rounds.build_run import set_up, set_up_federation
from flare_dist.rounds.federated import federated_round
from flare_dist.server.config import ServerConfig
from flare_dist.server.downlink import Downlink
from tests.helpers.rounds import SPARSE
from tests.ranks import run_ranks, single

LAYOUT = ParameterLayout.of([("weight", torch.empty(1000)), ("bias", torch.empty(10))])


def downlink(kind: str, **settings: Any) -> Downlink:
    parameters = torch.randn(LAYOUT.total, generator=torch.Generator().manual_seed(0))
    return Downlink(CompressionConfig(downlink=kind, **settings), LAYOUT, parameters)


def take_round(used: Downlink, round_: int, change: Tensor) -> None:
    """The server's step and what follows it."""
    used.parameters.add_(change)
    if not used.is_lossless:
        message = used.encode()
        assert (message.dtype, message.numel()) == (torch.uint8, used.message_nbytes())
        used.receive(message)
    used.finish_round(round_)


@pytest.mark.parametrize("value_codec", ["fp32", "2bit"])
def test_what_the_view_lacks_is_sent_later(value_codec: str) -> None:
    used = downlink("topk", downlink_density=0.05, value_codec=value_codec)
    change, before = torch.randn(LAYOUT.total, generator=torch.Generator().manual_seed(1)), used.view.clone()
    take_round(used, 1, change)
    first = (used.parameters - used.view).norm()
    assert 0 < first < change.norm()
    assert int((used.view - before).count_nonzero()) <= 50 + 1
    for round_ in range(2, 60):
        take_round(used, round_, torch.zeros(LAYOUT.total))
    assert (used.parameters - used.view).norm() < 1e-3 * first


def test_the_dense_kinds() -> None:
    for kind, nbytes in (("dense", 4), ("fp16", 2)):
        used = downlink(kind)
        take_round(used, 1, torch.ones(LAYOUT.total))
        expected = used.parameters if kind == "dense" else used.parameters.half().float()
        assert torch.equal(used.view, expected)
        assert used.nbytes_to([1, 2], 2) == 2 * nbytes * LAYOUT.total


def test_returning_clients_are_sent_what_changed_since_they_last_took_part() -> None:
    used = downlink("changed", index_codec="int32")

    def change(*entries: int) -> Tensor:
        vector = torch.zeros(LAYOUT.total)
        vector[list(entries)] = 1.0
        return vector

    everything = 4 * LAYOUT.total
    assert used.nbytes_to([0, 1], 1) == 2 * everything  # both for the first time
    take_round(used, 1, change(3, 4))
    assert used.nbytes_to([0], 2) == 8 * 2
    take_round(used, 2, change(4, 5, 6))
    assert used.nbytes_to([0, 1, 2], 3) == 8 * 3 + 8 * 4 + everything  # 4, 5, 6; also 3; all
    take_round(used, 3, torch.zeros(LAYOUT.total))
    assert used.nbytes_to([1], 4) == 0
    take_round(used, 4, torch.ones(LAYOUT.total))
    assert used.nbytes_to([0], 5) == everything  # cheaper than a pair for each


def test_missed_messages_are_sent_again_where_that_is_cheapest() -> None:
    used = downlink("topk", downlink_density=0.01, value_codec="sign", index_codec="int32")
    used.nbytes_to([0, 1], 1)
    message = 4 * (10 + 1) + 2 + 2 * 2  # indices, a bit for each of 11 values, a bfloat16 for each of 2 tensors
    assert used.message_nbytes() == message
    for round_ in (1, 2):
        take_round(used, round_, torch.randn(LAYOUT.total))
    assert used.nbytes_to([0], 3) == 2 * message
    take_round(used, 3, torch.zeros(LAYOUT.total))
    assert used.nbytes_to([0], 4) == message


@pytest.mark.parametrize("kind", DOWNLINKS)
def test_a_restored_downlink_goes_on_as_it_would_have(kind: str) -> None:
    straight = downlink(kind)
    for round_ in range(1, 4):
        straight.nbytes_to([round_], round_)
        take_round(straight, round_, torch.randn(LAYOUT.total, generator=torch.Generator().manual_seed(round_)))
    restored = downlink(kind)
    restored.parameters.copy_(straight.parameters)
    restored.load_state_dict(straight.state_dict())
    for used in (straight, restored):
        take_round(used, 4, torch.randn(LAYOUT.total, generator=torch.Generator().manual_seed(4)))
    assert torch.equal(restored.view, straight.view)
    assert restored.nbytes_to([1, 2, 3], 5) == straight.nbytes_to([1, 2, 3], 5)


def test_another_kind_starts_from_the_parameters() -> None:
    used = downlink("topk")
    take_round(used, 1, torch.ones(LAYOUT.total))
    other = downlink("fp16")
    assert torch.equal(other.view, other.parameters.half().float())
    other.parameters.copy_(used.parameters)
    other.load_state_dict(used.state_dict())
    assert torch.equal(other.view, used.parameters.half().float())


def played(world: World, config: Config) -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
    fed = set_up_federation(config, world)
    reports = [federated_round(round_, fed) for round_ in range(1, config.rounds + 1)]
    return fed.downlink.view, fed.server.parameters.detach(), reports


@pytest.mark.parametrize("server", [ServerConfig(), ServerConfig(momentum=0.9)], ids=["stateless", "momentum"])
@pytest.mark.parametrize("kind", DOWNLINKS)
def test_every_rank_holds_the_same_view_and_any_number_of_them_the_same_bits(kind: str, server: ServerConfig) -> None:
    compression = dataclasses.replace(SPARSE.compression, downlink=kind)
    config = dataclasses.replace(SPARSE, compression=compression, server=server)
    alone, parameters, reports = single(played, config)
    assert torch.equal(alone, parameters) == (kind in ("dense", "changed"))
    for view, _, others in run_ranks(played, 2, config):
        assert torch.equal(view, alone)
        for key in ("uplink_bytes", "downlink_bytes", "kept", "train_loss"):
            assert [report[key] for report in others] == [report[key] for report in reports]


def test_centralised_training_has_no_view() -> None:
    """Its compression keys do not count, so the same configuration's twin can be trained."""
    config = dataclasses.replace(SPARSE, mode="centralised", compression=CompressionConfig(downlink="topk"))
    run = set_up(config, World())
    assert run.view.data_ptr() == run.server.parameters.data_ptr()


def test_a_lossless_downlink_changes_bytes_only() -> None:
    kinds = [
        dataclasses.replace(SPARSE, compression=CompressionConfig(density=0.02, downlink=k))
        for k in ("dense", "changed")
    ]
    (dense, _, full), (changed, _, less) = (single(played, config) for config in kinds)
    assert torch.equal(dense, changed)
    assert full[0]["downlink_bytes"] == less[0]["downlink_bytes"]
    assert less[-1]["downlink_bytes"] < full[-1]["downlink_bytes"]


@pytest.mark.parametrize("codec", [*INDEX_CODECS, "auto"])
def test_the_index_codec_changes_bytes_only(codec: str) -> None:
    config = dataclasses.replace(SPARSE, compression=CompressionConfig(density=0.02, index_codec=codec))
    assert torch.equal(single(played, config)[0], single(played, SPARSE)[0])


def with_values(sparsifier: str, value_codec: str) -> Config:
    compression = CompressionConfig(density=0.1, sparsifier=sparsifier, value_codec=value_codec, threshold=1e-3)
    return dataclasses.replace(SPARSE, compression=compression)


@functools.cache
def with_exact_values(sparsifier: str) -> Tensor:
    return single(played, with_values(sparsifier, "fp32"))[0]


@pytest.mark.parametrize("value_codec", ["fp16", "int8", "4bit", "2bit", "sign"])
@pytest.mark.parametrize("sparsifier", ["dense", "topk", "auto", "threshold"])
def test_lossy_values_travel_alike_on_any_number_of_ranks(value_codec: str, sparsifier: str) -> None:
    config = with_values(sparsifier, value_codec)
    alone, *_ = single(played, config)
    assert alone.isfinite().all()
    for view, *_ in run_ranks(played, 2, config) if sparsifier == "topk" else []:
        assert torch.equal(view, alone)
    assert not torch.equal(alone, with_exact_values(sparsifier))

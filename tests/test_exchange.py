"""The exchange on real ranks: what goes in comes out on every rank, in client order, in chunks or at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flare_dist.clients.client import ClientResult
from flare_dist.comm import exchange as module
from flare_dist.comm.cohort import Cohort
from flare_dist.comm.exchange import DenseUplink, Received, SparseUplink
from flare_dist.comm.message import ALIGNMENT, HEADER_NBYTES, slot_nbytes
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import Dense, Payload, Sparse
from flare_dist.layout import Entry, ParameterLayout
from flare_dist.server.aggregation import DeltaSum, mean
from tests.ranks import run_ranks, single

TOTAL, BUFFERS = 40, 3
LAYOUT = ParameterLayout((Entry("weight", (TOTAL,), 0),))
PACKING = Packing.of(CompressionConfig(index_codec="int32"), LAYOUT, [], torch.device("cpu"))
WEIGHTS = {client: (client + 1) / 28 for client in range(7)}


def update(client: int) -> tuple[Tensor, Tensor]:
    """(model_delta, buffers) of a client, random and its own."""
    rng = torch.Generator().manual_seed(client)
    return torch.randn(TOTAL, generator=rng), torch.randn(BUFFERS, generator=rng)


def first_entries(client: int) -> Sparse:
    """A payload of a client-dependent number of entries."""
    indices = torch.arange(client % 5)
    return PACKING.pack(indices, update(client)[0][indices])


def receive(total: DeltaSum, client: int, payload: Payload, weight: float) -> None:
    mean(total, payload, weight)


def sparse(world: World, limit: int, rejected: tuple[int, ...] = ()) -> tuple[Received, int]:
    cohort = Cohort({client: client % world.size for client in range(7)}, WEIGHTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GATHER_LIMIT", limit)
        encodings = dict.fromkeys(cohort.hosts, PACKING)
        return _exchange(
            world,
            SparseUplink(cohort, receive, torch.zeros(TOTAL), BUFFERS, encodings, PACKING.most_nbytes(4)),
            rejected,
        )


def dense(world: World, rejected: tuple[int, ...] = ()) -> tuple[Received, int]:
    cohort = Cohort({client: client * world.size // 7 for client in range(7)}, WEIGHTS)
    return _exchange(world, DenseUplink(cohort, receive, TOTAL, BUFFERS, torch.device("cpu")), rejected)


def _exchange(world: World, uplink: SparseUplink | DenseUplink, rejected: tuple[int, ...]) -> tuple[Received, int]:
    for client in [client for client, rank in uplink.cohort.hosts.items() if rank == world.rank]:
        model_delta, buffers = update(client)
        result = ClientResult(client, 1, float(client), model_delta, buffers)
        if client in rejected:
            uplink.add(result, None)
        else:
            uplink.add(result, first_entries(client) if isinstance(uplink, SparseUplink) else Dense(model_delta))
    return uplink.exchange(world), world.traffic.wire_bytes


def assert_equal(one: Received, other: Received, exact: bool = True) -> None:
    rtol, atol = (0.0, 0.0) if exact else (1e-5, 1e-6)
    torch.testing.assert_close(one.mean_vector, other.mean_vector, rtol=rtol, atol=atol)
    torch.testing.assert_close(one.mean_buffer_delta, other.mean_buffer_delta, rtol=rtol, atol=atol)
    assert (one.accepted, one.rejected, one.kept) == (other.accepted, other.rejected, other.kept)
    assert one.uplink_bytes == other.uplink_bytes
    assert one.train_loss == pytest.approx(other.train_loss)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("rejected", [(), (0, 5), tuple(range(7))], ids=["none", "some", "all"])
def test_sparse_exchange_is_bitwise_the_same_on_any_number_of_ranks(size: int, rejected: tuple[int, ...]) -> None:
    alone, _ = single(sparse, 2**20, rejected)
    for limit in (2**20, 1):  # at once, and one client of each rank at a time
        for result, _ in run_ranks(sparse, size, limit, rejected):
            assert_equal(result, alone)


def test_sparse_mean_is_the_weighted_mean_of_the_accepted() -> None:
    result, _ = single(sparse, 2**20, (0, 5))
    present = [1, 2, 3, 4, 6]
    scale = sum(WEIGHTS[client] for client in present)
    expected, buffers, loss = torch.zeros(TOTAL), torch.zeros(BUFFERS), 0.0
    for client in present:
        delta, own = update(client)
        delta[client % 5 :] = 0
        expected += delta * WEIGHTS[client] / scale
        buffers += own * WEIGHTS[client] / scale
        loss += client * WEIGHTS[client] / scale
    torch.testing.assert_close(result.mean_vector, expected)
    torch.testing.assert_close(result.mean_buffer_delta, buffers)
    assert result.train_loss == pytest.approx(loss)
    assert (result.accepted, result.rejected) == (present, [0, 5])
    assert result.kept == sum(client % 5 for client in present)
    assert result.uplink_bytes == 7 * HEADER_NBYTES + 8 * result.kept


@pytest.mark.parametrize("rejected", [(), (0, 5), tuple(range(7))], ids=["none", "some", "all"])
def test_dense_exchange_agrees_to_rounding_and_is_the_same_on_every_rank(rejected: tuple[int, ...]) -> None:
    alone, _ = single(dense, rejected)
    results = [result for result, _ in run_ranks(dense, 3, rejected)]
    for result in results:
        assert_equal(result, alone, exact=False)
        assert_equal(result, results[0])
    if rejected == (0, 5):
        scale = sum(WEIGHTS[client] for client in alone.accepted)
        expected = sum(update(client)[0] * WEIGHTS[client] / scale for client in alone.accepted)
        torch.testing.assert_close(alone.mean_vector, expected)
        expected = sum(update(client)[1] * WEIGHTS[client] / scale for client in alone.accepted)
        torch.testing.assert_close(alone.mean_buffer_delta, expected)


def test_wire_bytes_are_those_of_the_padded_buffers() -> None:
    padded = (
        math.ceil(4 * slot_nbytes(PACKING.most_nbytes(4), BUFFERS) / ALIGNMENT) * ALIGNMENT
    )  # rank 0 hosts clients 0, 2, 4 and 6
    for _, wire_bytes in run_ranks(sparse, 2, 2**20):
        assert wire_bytes == 2 * 1 * padded
    for _, wire_bytes in run_ranks(dense, 3):
        assert wire_bytes == 2 * 2 * 4 * (TOTAL + BUFFERS + 2 * 7)

"""A trial of the exchange: each rank sends an update that the others can work out, and compares what arrives."""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from flare_dist.clients.client import ClientResult
from flare_dist.comm.cohort import Cohort
from flare_dist.comm.exchange import DenseUplink, SparseUplink
from flare_dist.comm.group import open_world, with_neighbours
from flare_dist.comm.launch import Launch
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import Dense, Payload
from flare_dist.layout import Entry, ParameterLayout
from flare_dist.server.aggregation import DeltaSum, mean

TOTAL = 1000  # entries of the model delta that is sent
KEPT = 10


def try_two(kind: str, seconds: float) -> str:
    """Try the exchange between two new processes of this machine, each with a device of `kind` cpu or cuda.

    Returns the backend. Raises RuntimeError, OSError or TimeoutError with what does not work.
    """
    with tempfile.TemporaryDirectory(prefix="flare_dist-") as folder:
        store = (Path(folder) / "store").as_uri()
        pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
        ranks = [pool.submit(try_all, Launch(rank, 2, rank, 2), kind, seconds, store) for rank in range(2)]
        try:
            backends = [rank.result(timeout=2 * seconds) for rank in ranks]  # the import of PyTorch takes its time, too
            return backends[0]
        finally:
            for process in list(pool._processes.values()):
                process.kill()
            pool.shutdown(cancel_futures=True)


def try_all(launch: Launch, kind: str, seconds: float, rendezvous: str = "env://") -> str:
    """Try the exchange between the ranks of `launch`, all of which call it; returns and raises as `try_two` does."""
    launch = with_neighbours(launch, seconds, rendezvous)
    device = launch.device(kind)
    with open_world(launch, device, seconds, rendezvous, collective_seconds=seconds) as world:
        _exchange(world)
        world.wait_for_all()
        return world.backend


def _exchange(world: World) -> None:
    """Send a sparse and a dense update of each rank; raises RuntimeError if a mean is not what it must be."""
    layout = ParameterLayout((Entry("weight", (TOTAL,), 0),))
    packing = Packing.of(CompressionConfig(), layout, [], world.device)
    cohort = Cohort({rank: rank for rank in range(world.hosts)}, dict.fromkeys(range(world.hosts), 1 / world.hosts))

    def delta(rank: int) -> Tensor:
        return (torch.arange(TOTAL, device=world.device) + rank).float()

    def sent(rank: int) -> Payload:
        indices = torch.arange(KEPT, device=world.device) * 7 + rank % KEPT
        return packing.pack(indices, delta(rank)[indices])

    def receive(total: DeltaSum, client: int, payload: Payload, weight: float) -> None:
        mean(total, payload, weight)

    result = ClientResult(world.host_number, 1, 0.0, delta(world.host_number), torch.zeros(0, device=world.device))
    encodings = dict.fromkeys(cohort.hosts, packing)
    zeros = torch.zeros(TOTAL, device=world.device)
    sparse = SparseUplink(cohort, receive, zeros, 0, encodings, packing.most_nbytes(KEPT))
    dense = DenseUplink(cohort, receive, TOTAL, 0, world.device)
    for uplink in (sparse, dense):

        def payload(rank: int, is_sparse: bool = uplink is sparse) -> Payload:
            return sent(rank) if is_sparse else Dense(delta(rank))

        expected = torch.zeros(TOTAL, device=world.device)
        for rank, weight in cohort.weights.items():
            mean(expected, payload(rank), weight)
        uplink.add(result, payload(world.host_number))
        if not torch.allclose(uplink.exchange(world).mean_vector, expected):
            kind = "sparse" if uplink is sparse else "dense"
            raise RuntimeError(f"rank {world.rank}: the mean of {kind} updates is not that of what was sent")

"""What the hook and a run hold on a GPU, by the stream that allocates it; the GPU is pretended (pretend_gpu/)."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from flare_dist.algorithms.ef21 import ef21
from flare_dist.compression import unwaited
from flare_dist.compression.unwaited import largest_unwaited
from flare_dist.records import checkpoint
from flare_dist.records.files import save_state
from flare_dist.server.config import ServerConfig
from flare_dist.server.server import Server
from tests.helpers.payloads import unencoded
from tests.pretend_gpu.cuda import pretend_gpu
from tests.pretend_gpu.streams import DEFAULT, STREAMS
from tests.pretend_gpu.tensors import raw, to_gpu


def peak_of(vector: Tensor, k: int) -> tuple[float, Tensor]:
    """The bytes an entry that selecting holds beside the vector, and what is selected."""
    with pretend_gpu():
        there = to_gpu(vector)
        there.add_(0)  # the first use of it is its allocation
        before = STREAMS.peak[DEFAULT]
        found = raw(largest_unwaited(there.abs(), k)).clone()
        return (STREAMS.peak[DEFAULT] - before) / vector.numel(), found


@pytest.mark.parametrize("shape", [(2**18,), (2**10, 2**8), (2, 2**17)], ids=str)
def test_selecting_without_triton_holds_little_beside_a_long_vector(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    """The magnitudes, four bytes an entry, and a part of it at a time; there are ties on both sides of every border."""
    draws = torch.Generator().manual_seed(0)
    vector = torch.randint(-40, 41, shape, generator=draws).float()
    k = shape[-1] // 50
    whole, expected = peak_of(vector, k)
    monkeypatch.setattr(unwaited, "_CHUNK", 2**13)
    peak, found = peak_of(vector, k)
    assert torch.equal(found, expected)
    assert whole > 10
    assert peak < 6


def ef21_server(device: str) -> Server:
    server = Server(torch.zeros(50), torch.zeros(0), ServerConfig(), 3, ef21())
    if device == "cuda":
        server.parameters = torch.nn.Parameter(to_gpu(server.parameters.detach()))
    return server


@pytest.mark.parametrize("free", [10, 70])
def test_estimates_of_clients_are_on_the_gpu_as_long_as_there_is_room(free: int) -> None:
    sums = []
    for device in ("cpu", "cuda"):
        draws = torch.Generator().manual_seed(0)
        memory = patch("torch.cuda.mem_get_info", lambda device=None: (free * 2**30, 80 * 2**30))
        with pretend_gpu(), memory:
            server = ef21_server(device)
            total = torch.zeros(50, device=device)
            for client in (0, 1, 0):
                indices = torch.randperm(50, generator=draws)[:5].sort().values
                payload = unencoded(indices, torch.randn(5, generator=draws))
                if device == "cuda":
                    payload = type(payload)(*map(to_gpu, (payload.indices, payload.values, payload.data)))
                server.receive(total, client, payload, 0.5)
            kept = {str(estimate.device.type) for estimate in server.estimates.values()}
            assert kept == ({"cpu"} if device == "cpu" or free == 10 else {"cuda"})
            sums.append(raw(total).clone())
    assert torch.equal(*sums)


def test_a_checkpoint_copies_no_state_to_the_host_before_it_is_written(tmp_path: Path) -> None:
    state = {client: {"residual": torch.randn(100)} for client in range(3)}
    with pretend_gpu() as did:
        there = {client: {"residual": to_gpu(own["residual"])} for client, own in state.items()}
        compact = checkpoint._compact(there)
        assert not did.waits
        view = checkpoint._compact(there[0]["residual"][:10])
        assert view.untyped_storage().nbytes() == 40
        assert not view.is_cuda
        save_state(tmp_path / "state.pt", {str(client): own["residual"] for client, own in compact.items()})
    saved = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    assert all(torch.equal(saved[str(client)], own["residual"]) for client, own in state.items())

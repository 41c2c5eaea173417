"""A server of fifty weights, and the mean deltas of its rounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flare_dist.server.config import ServerConfig
from flare_dist.server.server import Server

TOTAL = 50
ROUNDS = 10


def start() -> Tensor:
    return torch.randn(TOTAL, generator=torch.Generator().manual_seed(0))


def server(**settings: Any) -> Server:
    return Server(start(), torch.arange(3.0), ServerConfig(**settings), ROUNDS)


def delta(round_: int) -> Tensor:
    return 0.1 * torch.randn(TOTAL, generator=torch.Generator().manual_seed(round_))


def vectors(state: dict[str, Any]) -> list[Tensor]:
    """Return all tensors of a server's state."""
    remembered = [tensor for slot in state["optimizer"]["state"].values() for tensor in slot.values()]
    return [state["parameters"], state["buffers"], *remembered]

"""The place of this process among those that a launcher started."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Launch:
    """This process as the launcher (torchrun, accelerate, deepspeed) sees it; without a launcher, a single rank."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launched: bool = False  # by a launcher, possibly as the only rank

    @classmethod
    def from_environment(cls) -> Launch:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            size=size,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            # the deepspeed launcher writes LOCAL_SIZE
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", str(size)))),
            launched="LOCAL_RANK" in os.environ,
        )

    def device(self, kind: str) -> torch.device:
        """Return this rank's device of `kind` cpu or cuda; ranks share GPUs if there are fewer of them."""
        return torch.device(kind, self.local_rank % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)

    def backend(self, device: torch.device) -> str:
        """Choose NCCL if every local rank has a GPU of its own (NCCL refuses a shared one), otherwise gloo."""
        own_gpu = device.type == "cuda" and self.local_size <= torch.cuda.device_count()
        return "nccl" if own_gpu else "gloo"

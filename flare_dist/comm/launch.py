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
    local_size: int = 1  # 0 if the launcher does not tell: `with_neighbours` (world.py) asks the other ranks
    launched: bool = False  # by a launcher that tells the local rank, possibly as the only rank

    @classmethod
    def from_environment(cls) -> Launch:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            size=size,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            # the deepspeed launcher writes LOCAL_SIZE
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1" if size == 1 else "0"))),
            launched="LOCAL_RANK" in os.environ,
        )

    @property
    def tells_place(self) -> bool:
        """Tell whether the launcher has said which of how many ranks on this host this one is."""
        return self.size == 1 or (self.launched and self.local_size > 0)

    def device(self, kind: str) -> torch.device:
        """Return this rank's device of `kind` cpu or cuda; ranks share GPUs if there are fewer of them."""
        return torch.device(kind, self.local_rank % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)

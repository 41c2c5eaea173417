"""The place of this process among those that a launcher started."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """This process as the launcher (torchrun, accelerate, deepspeed) sees it; without a launcher, a single rank."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1  # 0 if the launcher does not tell: `with_neighbours` (group.py) asks the other ranks
    launched: bool = False  # by a launcher that tells the local rank, possibly as the only rank

    @classmethod
    def from_environment(cls) -> Launch:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        is_told = "LOCAL_RANK" in os.environ
        # the deepspeed launcher writes LOCAL_SIZE
        local_size = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "0")) if is_told else "0"
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            size=size,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            local_size=int(local_size) or int(size == 1),
            launched=is_told,
        )

    def warn_of_tasks_alone(self) -> None:
        """Warn if srun has started several tasks that do not know of each other, each of which would train alone."""
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
        if self.size == 1 and not self.launched and tasks.isdecimal() and int(tasks) > 1:
            log.warning(
                "WORLD_SIZE: not set, got %s tasks of srun, each of which trains alone; use launch/slurm.sbatch, or "
                "export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID MASTER_ADDR MASTER_PORT",
                tasks,
            )

    def device(self, kind: str) -> torch.device:
        """Return this rank's device of `kind` cpu or cuda; ranks share GPUs if there are fewer of them."""
        return torch.device(kind, self.local_rank % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)

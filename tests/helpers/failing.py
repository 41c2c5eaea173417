"""A model that fails on rank 1 in a step, in a process whose group ends as NCCL's does.

`tests.helpers.failing:model`, told by the environment how it fails and in which directory the ranks leave notes.
"""

from __future__ import annotations

import atexit
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flare_dist.models.registry import Shape

NOTES = "FLARE_DIST_TEST_NOTES"  # a directory
HOW = "FLARE_DIST_TEST_FAILURE"  # a key of FAILURES
STEPS = 40  # that go well, trials of the model among them


def model(input_shape: Shape, num_classes: int) -> nn.Module:
    notes = Path(os.environ[NOTES])
    (notes / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    _end_as_nccl_does(notes)
    return Failing(input_shape, num_classes)


class Failing(nn.Module):
    def __init__(self, input_shape: Shape, num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.scores = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))
        self.steps = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and dist.is_initialized():
            self.steps += 1
            if self.steps > STEPS and os.environ["RANK"] == "1":
                (Path(os.environ[NOTES]) / "failed").write_text(str(time.time()))
                FAILURES[os.environ[HOW]]()
        return self.scores(inputs)


def _raise() -> None:
    raise LookupError("rank 1 came to nothing")


def _exhaust() -> None:
    torch.empty(2**60)


def _stop() -> None:
    time.sleep(600)


FAILURES = {"raise": _raise, "exhaust": _exhaust, "stop": _stop}


def _end_as_nccl_does(notes: Path) -> None:
    """Let the group's end, and that of the interpreter, wait for the other ranks: both flush what is pending."""
    destroy = dist.destroy_process_group
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def flush(when: str) -> None:
        (notes / f"{when}-{rank}").touch()
        while not all((notes / f"{when}-{other}").exists() for other in range(size)):
            time.sleep(0.01)

    def flush_and_destroy(*arguments: Any) -> None:
        flush("destroys")
        destroy(*arguments)

    dist.destroy_process_group = flush_and_destroy  # type: ignore[assignment]
    atexit.register(flush, "exits")

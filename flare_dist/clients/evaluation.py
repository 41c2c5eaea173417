"""Measure a model as it stands: the mean loss and the task's metrics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flare_dist.data.batches import Batches
from flare_dist.seeding import derive_seed, seeded
from flare_dist.tasks.metrics import measure_all
from flare_dist.tasks.task import Task

BATCH_SIZE = 500  # fixed: the bits of a float32 forward pass depend on it


def evaluation_seed(seed: int, split: str) -> int:
    """Derive the seed of a model that draws in evaluation mode, too.

    It is the same after every round: models are compared under the same draws, and a saved one gives the figure that
    its run measured, whichever round it is of.
    """
    return derive_seed(seed, f"evaluation on {split}")


def batch_size(is_resident: bool, trained: int) -> int:
    """Choose how many examples a model is measured on at once: of a Dataset no more than it is `trained` on."""
    return BATCH_SIZE if is_resident else trained


@torch.no_grad()
def evaluate(
    model: nn.Module,
    source: Batches,
    task: Task,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    indices: Tensor | None = None,
) -> dict[str, float]:
    """Measure `model` in evaluation mode over `source`: the mean loss and the task's metrics, by name.

    `indices` (int64) are the examples to measure on; None = all. What the model draws follows from `seed`, and the
    caller's generators are left as they are.
    """
    model.eval()
    with seeded(seed, source.device):
        batches = source.batches(indices, batch_size, None, smallest=2)  # squeeze() would take one's axis
        return measure_all(task, model, batches, source.device)

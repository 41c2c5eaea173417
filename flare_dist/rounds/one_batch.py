"""Whether a rank trains its clients as one batch or one after another: `clients.together`, resolved in one place."""

from __future__ import annotations

import logging

from torch import Tensor, nn

from flare_dist.clients import batchable
from flare_dist.config.config import Config, with_values
from flare_dist.exclusions_one_batch import ONE_BATCH
from flare_dist.tasks.batch import Blank
from flare_dist.tasks.losses import has_loss_of_each
from flare_dist.tasks.task import Task

log = logging.getLogger(__name__)

# Weights up to which `auto` takes a model for one that leaves a GPU idle; a guess, not a measurement.
SMALL = 2**20


def why_not_one_batch(config: Config, model: nn.Module, blank: Blank, task: Task) -> str | None:
    """Explain why the clients of this run cannot be trained as one batch; None if they can.

    `blank` is one input of the model, [1, ...], which is on the CPU; no tensor if examples are read from a Dataset.
    """
    reasons = (row.reason for row in ONE_BATCH if row.applies(vars(config)))
    if not has_loss_of_each(task):
        return next(reasons, "the task has no criterion(outputs, labels, reduction='none')")
    if not isinstance(blank, Tensor):
        return next(reasons, "examples of a Dataset are read for one client after another")
    return next(reasons, None) or batchable.why_not_batchable(model, blank)


def resolve_together(config: Config, model: nn.Module, blank: Blank, device: str, task: Task) -> Config:
    """Resolve `clients.together` to always or never, on which the bits of a run depend; `device` is cpu or cuda.

    Raises ValueError with the reason if it is always and cannot be.
    """
    wanted = config.clients.together
    if wanted == "never":
        return config
    reason = (_why_slower(model, device) if wanted == "auto" else None) or why_not_one_batch(config, model, blank, task)
    if reason and wanted == "always":
        raise ValueError(f"clients.together: always is not possible: {reason}")
    if config.mode == "federated":
        how = f"one after another: {reason}" if reason else "as one batch"
        log.info("the clients of a rank are trained %s", how)
    return with_values(config, {"clients.together": "never" if reason else "always"})


def _why_slower(model: nn.Module, device: str) -> str | None:
    """Explain why one batch of clients would take longer than one client after another; None if it would not."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    if device == "cpu":
        return "on CPUs that is faster"
    return f"a client of {weights:,} weights keeps a GPU busy by itself" if weights > SMALL else None

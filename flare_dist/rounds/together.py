"""Whether a rank trains its clients as one batch or one after another: `clients.together`, settled in one place."""

from __future__ import annotations

import logging

from torch import Tensor, nn

from flare_dist.clients import batchable
from flare_dist.config.config import Config, with_together
from flare_dist.tasks.builtin import CLASSIFICATION
from flare_dist.tasks.task import Task, has_loss_of_each

log = logging.getLogger(__name__)

# Weights up to which `auto` takes a model for one that leaves a GPU idle; a guess, not a measurement.
SMALL = 2**20


def why_not_together(config: Config, model: nn.Module, blank: Tensor, task: Task = CLASSIFICATION) -> str | None:
    """Why the clients of this run cannot be trained as one batch; None where they can.

    `blank` is one input of the model, [1, ...], which is on the CPU.
    """
    clients, engine = config.clients, config.engine
    reasons = [
        (config.mode != "federated", f"mode={config.mode} trains one model"),
        (engine.name != "accelerate", f"engine.name={engine.name} has an engine for one client at a time"),
        (engine.mixed_precision != "no", f"engine.mixed_precision={engine.mixed_precision} is for one at a time"),
        (engine.gradient_accumulation_steps > 1, "engine.gradient_accumulation_steps is for one at a time"),
        (clients.objective != "none", f"clients.objective={clients.objective} is for one at a time"),
        (clients.step_ahead > 0, "clients.step_ahead starts each client elsewhere"),
        (not has_loss_of_each(task), "the task has no criterion(outputs, labels, reduction='none')"),
        (config.sparse_training.is_sparse, f"sparse_training.method={config.sparse_training.method} has masks"),
    ]
    return next((reason for holds, reason in reasons if holds), None) or batchable.why_not_batchable(model, blank)


def settle_together(
    config: Config, model: nn.Module, blank: Tensor, device: str, task: Task = CLASSIFICATION
) -> Config:
    """The configuration with `clients.together` always or never, on which the bits of a run depend; `device` is cpu or
    cuda. Raises ValueError with the reason where it is always and cannot be.
    """
    wanted = config.clients.together
    if wanted == "never":
        return config
    reason = (_why_slower(model, device) if wanted == "auto" else None) or why_not_together(config, model, blank, task)
    if reason and wanted == "always":
        raise ValueError(f"clients.together: always is not possible: {reason}")
    if config.mode == "federated":
        how = f"one after another: {reason}" if reason else "as one batch"
        log.info("the clients of a rank are trained %s", how)
    return with_together(config, "never" if reason else "always")


def _why_slower(model: nn.Module, device: str) -> str | None:
    """Why one batch of clients would take longer than one client after another."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    if device == "cpu":
        return "on CPUs that is faster"
    return f"a client of {weights:,} weights keeps a GPU busy by itself" if weights > SMALL else None

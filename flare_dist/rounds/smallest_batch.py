"""Models that cannot be trained on one example: known from the partition and one trial, so told before the rounds."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from flare_dist.config.config import Config, with_values
from flare_dist.data.batches import batch_sizes, piece_sizes
from flare_dist.data.datasets import DataSplits
from flare_dist.models.trial import why_not_one
from flare_dist.sparse_training.criteria import CRITERIA
from flare_dist.sparse_training.methods import METHODS
from flare_dist.units import show_numbered

log = logging.getLogger(__name__)


def resolve_smallest_batch(config: Config, sizes: Sequence[int], data: DataSplits, model: nn.Module) -> Config:
    """Resolve `clients.smallest_batch` to one that the model can be trained on.

    `sizes` are the numbers of examples of the clients. It stays as it is unless a step would be taken on one example,
    and the model fails on one; then that example goes with the batch before it. Raises ValueError that names the key,
    and the clients, if there is none.
    """
    clients = config.clients
    pieces = config.engine.gradient_accumulation_steps
    if not (_trains_on_one(config, sizes) or _measures_on_one(config, data)):
        return config
    reason = why_not_one(model, data.blank, data.num_classes, data.task)
    if reason is None:
        return config
    because = f"{config.model.name} cannot be trained on one example ({reason})"
    if clients.batch_size == 1:
        raise ValueError(f"clients.batch_size: must be at least 2, got 1: {because}")
    if piece_sizes(clients.batch_size, pieces)[0] == 1:
        raise ValueError(
            f"engine.gradient_accumulation_steps: must be at most {clients.batch_size // 2} for pieces of 2 examples, "
            f"got {pieces}: {because}"
        )
    if clients.smallest_batch == 1:
        raise ValueError(f"clients.smallest_batch: must be at least 2, got 1: {because}")
    alone = [client for client, size in enumerate(sizes) if size == 1]
    if alone:
        have = "has" if len(alone) == 1 else "have"
        raise ValueError(
            f"data.partition: {show_numbered('client', alone)} {have} one example, but {because}; use another "
            "partition, fewer clients (clients.num) or a model that can"
        )
    if _held_out_size(config, data) == 1:
        raise ValueError(f"data.validation: holds out one example, but {because}")
    log.info("clients.smallest_batch: 2: a last example goes with the batch before it: %s", because)
    return with_values(config, {"clients.smallest_batch": clients.smallest_batch or 2})


def _trains_on_one(config: Config, sizes: Sequence[int]) -> bool:
    """Tell whether a step, or a piece of one, would be taken on one example."""
    clients = config.clients
    pieces = config.engine.gradient_accumulation_steps
    if config.mode == "gradient":  # every batch is whole
        sizes = [clients.batch_size]
    batches = {batch for size in set(sizes) for batch in clients.batch_sizes(size)}
    return any(1 in piece_sizes(batch, count, clients.smallest) for batch in batches for count in (1, pieces))


def _measures_on_one(config: Config, data: DataSplits) -> bool:
    """Tell whether the scores of pruning would be taken of one example that the server holds out."""
    clients = config.clients
    return 1 in batch_sizes(_held_out_size(config, data), clients.batch_size, clients.smallest)


def _held_out_size(config: Config, data: DataSplits) -> int:
    """Count the examples by which the server scores weights; 0 if it does not."""
    is_scored = METHODS[config.sparse_training.method].is_scored and CRITERIA[config.pruning.criterion].needs_data
    if not is_scored or config.pruning.data != "server" or data.validation is None:
        return 0
    return len(data.validation)

"""The examples of a Dataset that could not be read and were left out (`data.on_error: skip`): counted and named."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch

from flare_dist.comm.world import World
from flare_dist.data.batches import Batches
from flare_dist.data.lazy import LazyBatches

log = logging.getLogger(__name__)

NAMES_BYTES = 4000  # of what a rank says of its examples


def skipped_on_all_ranks(world: World, source: Batches, on_error: str) -> dict[str, Any]:
    """Count the reads that failed in a round for its row, and log examples that are new; all ranks call it together.

    The row says nothing if none failed.
    """
    if on_error != "skip" or not isinstance(source, LazyBatches):
        return {}
    count, said = source.take_skipped()
    total, new = world.all_reduce_(torch.tensor([count, len(said)])).tolist()
    if new:
        text = "\n".join(said).encode()[:NAMES_BYTES].ljust(NAMES_BYTES)
        heard = world.all_gather(torch.tensor(list(text), dtype=torch.uint8))
        _log(line for words in heard for line in bytes(words.tolist()).decode(errors="replace").split("\n"))
    return {"skipped_examples": total} if total else {}


def skipped_here(source: Batches) -> int:
    """Count the reads that failed in an evaluation, and log examples that are new."""
    count, said = source.take_skipped() if isinstance(source, LazyBatches) else (0, [])
    _log(said)
    return count


def _log(lines: Iterable[str]) -> None:
    for line in lines:
        if line.strip():
            log.warning("left out: %s", line.strip())

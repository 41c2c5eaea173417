"""Batches that are counted while a model is measured on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from flare_dist.data.batches import Batches
from flare_dist.progress import Steps
from flare_dist.tasks.task import Batch


class Counted:
    """Yield the batches of `source` and show how many have been measured."""

    def __init__(self, source: Batches, shown: Steps) -> None:
        self._source = source
        self._shown = shown
        self.device = source.device
        self.on_batch: Callable[[], None] | None = None  # that of the source is called

    def __len__(self) -> int:
        return len(self._source)

    def batches(
        self, indices: Tensor | None, batch_size: int, generator: torch.Generator | None, smallest: int = 1
    ) -> Iterator[Batch]:
        """Yield one epoch over `indices`; None = all."""
        return self._counted(self._source.batches(indices, batch_size, generator, smallest))

    def passes(self, *arguments: Any, **options: Any) -> Iterator[Batch]:
        """Yield the batches of several epochs."""
        return self._counted(self._source.passes(*arguments, **options))

    def each(self, *arguments: Any, **options: Any) -> Iterator[Batch]:
        """Yield one batch of all indices for each draw."""
        return self._counted(self._source.each(*arguments, **options))

    def _counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            self._shown.advance(1, bytes_of(batch))


def bytes_of(batch: Any) -> int:
    """Add up the bytes of the tensors in a batch, whatever holds them."""
    if isinstance(batch, Tensor):
        return batch.nbytes
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return sum(map(bytes_of, parts))

"""The sparse hook of a model whose optimizers were handed over.

Annotations are evaluated here, since DDP looks at those of a hook.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flare_dist.comm.collectives import GradBucket
from flare_dist.hook.ddp import sparse_hook
from flare_dist.hook.state import SparseHookState
from flare_dist.hook.witnesses import GradientWatch, Witness


class WatchedHook:
    """`sparse_hook`, which also shows some of what it returns to the witnesses of `watches`.

    A copy has none; the copy of a model has no hook anyway, until it is attached again.
    """

    def __init__(self, watches: Sequence[GradientWatch]) -> None:
        self.watches = watches  # each checks the steps of one optimizer
        self.__name__ = sparse_hook.__name__  # PyTorch logs the names of hooks
        self.__qualname__ = sparse_hook.__qualname__

    def __reduce__(self) -> tuple[Any, ...]:
        return WatchedHook, ((),)

    def __call__(self, state: SparseHookState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        exchanged = sparse_hook(state, bucket)
        parameters = bucket.parameters()
        places: list[tuple[int, int, Witness]] = []
        for watch in self.watches:
            for place, witness in watch.witnesses_among(state, parameters).items():
                start = sum(parameter.numel() for parameter in parameters[:place])
                places.append((start, parameters[place].numel(), witness))
        return exchanged.then(partial(_show, places)) if places else exchanged


def _show(places: list[tuple[int, int, Witness]], exchanged: torch.futures.Future[Tensor]) -> Tensor:
    mean = exchanged.value()
    for start, numel, witness in places:
        witness.take(mean[start : start + numel])
    return mean

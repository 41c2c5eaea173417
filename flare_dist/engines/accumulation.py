"""Compute the gradient of a mini-batch in pieces (`engine.gradient_accumulation_steps`).

A piece weighs as many labels of it count. If the task ignores some labels, the weight of a piece is known only once all
of them have been seen: the gradient of the earlier pieces is then scaled down as each further one comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.data.batches import piece_sizes
from flare_dist.tasks.batch import count_examples, pair, split
from flare_dist.tasks.losses import at_least_one, counts_all, mean_loss
from flare_dist.tasks.task import Batch, Count, Task


def cut(batch: Batch, pieces: int, smallest: int) -> list[Batch]:
    """Cut a batch into at most so many pieces, of at least `smallest` examples each."""
    return [batch] if pieces == 1 else split(batch, piece_sizes(count_examples(batch), pieces, smallest))


def backward_in_pieces(
    task: Task,
    model: nn.Module,
    pieces: Sequence[Batch],
    gradient: Tensor,
    backward: Callable[[Tensor], None],
    rank_weight: Callable[[Count], Count] | None = None,
) -> tuple[Tensor, Count]:
    """Call `backward` on the weighted mean loss of each piece of a batch; returns the mean loss and its labels' count.

    `backward` adds to `gradient`, the model's flat gradient, which is zero at first and is scaled here in place.
    With `rank_weight` (labels that count -> this rank's weight in the mean over
    ranks) gradient and loss are those of this rank's part of the mean; a model in DDP exchanges its gradients with the
    last piece only.
    """
    # Known before the last piece only if each label counts.
    labels = sum(pair(piece)[1].numel() for piece in pieces) if len(pieces) > 1 and counts_all(task) else None
    losses: list[Tensor] = []
    seen: Count = 0
    for number, piece in enumerate(pieces, 1):
        is_last = number == len(pieces)
        with nullcontext() if is_last else _unsynchronised(model):
            loss, count = _mean_loss(task, model, piece)
            seen = seen + count
            if labels is not None:
                loss = loss * (count / labels)
            elif len(pieces) > 1:
                losses = _scaled(gradient, losses, (seen - count) / at_least_one(seen))
                loss = loss * (count / at_least_one(seen))
            losses.append(loss.detach())
            if rank_weight is not None and is_last:
                weight = rank_weight(seen)
                losses = _scaled(gradient, losses, weight)
                loss = loss * weight
            backward(loss)
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum(), seen


def _unsynchronised(model: nn.Module) -> AbstractContextManager[None]:
    """Keep DDP from exchanging gradients inside the block."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _scaled(gradient: Tensor, losses: list[Tensor], factor: Count) -> list[Tensor]:
    """Scale the gradient so far by `factor`, in place; returns the losses so far, scaled alike."""
    gradient.mul_(factor)
    return [loss * factor for loss in losses]


def _mean_loss(task: Task, model: nn.Module, batch: Batch) -> tuple[Tensor, Count]:
    """Compute the mean loss of a piece, and how many labels count in it; names the key of DDP's commonest error."""
    try:
        return mean_loss(task, model, batch)
    except RuntimeError as error:
        if "find_unused_parameters" not in str(error):
            raise
        raise RuntimeError(
            "gradients.find_unused_parameters: must be true for this model, some of whose parameters took no part in "
            "a step"
        ) from error

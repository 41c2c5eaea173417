"""A client's step on the ranks of a host: each computes a part of the batch, and all of them end alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flare_dist.comm.host import Host
from flare_dist.tasks.batch import count_examples, split
from flare_dist.tasks.losses import mean_loss
from flare_dist.tasks.task import Batch, Count, Task


class HostLoss(NamedTuple):
    """Hold the loss of a batch that a host has computed together."""

    own: Tensor  # to be backpropagated here; the mean of its gradients over the ranks is that of the mean loss
    mean: Tensor  # of the whole batch
    examples: Count  # labels that count in the whole batch


def loss_of_host(task: Task, model: Callable[..., Any], batch: Batch, host: Host) -> HostLoss:
    """Compute the mean loss of a batch, of which each rank of the host takes a part; all of them call it together."""
    part, is_own = _part(batch, host)
    loss, count = mean_loss(task, model, part)
    own = count * is_own
    sums = host.sum_(torch.stack([loss.detach() * own, torch.as_tensor(own, device=loss.device)]).double())
    total = sums[1].clamp(min=1)
    weighted = loss * (own * host.shards / total).to(loss.dtype)
    return HostLoss(weighted, (sums[0] / total).float(), sums[1])


def end_alike(host: Host, parameters: Tensor, buffers: Tensor, is_usable: bool = True) -> None:
    """Take the mean of the buffers over the ranks of a host, in place, and make NaN of all parameters if one's are.

    So it is if one of the ranks says that what it holds is not usable.
    """
    if host.shards > 1 and buffers.numel():
        buffers.copy_(host.sum_(buffers.clone()).div_(host.shards))
    if not host.all_true(is_usable and bool(parameters.isfinite().all())):
        parameters.fill_(torch.nan)


def _part(batch: Batch, host: Host) -> tuple[Batch, int]:
    """Return this rank's part of a batch, and 1; if there are fewer examples than ranks perhaps another's, and 0."""
    sizes = _sizes(count_examples(batch), host.shards)
    parts = split(batch, [size for size in sizes if size])
    return (parts[host.shard], 1) if sizes[host.shard] else (parts[0], 0)


def _sizes(examples: int, shards: int) -> list[int]:
    """Divide so many examples into parts that differ by one at most."""
    return [examples // shards + (shard < examples % shards) for shard in range(shards)]

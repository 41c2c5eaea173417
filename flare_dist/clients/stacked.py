"""Train many clients at once: every tensor of the model is held once for each, [clients, *shape].

A step is one forward and backward pass of them all (torch.func.vmap: linear layers become batched matrix products,
convolutions grouped ones) and one step of an ordinary optimizer, whose arithmetic is elementwise. Clients stand in the
order of their steps, most first: those that still train are always the first rows, and nothing is computed for the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flare_dist.tasks.batch import scores_of
from flare_dist.tasks.task import Task


@dataclass(frozen=True)
class Step:
    """Hold one mini-batch of each of the n clients that still train, filled up to the same length."""

    inputs: Tensor  # [n, b, *input_shape]
    labels: Tensor  # [n, b, *label_shape]
    sizes: Tensor  # int64 [n]: how many of the b examples count, the first ones


def stack(start: Mapping[str, Tensor], clients: int) -> list[nn.Parameter]:
    """Copy each tensor of `start` once for each client: [clients, *shape]."""
    copies = [value.detach().expand(clients, *value.shape) for value in start.values()]
    return [nn.Parameter(copy.clone(memory_format=torch.contiguous_format)) for copy in copies]


def forward(module: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Compute the scores [n, b, ...] of n clients, each with its own row of every parameter and of `inputs`."""

    def one(own: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        scores: Tensor = scores_of(torch.func.functional_call(module, dict(own), (batch,)))
        return scores

    scores: Tensor = torch.func.vmap(one)(parameters, inputs)
    return scores


def train_stacked(
    module: nn.Module,
    start: Mapping[str, Tensor],
    clients: int,
    steps: Iterable[Step],
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
    task: Task,
    gradient_clipping: float | None = None,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Train so many clients from the parameters `start`, by name; later steps may be of fewer clients, never of more.

    Returns (the trained parameters, each [clients, *shape], in the order of `start`; each client's sum of losses, and
    of what `losses_of` counts, [clients]), in the precision of `start`. The module's own parameters are not touched.
    """
    rows = stack(start, clients)
    ends = [row.data for row in rows]  # all of them: the parameters become the first few
    optimizer = make_optimizer(rows)
    loss_sums = torch.zeros(clients, dtype=rows[0].dtype, device=rows[0].device)
    counts = torch.zeros_like(loss_sums)
    for step in steps:
        training = len(step.labels)
        if training < len(rows[0]):
            _keep_first(optimizer, rows, training)
        leaves = [row.detach().requires_grad_() for row in rows]
        scores = forward(module, dict(zip(start, leaves)), step.inputs)
        sums, counting = losses_of(task, scores, step)
        # Of each client's mean loss. An unused parameter has the gradient 0, not none: weight decay counts there, too.
        weights = 1 / counting.clamp(min=1).to(sums.dtype)
        gradients = torch.autograd.grad(sums, leaves, weights, materialize_grads=True)
        if gradient_clipping is not None:
            gradients = _clip(gradients, gradient_clipping)
        for row, gradient in zip(rows, gradients):
            row.grad = gradient
        optimizer.step()
        loss_sums[:training].add_(sums.detach())
        counts[:training].add_(counting)
    return ends, loss_sums, counts


def losses_of(task: Task, scores: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Sum each client's losses in a step, and count: [n] each.

    Examples are counted, each with the mean of its labels' losses; or labels, if the task leaves some out.
    """
    if task.criterion is None:
        raise ValueError("task.name: the task has no criterion(outputs, labels); train one client after another")
    clients, length = step.labels.shape[:2]
    losses = task.criterion(scores.flatten(0, 1), step.labels.flatten(0, 1), reduction="none")
    fills_up = torch.arange(length, device=losses.device) >= step.sizes[:, None]
    if task.ignored is None:
        losses = losses.flatten(1).mean(1) if losses.dim() > 1 else losses
        return losses.view(clients, length).masked_fill(fills_up, 0).sum(1), step.sizes
    is_counted = (step.labels != task.ignored).flatten(2) & ~fills_up[:, :, None]
    losses = losses.view(is_counted.shape).masked_fill(fills_up[:, :, None], 0)
    return losses.flatten(1).sum(1), is_counted.flatten(1).sum(1)


def _keep_first(optimizer: Optimizer, rows: list[nn.Parameter], training: int) -> None:
    """Let only the first rows train on: the others stay as they are, and their optimizer's state is dropped."""
    for row in rows:
        row.grad = None
        row.data = row.data[:training]
        for name, value in optimizer.state[row].items():
            if isinstance(value, Tensor) and value.dim():
                optimizer.state[row][name] = value[:training]


def _clip(gradients: Sequence[Tensor], longest: float) -> tuple[Tensor, ...]:
    """Clip each client's gradient by its own norm, as torch.nn.utils.clip_grad_norm_ does."""
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    factor = (longest / (norms + 1e-6)).clamp(max=1.0)
    return tuple(gradient * factor.view(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients)

"""Many clients trained as one batch: the fast path beside `LocalTrainer`, with the same result to rounding.

Every tensor of the model is held once for each client, [clients, *shape], and a step is one forward and backward pass
of them all (torch.func.vmap: linear layers become batched matrix products, convolutions grouped ones) and one step of
an ordinary optimizer, whose arithmetic is elementwise. So a GPU is given the work of a hundred small clients with the
kernel launches of one. Clients stand in the order of their steps, most first: those that still train are always the
first rows, and nothing is computed for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer

from flare_dist.clients.client import ClientResult, LocalTrainer
from flare_dist.clients.optimizers import OPTIMIZERS
from flare_dist.data.batches import BatchSource
from flare_dist.data.partition import Partition
from flare_dist.seeding import generator
from flare_dist.tasks.task import Task


@dataclass(frozen=True)
class Step:
    """One mini-batch of each of the n clients that still train, filled up to the same length."""

    inputs: Tensor  # [n, b, *input_shape]
    labels: Tensor  # [n, b, *label_shape]
    sizes: Tensor  # int64 [n]: how many of the b examples count, the first ones


def stack(start: Mapping[str, Tensor], clients: int) -> list[nn.Parameter]:
    """The tensors of `start` once for each client: [clients, *shape]."""
    copies = [value.detach().expand(clients, *value.shape) for value in start.values()]
    return [nn.Parameter(copy.clone(memory_format=torch.contiguous_format)) for copy in copies]


def forward(module: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Scores [n, b, ...] of n clients, each with its own row of every parameter and of `inputs`, [n, b, ...]."""

    def one(own: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        scores: Tensor = torch.func.functional_call(module, dict(own), (batch,))
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
    """Local training of so many clients from the parameters `start` by name; `steps` may get fewer clients, not more.

    Returns (what the parameters have become, each [clients, *shape], in the order of `start`; each client's sum of
    losses, and of what `losses_of` counts, [clients]), in the precision of `start`. The module's own parameters are not
    touched.
    """
    rows = stack(start, clients)
    ends = [row.data for row in rows]  # all of them, also when the parameters have become the first few
    optimizer = make_optimizer(rows)
    loss_sums = torch.zeros(clients, dtype=rows[0].dtype, device=rows[0].device)
    counts = torch.zeros_like(loss_sums)
    for step in steps:
        training = len(step.labels)
        if training < len(rows[0]):
            _leave(optimizer, rows, training)
        leaves = [row.detach().requires_grad_() for row in rows]
        scores = forward(module, dict(zip(start, leaves)), step.inputs)
        sums, counting = losses_of(task, scores, step)
        # Of each client's mean loss. What it does not use has the gradient 0, not none: weight decay counts there, too.
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
    """Each client's sum of losses in a step, and its count: [n] each.

    Examples are counted, each with the mean of its labels' losses; or labels, if the task leaves some out.
    """
    assert task.criterion is not None
    clients, length = step.labels.shape[:2]
    losses = task.criterion(scores.flatten(0, 1), step.labels.flatten(0, 1), reduction="none")
    fills_up = torch.arange(length, device=losses.device) >= step.sizes[:, None]
    if task.ignored is None:
        losses = losses.flatten(1).mean(1) if losses.dim() > 1 else losses
        return losses.view(clients, length).masked_fill(fills_up, 0).sum(1), step.sizes
    is_counted = (step.labels != task.ignored).flatten(2) & ~fills_up[:, :, None]
    losses = losses.view(is_counted.shape).masked_fill(fills_up[:, :, None], 0)
    return losses.flatten(1).sum(1), is_counted.flatten(1).sum(1)


def _leave(optimizer: Optimizer, rows: list[nn.Parameter], training: int) -> None:
    """Only the first rows train on: what the others have become stays as it is, and their optimizer is dropped."""
    for row in rows:
        row.grad = None
        row.data = row.data[:training]
        for name, value in optimizer.state[row].items():
            if isinstance(value, Tensor) and value.dim():
                optimizer.state[row][name] = value[:training]


def _clip(gradients: Sequence[Tensor], longest: float) -> tuple[Tensor, ...]:
    """torch.nn.utils.clip_grad_norm_ of each client by itself."""
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    factor = (longest / (norms + 1e-6)).clamp(max=1.0)
    return tuple(gradient * factor.view(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients)


@dataclass(frozen=True)
class Batches:
    """The mini-batches of a round of C clients, the client with most steps first, drawn at once.

    So a round has one transfer to the device and none for an epoch, which would make the host wait for it.
    """

    source: BatchSource
    chosen: Tensor  # int64 [steps, C, b]: the examples
    moves: Tensor | None  # int64 [steps, C, b, 3]: how each is moved
    sizes: Tensor  # int64 [steps, C]: the examples that count
    training: list[int]  # of each step: how many clients take it

    def __iter__(self) -> Iterator[Step]:
        for step, n in enumerate(self.training):
            chosen = self.chosen[step, :n]
            moves = None if self.moves is None else self.moves[step, :n].flatten(0, 1)
            inputs, labels = self.source.prepare(chosen.flatten(), moves)
            yield Step(inputs.unflatten(0, chosen.shape), labels.unflatten(0, chosen.shape), self.sizes[step, :n])


class BatchedTrainer:
    """Trains the clients of a rank as `trainer` does one after another, `most` of them at a time as one batch.

    For what allows it see `flare_dist.clients.batchable` and `flare_dist.rounds.together`.
    """

    def __init__(self, trainer: LocalTrainer, most: int, task: Task) -> None:
        self.trainer = trainer
        self.task = task
        self.most = most

    def groups(self, clients: Sequence[int], partition: Partition | Sequence[Tensor]) -> list[list[int]]:
        """What to train as one batch each: clients with about as many steps, most first."""
        by_steps = sorted(clients, key=lambda c: self.trainer.config.steps_with(len(partition[c])), reverse=True)
        return [by_steps[first : first + self.most] for first in range(0, len(by_steps), self.most)]

    def train(
        self,
        group: Sequence[int],
        round_: int,
        partition: Partition | Sequence[Tensor],
        global_parameters: Tensor,
        global_buffers: Tensor,
    ) -> list[ClientResult]:
        """Train one of `groups` from the global model; the results in client order, each with a delta of its own.

        `partition` has the examples of every client (int64 indices).
        """
        model, config, lr = self.trainer.model, self.trainer.config, self.trainer.lr(round_)
        model.load(global_parameters, global_buffers)
        model.module.train()
        start = dict(model.layout.views(global_parameters))
        batches = self.draw(group, round_, partition)

        def make_optimizer(parameters: list[nn.Parameter]) -> Optimizer:
            return OPTIMIZERS[config.optimizer](parameters, lr, config.momentum, config.weight_decay)

        ends, loss_sums, counts = train_stacked(
            model.module, start, len(group), batches, make_optimizer, self.task, config.gradient_clipping
        )
        deltas = torch.cat([end.flatten(1) for end in ends], dim=1).sub_(global_parameters)
        losses = (loss_sums / counts.clamp(min=1)).tolist()
        unmoved = torch.zeros_like(global_buffers)
        results = [
            ClientResult(client, len(partition[client]), loss, delta, unmoved)
            for client, loss, delta in zip(group, losses, deltas)
        ]
        return sorted(results, key=lambda result: result.client)

    def draw(self, group: Sequence[int], round_: int, partition: Partition | Sequence[Tensor]) -> Batches:
        """The batches that `LocalTrainer` draws for each client of `group`, which stand in the order of their steps."""
        source, device = self.trainer.source, self.trainer.source.labels.device
        width = self.trainer.config.largest_batch(len(partition[client]) for client in group)
        drawn = [self._draw_one(client, round_, partition[client], width) for client in group]
        chosen, moves, sizes = zip(*drawn)
        moved = None if moves[0] is None else pad_sequence(list(moves)).to(device)
        training = [sum(step < len(own) for own in sizes) for step in range(len(sizes[0]))]
        return Batches(
            source, pad_sequence(list(chosen)).to(device), moved, pad_sequence(list(sizes)).to(device), training
        )

    def _draw_one(self, client: int, round_: int, examples: Tensor, width: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """One client's (examples [steps, width], their moves [steps, width, 3], how many count [steps]), on the CPU."""
        assert len(examples), f"client {client} has no examples"
        steps = self.trainer.config.steps_with(len(examples))
        shuffle = generator(self.trainer.seed, "shuffle", round_, client)
        sizes = torch.tensor(self.trainer.config.batch_sizes(len(examples)))
        first, within = sizes.cumsum(0) - sizes, torch.arange(width)
        # Filled up with an example of the same batch: if it is not finite, nothing was.
        places = first[:, None] + torch.where(within < sizes[:, None], within, 0)
        epochs = [self.trainer.source.draw(examples, shuffle) for _ in range(-(-steps // len(places)))]
        chosen = torch.cat([order[places] for order, _ in epochs])[:steps]
        moves = [moved[places] for _, moved in epochs if moved is not None]
        return chosen, torch.cat(moves)[:steps] if moves else None, sizes.repeat(len(epochs))[:steps]

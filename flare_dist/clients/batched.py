"""Train many clients as one batch: the fast path beside `LocalTrainer`, with the same result to rounding.

A GPU is given the work of a hundred small clients with the kernel launches of one (`stacked.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer

from flare_dist.clients.client import ClientResult, LocalTrainer
from flare_dist.clients.optimizers import OPTIMIZERS
from flare_dist.clients.stacked import Step, train_stacked
from flare_dist.data.batches import BatchSource
from flare_dist.data.partition import Partition
from flare_dist.seeding import generator
from flare_dist.tasks.task import Task


@dataclass(frozen=True)
class Batches:
    """Yield the mini-batches of a round of C clients, the client with most steps first, drawn at once.

    A round has one transfer to the device, not one for each epoch, at which the host would wait.
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
    """Train the clients of a rank as `trainer` does one after another, `most` of them at a time as one batch.

    For what allows it see `flare_dist.clients.batchable` and `flare_dist.rounds.one_batch`.
    """

    def __init__(self, trainer: LocalTrainer, most: int, task: Task) -> None:
        self.trainer = trainer
        self.task = task
        self.most = most

    def groups(self, clients: Sequence[int], partition: Partition | Sequence[Tensor]) -> list[list[int]]:
        """Divide clients into groups to be trained as one batch each, of about as many steps, most first."""
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
        """Train one of `groups` from the global model; returns the results in client order, with a delta each.

        `partition` has the examples of every client (int64 indices).
        """
        model = self.trainer.model
        config = self.trainer.config
        lr = self.trainer.lr(round_)
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
        """Draw the batches that `LocalTrainer` draws for each client of `group`, which must be in order of steps."""
        source = self.trainer.source
        assert isinstance(source, BatchSource), "examples of a Dataset are read for one client after another"
        device = source.device
        width = self.trainer.config.largest_batch(len(partition[client]) for client in group)
        drawn = [self._draw_one(source, client, round_, partition[client], width) for client in group]
        chosen, moves, sizes = zip(*drawn)
        moved = None if moves[0] is None else pad_sequence(list(moves)).to(device)
        training = [sum(step < len(own) for own in sizes) for step in range(len(sizes[0]))]
        return Batches(
            source, pad_sequence(list(chosen)).to(device), moved, pad_sequence(list(sizes)).to(device), training
        )

    def _draw_one(
        self, source: BatchSource, client: int, round_: int, examples: Tensor, width: int
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Draw one client's (examples [steps, width], moves [steps, width, 3], how many count [steps]), on the CPU."""
        assert len(examples), f"client {client} has no examples"
        steps = self.trainer.config.steps_with(len(examples))
        shuffle = generator(self.trainer.seed, "shuffle", round_, client)
        sizes = torch.tensor(self.trainer.config.batch_sizes(len(examples)))
        first = sizes.cumsum(0) - sizes
        within = torch.arange(width)
        # Filled up with an example of the same batch: if it is not finite, nothing was.
        places = first[:, None] + torch.where(within < sizes[:, None], within, 0)
        epochs = [source.draw(examples, shuffle) for _ in range(-(-steps // len(places)))]
        chosen = torch.cat([order[places] for order, _ in epochs])[:steps]
        moves = [moved[places] for _, moved in epochs if moved is not None]
        return chosen, torch.cat(moves)[:steps] if moves else None, sizes.repeat(len(epochs))[:steps]

"""One client's round: local training from the global parameters to a model delta.

A rank has one `LocalTrainer` and lends it to the clients it hosts, one after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import repeat
from types import MappingProxyType

import torch
from torch import Tensor

from flare_dist.algorithms.algorithm import Algorithm, LocalContext, LocalWork, Penalty, as_it_is
from flare_dist.algorithms.methods import algorithm_of
from flare_dist.clients.config import ClientsConfig
from flare_dist.clients.kept_optimizer import OPTIMIZER, KeptOptimizer
from flare_dist.clients.local_model import LocalModel
from flare_dist.data.batches import Batches
from flare_dist.schedules import parse_schedule, set_lr
from flare_dist.seeding import derive_seed, generator, seed_draws
from flare_dist.sparse_training.local_mask import LocalMask
from flare_dist.tasks.task import Batch, Count


@dataclass(frozen=True)
class ClientResult:
    """One client's result. `model_delta` is the trainer's own vector and changes with the next client."""

    client: int
    num_examples: int
    train_loss: float  # mean over the labels that counted
    model_delta: Tensor  # float32 [total]: local - global
    buffer_delta: Tensor  # float32 [b]: change of the model's floating-point buffers; of a constant exactly zero
    mask: Tensor | None = None  # bool [total]: of a sparse model, the mask that the client ended with
    squares: Tensor | None = None  # float32 [total]: sums of squared gradients, if the server asks for them

    @property
    def is_finite(self) -> bool:
        """Tell whether loss, delta and buffers are finite; one pass each, without a temporary."""
        vectors = [v for v in (self.model_delta, self.buffer_delta) if v.numel()]
        extremes = torch.stack([extreme for v in vectors for extreme in (v.amax(), v.amin())])
        return math.isfinite(self.train_loss) and bool(extremes.isfinite().all())


class LocalTrainer:
    """The local training loop of this rank, over a model whose flat vectors are allocated once.

    `algorithm` may add a penalty to the loss; by default it is the clients' objective. `of_all_shards` puts a vector
    together of which each rank of the host has a part. With `kept` each client goes on with its own optimizer.
    """

    def __init__(
        self,
        model: LocalModel,
        source: Batches,
        config: ClientsConfig,
        rounds: int,
        seed: int,
        algorithm: Algorithm | None = None,
        of_all_shards: Callable[[Tensor], Tensor] | None = None,
        kept: KeptOptimizer | None = None,
    ) -> None:
        self.model = model
        self.kept = kept
        self.source = source
        self.config = config
        self.rounds = rounds
        self.seed = seed
        self.algorithm = algorithm or algorithm_of(config)
        self.of_all_shards = of_all_shards or as_it_is
        self.schedule = parse_schedule(config.lr_schedule, "clients.lr_schedule", config.lr_schedule_options)
        self.smallest = config.smallest
        self.steps_with = cache(config.steps_with)  # once for all clients with as many examples
        self.epoch_steps = cache(config.epoch_steps)
        self.model_delta = torch.empty_like(model.parameters)

    def lr(self, round_: int) -> float:
        """Return the local learning rate of a round; work before the rounds has that of the first."""
        return self.config.lr * self.schedule(max(round_, 1), self.rounds)

    def set_lr(self, round_: int) -> None:
        """Give the local optimizer the learning rate of a round."""
        set_lr(self.model.optimizer, self.lr(round_))

    def work(self, round_: int, num_examples: int) -> LocalWork:
        """Return the numbers of a client's round on so many examples, as the algorithm has them."""
        steps = self.steps_with(num_examples)
        return self.algorithm.brief(LocalWork(round_, steps, self.lr(round_), self.config.momentum))

    def train(
        self,
        client: int,
        round_: int,
        examples: Tensor,
        global_parameters: Tensor,
        global_buffers: Tensor,
        state: dict[str, Tensor],
        mask: LocalMask | None = None,
        told: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> ClientResult:
        """Train on `examples` (int64 indices) from the global model; `state` is the client's memory.

        It is only read, but for the optimizer that is kept there if the result is finite.
        `told` is what the server remembers for the algorithm, as far as clients are told.
        With a `mask` the model is sparse, and the delta counts only if the resulting mask is true.
        """
        start = global_parameters
        if self.config.step_ahead:  # SAEF: the delta is measured from where the client starts
            start = torch.add(global_parameters, state["residual"], alpha=self.config.step_ahead)
        self.model.load(start, global_buffers)
        if self.model.is_rounded:  # or the server would be told of the rounding as if it had been learnt
            start = self.model.parameters.clone()
        if mask is not None:
            self.model.mask_(mask.factor)
        self.model.reset()
        if self.kept:
            self.kept.read(state[OPTIMIZER])
        context = LocalContext(
            self.model.layout,
            round_,
            self.lr(round_),
            self.config.momentum,
            global_parameters,
            state,
            told,
            starts_at_global=not self.config.step_ahead and mask is None and not self.model.is_rounded,
            mask=mask.mask if mask else None,
            of_all_shards=self.of_all_shards,
        )
        penalty = self.algorithm.penalty(context)
        train_loss = self.run_steps(client, round_, examples, penalty, mask)
        torch.sub(self.model.parameters, start, out=self.model_delta)
        if penalty is not None and penalty.moved is not None:
            self.model_delta.sub_(penalty.moved)
        buffer_delta = self.model.buffers - global_buffers
        result = ClientResult(client, len(examples), train_loss, self.model_delta, buffer_delta)
        if self.kept and result.is_finite:
            self.kept.write(state[OPTIMIZER])
        return replace(result, mask=mask.mask, squares=mask.squares) if mask else result

    def run_steps(
        self,
        client: int,
        round_: int,
        examples: Tensor,
        penalty: Penalty | None = None,
        mask: LocalMask | None = None,
    ) -> float:
        """Take the local steps of one round from wherever the model stands; returns the mean training loss."""
        seed_draws(derive_seed(self.seed, "dropout", round_, client), self.model.parameters.device)
        self.set_lr(round_)
        self.model.module.train()
        loss_sum = torch.zeros((), device=self.model.parameters.device)
        seen: Count = 0
        step = -1
        for step, batch in enumerate(self._batches(client, round_, examples)):
            if penalty is not None and step == penalty.steps:
                self.model.optimizer.state.clear()
                penalty = None
            add_gradient = penalty.add_gradient if penalty else None
            if mask is not None:
                add_gradient = mask.watch(step + 1, add_gradient)
            loss, count = self.model.step(batch, add_gradient)
            if mask is not None:
                self._apply(mask, step + 1)
            if isinstance(count, Tensor):
                loss_sum.add_(loss * count)
            else:
                loss_sum.add_(loss, alpha=count)
            seen = seen + count
        self.model.collect()
        if step < 0:  # no example of the client can be read: its update is left out
            return math.nan
        return loss_sum.item() / max(float(seen), 1.0)

    def _apply(self, mask: LocalMask, step: int) -> None:
        """Zero the weights that are not active, and update the mask if it is due; weights that grow begin at zero."""
        self.model.mask_(mask.factor)
        if step in mask.rates:
            self.model.collect()
            growing = mask.prune(self.model.parameters, step)
            self.model.mask_(mask.factor)
            mask.grow(growing)

    def _batches(self, client: int, round_: int, examples: Tensor) -> Iterator[Batch]:
        """Yield the batches of `local_epochs` passes, or `local_steps` of them, each pass freshly shuffled."""
        assert len(examples), f"client {client} has no examples"
        shuffle = generator(self.seed, "shuffle", round_, client)
        epoch = (examples, shuffle)
        steps = self.config.local_steps
        draws = repeat(epoch, self.config.local_epochs) if steps is None else repeat(epoch)
        return self.source.passes(draws, self.config.batch_size, self.smallest, steps)

"""Prototypes of the AdamW study: ways of exchange that the package does not have, and an optimizer that torch has not.

Each way is called as adamw_ways.py's own, with (model, settings of the hook, betas), and returns the hook's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from flare_dist import SparseHookState, sparse_hook
from flare_dist.comm.collectives import GradBucket
from flare_dist.hook.buckets import ModelMemory
from flare_dist.hook.clipping import TINY
from flare_dist.hook.ddp import exchange_gradients
from flare_dist.hook.memory import BucketMemory

Betas = tuple[float, float]


def attach_chosen_by_update(model: DistributedDataParallel, settings: dict[str, Any], betas: Betas) -> SparseHookState:
    """Send gradients, but choose them by the size of the update that Adam would make of them on this rank."""
    state = ChosenByUpdate(model, **settings)
    model.register_comm_hook(state, sparse_hook)
    return state


class ChosenByUpdate(SparseHookState):
    """Choose entries by abs(residual) / (sqrt(v) + eps), v being the rank's own second moment; a prototype.

    v is neither saved nor taken back with a step, and begins anew if DDP forms other buckets, which it does once.
    """

    def bucket_of(self, parameters: Sequence[Tensor]) -> BucketMemory:
        bucket = super().bucket_of(parameters)
        if "choose" not in vars(bucket.selection):
            _choose_by_update(bucket)
        return bucket


def _choose_by_update(bucket: BucketMemory, beta2: float = 0.99, eps: float = 1e-8) -> None:
    second_moment = torch.zeros(bucket.layout.total)
    steps = 0
    choose = bucket.selection.choose

    def note(gradient: Tensor) -> None:
        nonlocal steps
        steps += 1
        second_moment.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)

    def choose_by_update(update: Tensor, draw: tuple[int, int, int]) -> Tensor:
        root = second_moment.div(1 - beta2**steps).sqrt_().add_(eps)
        return choose(update / root, draw)

    bucket.precondition = note  # type: ignore[method-assign]
    bucket.selection.choose = choose_by_update  # type: ignore[method-assign]


def attach_shared_moment(model: DistributedDataParallel, settings: dict[str, Any], betas: Betas) -> SparseHookState:
    """Send each rank's Adam update by the mean second moment of all ranks; a prototype.

    The moments are averaged densely in every step, which is not counted: the most that sharing them could give.
    """
    return _with_moment(model, settings, betas, lambda gradient: _mean_over_ranks(gradient.square()))


def attach_moment_of_mean(model: DistributedDataParallel, settings: dict[str, Any], betas: Betas) -> SparseHookState:
    """Send each rank's Adam update by the second moment of the mean gradient, as if it had all ranks' batch.

    A prototype: the mean is taken densely in every step, which is not counted.
    """
    return _with_moment(model, settings, betas, lambda gradient: _mean_over_ranks(gradient.clone()).square_())


def _mean_over_ranks(vector: Tensor) -> Tensor:
    dist.all_reduce(vector)
    return vector.div_(dist.get_world_size())


def _with_moment(
    model: DistributedDataParallel, settings: dict[str, Any], betas: Betas, square: Callable[[Tensor], Tensor]
) -> SparseHookState:
    """Attach without a preconditioner, and make updates by a second moment of `square` of a bucket's gradient.

    It is neither saved nor taken back with a step, and begins anew if DDP forms other buckets, which it does once.
    """
    state = WithMoment(model, **settings)
    state.betas = betas
    state.square = square
    model.register_comm_hook(state, sparse_hook)
    return state


class WithMoment(SparseHookState):
    """Replace the gradients of a bucket by Adam's updates."""

    betas: Betas
    square: Callable[[Tensor], Tensor]

    def bucket_of(self, parameters: Sequence[Tensor]) -> BucketMemory:
        bucket = super().bucket_of(parameters)
        if "precondition" not in vars(bucket):
            bucket.precondition = self._updates_of(bucket)  # type: ignore[method-assign,assignment]
        return bucket

    def _updates_of(self, bucket: BucketMemory, eps: float = 1e-8, limit: float = 3.0) -> Callable[[Tensor], None]:
        second_moment = torch.zeros(bucket.layout.total)
        beta2 = self.betas[1]
        steps = 0

        def update(gradient: Tensor) -> None:
            nonlocal steps
            steps += 1
            second_moment.lerp_(self.square(gradient), 1 - beta2)
            root = second_moment.div(1 - beta2**steps).sqrt_().add_(eps)
            gradient.div_(root).clamp_(-limit, limit)

        return update


def attach_led(model: DistributedDataParallel, settings: dict[str, Any], betas: Betas) -> SparseHookState:
    """Send the entries that one rank chooses, another in each step (ScaleCom, Chen et al. 2020); a prototype.

    The indices are broadcast before the exchange, in which every rank still sends them: its count of bytes is too high
    by the indices of all ranks but one.
    """
    state = LedChoice(model, **settings)
    model.register_comm_hook(state, sparse_hook)
    return state


class LedChoice(SparseHookState):
    """Choose by the residual of the rank whose turn it is."""

    def bucket_of(self, parameters: Sequence[Tensor]) -> BucketMemory:
        bucket = super().bucket_of(parameters)
        if "choose" not in vars(bucket.selection):
            _choose_by_leader(bucket)
        return bucket


def _choose_by_leader(bucket: BucketMemory) -> None:
    choose = bucket.selection.choose

    def choose_by_leader(update: Tensor, draw: tuple[int, int, int]) -> Tensor:
        _, step, _ = draw
        indices = choose(update, draw)
        dist.broadcast(indices, step % dist.get_world_size())
        return indices

    bucket.selection.choose = choose_by_leader  # type: ignore[method-assign]


def attach_one_selection(model: DistributedDataParallel, settings: dict[str, Any], betas: Betas) -> SparseHookState:
    """Send each rank's own Adam update, chosen by one selection over the whole model; a prototype.

    All buckets wait for the last one, and are exchanged as one vector.
    """
    state = SparseHookState(model, preconditioner="adam", betas=betas, **settings)
    state.config = replace(state.config, scope="global")
    state.memory = ModelMemory(state.config, state.preconditioning)
    waiting: list[tuple[list[Tensor], Tensor, torch.futures.Future[Tensor]]] = []

    def collect(state: SparseHookState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        promised: torch.futures.Future[Tensor] = torch.futures.Future()
        waiting.append((bucket.parameters(), bucket.buffer(), promised))
        if bucket.is_last():
            state.begin_step()
            parameters = [parameter for own, _, _ in waiting for parameter in own]
            mean = exchange_gradients(state, parameters, torch.cat([buffer for _, buffer, _ in waiting])).wait()
            for part, (_, _, future) in zip(mean.split([buffer.numel() for _, buffer, _ in waiting]), waiting):
                future.set_result(part.clone())  # DDP reads it from the beginning of its storage
            waiting.clear()
        return promised

    collect.__annotations__.clear()  # DDP compares them with classes, and here they are text
    model.register_comm_hook(state, collect)
    return state


def attach_clipped_by_last_norm(
    model: DistributedDataParallel, settings: dict[str, Any], betas: Betas
) -> SparseHookState:
    """Clip each rank's gradient by the norm that it had in the step before, so that no bucket waits; a prototype.

    `clip_norm` of the hook holds buckets back until the norm of this step is known.
    """
    limit = settings["clip_norm"]
    state = SparseHookState(model, **settings | {"clip_norm": None})
    last = torch.zeros(())
    norms: list[Tensor] = []

    def scale(state: SparseHookState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal last
        norms.append(bucket.buffer().norm())
        bucket.buffer().mul_((limit / (last + TINY)).clamp(max=1))
        if bucket.is_last():
            last = torch.stack(norms).norm()
            norms.clear()
        return sparse_hook(state, bucket)

    scale.__annotations__.clear()  # DDP compares them with classes, and here they are text
    model.register_comm_hook(state, scale)
    return state


class Lion(Optimizer):
    """Step by the sign of a momentum (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms")."""

    def __init__(self, params: Iterable[Any], lr: float, betas: Betas) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(momentum.lerp(parameter.grad, 1 - beta1).sign_(), alpha=group["lr"])
                momentum.lerp_(parameter.grad, 1 - beta2)

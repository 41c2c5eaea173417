"""What the AdamW study compares: what the hook sends, and the optimizer that steps by what comes back.

A setting of a grid names a way and, if it needs them, density, betas, value_codec and more settings of the hook.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from adamw_rows import Setting
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

import flare_dist
from flare_dist import SparseHookState, sparse_hook
from flare_dist.comm.collectives import GradBucket
from flare_dist.hook.buckets import ModelMemory
from flare_dist.hook.clipping import TINY
from flare_dist.hook.ddp import exchange_gradients
from flare_dist.hook.memory import BucketMemory

WEIGHT_DECAY = 0.1  # of matrices

Betas = tuple[float, float]


class Way(NamedTuple):
    """How gradients are exchanged, what steps, and the norm to which gradients are clipped before it (inf for none)."""

    exchange: Callable[[DistributedDataParallel, dict[str, Any], Betas], SparseHookState]
    optimizer: Callable[[nn.Module, float, Betas], Optimizer]
    clip: float


def attach(model: DistributedDataParallel, settings: dict[str, Any], betas: Betas) -> SparseHookState:
    """Send gradients, as `attach` does by default."""
    return flare_dist.attach(model, **settings)


def attach_adam(model: DistributedDataParallel, settings: dict[str, Any], betas: Betas) -> SparseHookState:
    """Send each rank's own Adam update."""
    return flare_dist.attach(model, preconditioner="adam", betas=betas, **settings)


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


def adamw(model: nn.Module, lr: float, betas: Betas) -> Optimizer:
    """Make torch's AdamW, in one pass over the weights."""
    return AdamW(groups(model), lr=lr, betas=betas, fused=True)


def sgd(model: nn.Module, lr: float, betas: Betas) -> Optimizer:
    """Make SGD without momentum, which takes updates as they are and decays weights as AdamW does."""
    return SGD(groups(model), lr=lr, fused=True)


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Divide the trained parameters into those that decay, which are matrices and kernels, and those that do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.dim() >= 2]
    others = [parameter for parameter in trained if parameter.dim() < 2]
    divided = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return [group for group in divided if group["params"]]


WAYS = {
    "dense": Way(attach, adamw, clip=1.0),
    "ec": Way(attach, adamw, clip=math.inf),
    "ec_clipped_by_last_norm": Way(attach_clipped_by_last_norm, adamw, clip=math.inf),
    "p": Way(attach_adam, sgd, clip=math.inf),
    "p_one_selection": Way(attach_one_selection, sgd, clip=math.inf),
    "s": Way(attach_chosen_by_update, adamw, clip=math.inf),
}


def hook_settings(setting: Setting) -> dict[str, Any]:
    """Collect the settings of the hook."""
    more = dict(pair.split("=", 1) for pair in setting.settings.split())
    known = {"density": setting.density, "value_codec": setting.value_codec}
    return known | {name: _value(text) for name, text in more.items()}


def _value(text: str) -> Any:
    """Read a number, or take a word as it is; inf is a number."""
    if text == "inf":
        return math.inf
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text

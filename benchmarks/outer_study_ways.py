"""What the study of outer steps compares: the exchange between replicas, and the optimizers inside.

All but the hook and those named after Muon take AdamW inside, as the study of AdamW does: betas of 0.9 and 0.99, a
weight decay of 0.1 of matrices, gradients clipped to a norm of 1 (each replica its own, if it trains alone). The others
have torch's Muon for the matrices of blocks, at the same rate (`adjust_lr_fn="match_rms_adamw"`), and AdamW for
embeddings, the output layer and vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

from adamw_prototypes import Betas
from adamw_ways import WAYS, WEIGHT_DECAY, adamw, read_settings
from outer_study_rows import Run
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import flare_dist
from flare_dist.hook.outer_settings import PRESETS
from flare_dist.hook.outer_steps import OuterSteps
from flare_dist.hook.state import SparseHookState

BETAS = (0.9, 0.99)
CLIP = 1.0


class Replica(NamedTuple):
    """A replica that trains: what is called, what steps, and what exchanges."""

    model: nn.Module
    optimizers: list[Optimizer]
    exchange: SparseHookState | OuterSteps
    clip: float = CLIP  # the norm to which its gradients are clipped


Make = Callable[[nn.Module, Run], Replica]


def in_backward(way: str, betas: Betas, **defaults: Any) -> Make:
    """Exchange gradients in each step, by a way of the study of AdamW."""

    def make(model: nn.Module, run: Run) -> Replica:
        chosen = WAYS[way]
        ddp = DistributedDataParallel(model)
        hook = chosen.exchange(ddp, defaults | read_settings(run.setting.settings), betas)
        return Replica(ddp, [chosen.optimizer(ddp, run.lr, betas)], hook, chosen.clip)

    return make


def in_windows(preset: str, inner: Callable[[nn.Module, float], list[Optimizer]]) -> Make:
    """Train alone for a window, and exchange what weights have moved, as the preset does."""

    def make(model: nn.Module, run: Run) -> Replica:
        options = PRESETS[preset]["outer_options"] | {"lr": run.outer_lr}
        more = read_settings(run.setting.settings)
        outer = flare_dist.outer(model, preset=preset, every=run.setting.every, outer_options=options, **more)
        return Replica(model, inner(model, run.lr), outer)

    return make


def muon_in_backward(model: nn.Module, run: Run) -> Replica:
    """Exchange dense gradients in each step, and step by Muon."""
    ddp = DistributedDataParallel(model)
    return Replica(ddp, muon_and_adamw(model, run.lr), flare_dist.attach(ddp, density=1.0))


def only_adamw(model: nn.Module, lr: float) -> list[Optimizer]:
    """Make AdamW for everything."""
    return [adamw(model, lr, BETAS)]


def muon_and_adamw(model: nn.Module, lr: float) -> list[Optimizer]:
    """Make Muon for the matrices of blocks, and AdamW for all the rest; the output layer is an embedding here."""
    from torch.optim import Muon  # torch 2.9 and later

    embeddings = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    matrices = [weight for weight in model.parameters() if weight.dim() == 2 and id(weight) not in embeddings]
    by_muon = {id(weight) for weight in matrices}
    others = nn.ParameterList([weight for weight in model.parameters() if id(weight) not in by_muon])
    muon = Muon(matrices, lr=lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    muon.step = without_bfloat16(muon.step)  # type: ignore[assignment,method-assign]
    return [muon, adamw(others, lr, BETAS)]


def without_bfloat16(step: Callable[[], Any]) -> Callable[[], Any]:
    """Let Muon's iteration keep float32: cores without instructions for bfloat16 take five times as long in it."""

    def kept() -> Any:
        with patch.object(Tensor, "bfloat16", lambda tensor: tensor):
            return step()

    return kept


METHODS: dict[str, Make] = {
    "ddp": in_backward("dense", BETAS, density=1.0),
    "hook": in_backward("p", (0.0, 0.99), density=0.01),
    "diloco": in_windows("diloco", only_adamw),
    "sparseloco": in_windows("sparseloco", only_adamw),
    "muloco": in_windows("muloco", muon_and_adamw),
    "local_sgd": in_windows("local_sgd", only_adamw),
    "muon": muon_in_backward,
    "muon_steps": in_windows("local_sgd", muon_and_adamw),  # with every=1 and density=0.01
}
OVERLAPS = ("ddp", "hook", "muon")  # what sends while backward goes on


def set_rates(replica: Replica, lr: float) -> None:
    """Set the rate of all optimizers inside."""
    for optimizer in replica.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def clip(replica: Replica) -> None:
    """Clip the gradients of a replica, if that is left to the loop."""
    if math.isfinite(replica.clip):
        nn.utils.clip_grad_norm_(replica.model.parameters(), replica.clip)

"""FLARE: a client's residual pulls its local training to where error feedback has yet to take the model.

Ran Greidi, Kobi Cohen, "Sparse Training for Federated Learning with Regularized Error Correction", 2023,
https://arxiv.org/abs/2312.13795, and the authors' code.

In round r a client minimises f(w) + tau_r * sum_li M_li * |w_li - (w_t,li + A_li)| for its first local steps, with
its residual A, tau_r = tau / decay^r and the mask M_l = |A_l| > its percentile, strictly, tensor by tensor. The
gradient of the penalty is tau_r * M * sign((w - w_t) - A): the model is pulled to what was not sent yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
import torch.nn.functional as F
from torch import Tensor

from flare_dist.algorithms.algorithm import Algorithm, LocalContext, Penalty
from flare_dist.algorithms.percentile import magnitude_percentile
from flare_dist.conditions import conserves, has_no_residual, trains
from flare_dist.errors import check_least, check_range
from flare_dist.exclusion import Exclusion

_CHUNK = 2**16  # entries handled at once on a CPU, so that temporaries stay in its cache


@dataclass(frozen=True)
class FlareConfig:
    """Settings of the flare objective.

    Args:
        tau: strength of the pull; 0 is plain local training.
        decay: in round r the strength is tau / decay^r; 1 keeps it.
        percentile: only entries whose residual is larger than this percentile of its tensor's are pulled, in [0, 100);
            larger = fewer.
        steps: local steps of a round that are regularised (null = all); the velocity restarts after them.
        conserve: subtract what the pull itself has moved from the model delta, since it also stays in the residual.
        cap: let no step of plain SGD pull an entry beyond its target; momentum still may.
        exclude: name patterns of parameters that are never pulled, e.g. "embedding.*".
    """

    tau: float = 0.05
    decay: float = 1.0
    percentile: float = 50.0
    steps: int | None = 1
    conserve: bool = False
    cap: bool = False
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_range("clients.flare.tau", self.tau, "[0, 1e38)")  # the range of float32
        check_least("clients.flare.decay", self.decay, 1)
        check_range("clients.flare.percentile", self.percentile, "[0, 100)")
        check_least("clients.flare.steps", self.steps, 0)


def flare(config: FlareConfig) -> Algorithm:
    """Pull towards the residual, which error feedback keeps."""
    return Algorithm(penalty=lambda context: flare_penalty(config, context), excludes=EXCLUDES)


def flare_penalty(config: FlareConfig, context: LocalContext) -> Penalty | None:
    """Make the pull of one client's round; None if there is nothing to pull, which leaves plain local training."""
    tau = config.tau * config.decay**-context.round
    residual = context.memory["residual"]
    if config.steps == 0 or context.lr * tau < torch.finfo(torch.float32).tiny:
        return None
    is_nonzero = any(part.any() for part in residual.split(2**20))
    if not context.of_all_shards(torch.tensor([is_nonzero], device=residual.device)).any():
        return None
    pulled = list(_pulled_slices(config, context, residual))
    moved = velocity = None
    if config.conserve:
        moved = torch.zeros_like(residual)
        velocity = torch.zeros_like(residual) if context.momentum else None

    at_global = context.starts_at_global and not config.cap and not config.conserve

    def add_gradient(gradient: Tensor, local: Tensor) -> None:
        nonlocal at_global
        if at_global:  # local - global is zero: half of the reading is saved, and no bit changed
            at_global = False
            for slice_, threshold in pulled:
                gradient[slice_].sub_(F.hardshrink(residual[slice_], threshold).sign_(), alpha=tau)
            return
        for slice_, threshold in pulled:
            away = (local[slice_] - context.global_parameters[slice_]).sub_(residual[slice_])
            # Capped, one step of plain SGD ends at the target at most.
            direction = away.div_(context.lr * tau).clamp_(-1, 1) if config.cap else away.sign_()
            # 1 if |A| is above the threshold, else 0: hardshrink is several times faster than a boolean mask here
            direction.mul_(F.hardshrink(residual[slice_], threshold).sign_().square_())
            gradient[slice_].add_(direction, alpha=tau)
            if velocity is not None:
                direction = velocity[slice_].mul_(context.momentum).add_(direction)
            if moved is not None:
                moved[slice_].sub_(direction, alpha=context.lr * tau)

    return Penalty(add_gradient, config.steps, moved)


def _pulled_slices(config: FlareConfig, context: LocalContext, residual: Tensor) -> Iterator[tuple[slice, float]]:
    """Yield the slices of the flat vector that are handled at once, and the magnitude above which entries are pulled.

    The percentile is that of the whole tensor, of a sparse model of its active entries.
    """
    for entry in context.layout.entries:
        if any(fnmatch(entry.name, pattern) for pattern in config.exclude):
            continue
        end = entry.offset + entry.numel
        values = residual[entry.offset : end]
        if context.mask is not None:
            values = values[context.mask[entry.offset : end]]
        values = context.of_all_shards(values)
        if not values.numel():
            continue
        threshold = magnitude_percentile(values, config.percentile)
        chunk = _CHUNK if residual.device.type == "cpu" else entry.numel
        for start in range(entry.offset, end, chunk):
            yield slice(start, min(start + chunk, end)), threshold


# fmt: off
EXCLUDES = (
    Exclusion(("clients.flare.conserve", "clients.optimizer", "clients.weight_decay", "clients.gradient_clipping"),
              "conserving FLARE without plain sgd",
              lambda c: conserves(c) and (c.clients.optimizer != "sgd" or c.clients.weight_decay > 0
                                                   or c.clients.gradient_clipping is not None),
              "needs clients.optimizer=sgd without weight decay and clipping", "leave those out, or set false"),
    Exclusion(("clients.flare.conserve", "engine.mixed_precision"), "conserving FLARE with fp16",
              lambda c: c.mode == "federated" and conserves(c) and c.engine.mixed_precision == "fp16",
              "fp16 skips steps, which would be subtracted all the same", "use bf16 or no", ("mode",)),
    Exclusion(("clients.objective", "compression.error_feedback", "compression.sparsifier", "compression.density"),
              "FLARE without a residual", lambda c: trains(c, "flare") and has_no_residual(c),
              "flare pulls towards the residual, and there is none", "send less, with ec or dgc", ("mode",)),
)

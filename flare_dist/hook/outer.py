"""Outer steps in anybody's loop: replicas train alone for `every` steps, then exchange how far they have moved.

    outer = flare_dist.outer(model, preset="sparseloco")
    for batch in batches:
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        outer.step()

Each outer step is a round whose clients are the replicas: the pseudo-gradient, global minus local weights, goes through
error feedback, selection and codecs of the hook (ddp.py) in one gather, and every replica takes the same step of the
outer optimizer from the global weights. See outer_settings.py for papers and presets.

With `fragments` parts of the weights take turns, every / fragments steps apart; with `delay` what was sent is applied
so many steps later, so that the wire hides behind compute: p <- (1 - mix) global + mix p (Douillard et al., "Streaming
DiLoCo with overlapping communication", https://arxiv.org/abs/2501.18512). At mix 0 the local work of these steps is
lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from flare_dist.comm.collectives import ProcessGroup
from flare_dist.hook.call_order import begin_together
from flare_dist.hook.outer_settings import described, settings_of
from flare_dist.hook.outer_steps import OuterSteps
from flare_dist.hook.replica_weights import ReplicaWeights
from flare_dist.hook.replicas import REPLICATE, check_rows, check_same, replicas_of
from flare_dist.hook.turns import elsewhere


def outer(
    model: nn.Module,
    mesh: Any = None,
    *,
    preset: str | None = None,
    process_group: ProcessGroup | None = None,
    replicate: Sequence[str] = REPLICATE,
    seed: int = 0,
    offload: bool = False,
    **settings: Any,
) -> OuterSteps:
    """Let replicas of `model` train alone and exchange every so many steps; all of them call it together.

    Weights become those of the first replica. Every replica takes equally many steps, and calls `step()` behind each of
    its inner optimizer's; learning rate schedules and GradScalers stay as they are, and a step that a scaler skips
    counts. Save and resume by `save_hook_state` and `load_hook_state`, in the middle of a window as well: with another
    number of replicas the mean of their weights and of what they have not sent stays what it was.

    Args:
        model: bare, compiled, DistributedDataParallel over the ranks of one replica, or sharded by
            `fully_shard(part, mesh=mesh["shard"])`.
        mesh: a DeviceMesh, if a replica has several ranks; its dimension in `replicate` goes over replicas.
        preset: local_sgd, diloco, sparseloco or muloco: settings of the paper, under those that are given.
        process_group: the replicas, if there is no mesh (None = all ranks).
        seed: of the randk sparsifier, and of rounding at random.
        offload: keep global weights and the outer optimizer's state on the CPU.
        settings: every (30 steps of the inner optimizer), outer_optimizer (sgd, or your own as
            package.module:callable), outer_options ({"lr": 0.7, "momentum": 0.9, "nesterov": True}), fragments (1),
            delay (0 steps), mix (0), pull (0: FLARE's tau, times the lr that `step` is given), pull_percentile (50:
            only entries whose residual is larger than this percentile of its tensor's are pulled), and those of
            compression as in `SparseHookState`: density (1), scope, value_codec, residual_decay and others.

    Raises ValueError, on all replicas, for settings or models that do not go with it or are not the same on all, and if
    there is one replica only.
    """
    replicas = replicas_of(model, mesh, process_group, replicate)
    own, compression = settings_of(preset, settings)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    begin_together(replicas.group, device, "outer", elsewhere)
    check_same(described(own) | compression | {"seed": seed}, model, replicas)
    check_rows(model, own.fragments)
    return OuterSteps(ReplicaWeights(model, replicas), replicas, own, compression, seed, offload)

"""Exchange gradients sparsely between replicas that FSDP2 has sharded, each over its own ranks.

`fully_shard` reduces the gradients of each parameter group over the shards of a replica, and hands what is left, this
rank's rows of the mean, to an all-reduce hook. The exchange goes from there over the ranks that hold the same rows in
the other replicas: one gather a group, while backward computes the next (on a GPU; gloo is waited for). The memory is
that of a rank's own rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flare_dist.comm.collectives import group_of, rank_and_size, ranks_of
from flare_dist.engines.attach_ddp import WorldOfOne
from flare_dist.engines.fsdp_groups import Group, Slice, groups_of, refuse_broken_off
from flare_dist.engines.optimizers import refuse_scaling
from flare_dist.hook.backwards import ABSENT, Backwards, elsewhere
from flare_dist.hook.call_order import arrived, begin_together, place_of
from flare_dist.hook.ddp import exchange_gradients
from flare_dist.hook.held_means import holds_mean
from flare_dist.hook.replica_weights import ReplicaWeights
from flare_dist.hook.replicas import REPLICATE, MeshPlace, Replicas, place_in
from flare_dist.hook.shards import Shard
from flare_dist.hook.stand_ins import StandIns
from flare_dist.hook.state import SparseHookState
from flare_dist.hook.updates import OptimizerSteps, Unapplied


def attach_fsdp(
    model: nn.Module,
    mesh: Any,
    replicate: Sequence[str] = REPLICATE,
    world_of_one: WorldOfOne = "raise",
    **settings: Any,
) -> SparseHookState:
    """Exchange the gradients of a model of `fully_shard` over the replicas of `mesh` from now on.

    Raises ValueError if it cannot.
    """
    place = _place_in(mesh, replicate)
    _check_settings(settings)
    groups, frozen = groups_of(model)
    for one in groups:
        one.check(ranks_of(mesh.get_group(1 - place.over_replicas)))
    slices = [each for one in groups for each in one.slices]
    cuts = {each.name: each.cut for each in slices if each.numel}
    stand_ins = StandIns({name: cut.own_shape for name, cut in cuts.items()}, groups[0].device)
    replica, replicas = rank_and_size(place.group)
    quiet = place.shard > 0 or replicas == 1
    state = SparseHookState(stand_ins, process_group=place.group, quiet=quiet, **settings)
    _tell_of_slices(state, slices)
    everybody = group_of(mesh.mesh.flatten().tolist())
    state.shard = Shard(replica, replicas, place.shard, place.shards, everybody, cuts, mesh, place.over_replicas)
    if replicas == 1:
        _refuse_or_warn(world_of_one)
        return state
    begin_together(place.group, groups[0].device, "attach", elsewhere)
    ReplicaWeights(model, Replicas(place.group), "attach", wire=groups[0].device)
    _hook(model, groups, frozen, state, stand_ins)
    refuse_scaling(state)
    return state


def _place_in(mesh: Any, replicate: Sequence[str]) -> MeshPlace:
    place = place_in(mesh, "attach", replicate)
    if len(mesh.mesh_dim_names) != 2:
        raise ValueError(
            f"attach.mesh: needs two dimensions, over replicas and over shards, got {', '.join(mesh.mesh_dim_names)}; "
            'give mesh["replicate", "shard"] by your names'
        )
    return place


def _check_settings(settings: Mapping[str, Any]) -> None:
    if settings.get("clip_norm") is not None:
        raise ValueError(
            "gradients.clip_norm: FSDP2 hands over one group of parameters at a time and goes on with its mean, before "
            f"the norm of all is known, got {settings['clip_norm']}; clip behind backward, or leave it out"
        )


def _refuse_or_warn(world_of_one: WorldOfOne) -> None:
    if world_of_one == "raise":
        raise ValueError(
            "attach: one replica has nobody to exchange with; FSDP2 alone moves its gradients. For a script that also "
            "runs as one replica, give world_of_one='warn'"
        )
    warnings.warn("attach: one replica, so nothing is exchanged between replicas", stacklevel=4)


def _tell_of_slices(state: SparseHookState, slices: Sequence[Slice]) -> None:
    """Let the state have the parameters and whole shapes of the model, of which its memory holds slices."""
    state.shapes = {each.name: each.cut.shape for each in slices}
    state.parameters = tuple(each.parameter for each in slices)
    state.unapplied = Unapplied(OptimizerSteps(state.parameters))


def _hook(
    model: nn.Module,
    groups: Sequence[Group],
    frozen: Sequence[Group],
    state: SparseHookState,
    stand_ins: StandIns,
) -> None:
    """Let the exchange take the mean over replicas of each group, and refuse what would part the replicas."""
    backwards = Backwards(state)
    for number, one in enumerate(groups):
        one.leave_replicas_to_hook()
        one.set_hook(GroupHook(one, number, state, backwards, stand_ins))
    for one in frozen:
        one.stay_frozen()
    model.register_forward_pre_hook(refuse_broken_off(groups))


class GroupHook:
    """The all-reduce hook of one group."""

    def __init__(
        self, group: Group, number: int, state: SparseHookState, backwards: Backwards, stand_ins: StandIns
    ) -> None:
        self._group = group
        self._slices = [each for each in group.slices if each.padded]
        self._parameters = [stand_ins.by_name[each.name] for each in self._slices if each.numel]
        self._state = state
        self._backwards = backwards
        self._label = torch.full((1,), place_of(number), device=group.device)
        self._number = number
        self._pending: Tensor | None = None  # under set_requires_all_reduce(False)

    def __call__(self, reduced: Tensor) -> None:
        """Replace this rank's rows of a replica's gradients by their mean over the replicas, in place."""
        self._backwards.hold(reduced)
        self._group.refuse_change()
        self._check_length(reduced)
        if not self._group.exchanges:
            self._hold(reduced)
            return
        if self._pending is not None:
            reduced.add_(self._pending)
            self._pending = None
        self._refuse_addition()
        self._backwards.hand_over(self._number, self._label)
        if not self._parameters:
            return
        flat = self._without_padding(reduced)
        self._put_back(arrived(exchange_gradients(self._state, self._parameters, flat), ABSENT), reduced)

    def _check_length(self, reduced: Tensor) -> None:
        """Raise RuntimeError if some of the group's parameters got no gradient: nobody tells which."""
        if reduced.numel() != sum(each.padded for each in self._slices):
            names = ", ".join(each.name for each in self._slices)
            raise RuntimeError(
                f"attach: some of {names} got no gradient in this backward, and FSDP2 does not tell which; freeze them "
                f"before attach(){', or call model.set_reduce_scatter_unused_params(True)' * self._group.can_fill}"
            )

    def _hold(self, reduced: Tensor) -> None:
        """Add up gradients that do not go to the other replicas yet; the parameters get none of them."""
        self._pending = reduced.clone() if self._pending is None else self._pending.add_(reduced)
        reduced.zero_()

    def _refuse_addition(self) -> None:
        """Raise RuntimeError if an update of a preconditioner would be added to one."""
        if not self._state.preconditioning.applies:
            return
        for each in self._slices:
            gradient: Any = each.parameter.grad
            if gradient is not None and each.numel and gradient.to_local().any():
                raise holds_mean(each.name, "set_requires_gradient_sync(False)")

    def _without_padding(self, reduced: Tensor) -> Tensor:
        """Return the gradients of the slices one after another; `reduced` itself if nothing is padded."""
        if all(each.numel == each.padded for each in self._slices):
            return reduced
        return torch.cat([part[: each.numel] for each, part in self._parts(reduced)])

    def _put_back(self, mean: Tensor, reduced: Tensor) -> None:
        """Write the mean over replicas to where the gradients of the slices were."""
        if mean is reduced:
            return
        if mean.numel() == reduced.numel():
            reduced.copy_(mean)
            return
        means = mean.split([each.numel for each in self._slices])
        torch._foreach_copy_([part[: each.numel] for each, part in self._parts(reduced)], list(means))

    def _parts(self, reduced: Tensor) -> list[tuple[Slice, Tensor]]:
        return list(zip(self._slices, reduced.split([each.padded for each in self._slices])))

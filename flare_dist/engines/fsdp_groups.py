"""The parameter groups of a model of `fully_shard`; all that PyTorch keeps private of them is read here.

Looked for, never asked of a version: PyTorch 2.11 is the oldest that the tests have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from flare_dist.comm.collectives import ranks_of
from flare_dist.cuts import Cut
from flare_dist.hook.wrappers import plain_name, reshard

_OTHER_TORCH = "another PyTorch than this hook knows; PyTorch 2.11 to 2.15 are tested"
_READ = (
    *("fsdp_params", "device", "mesh_info", "all_reduce_grads", "gradient_divide_factor"),
    *("force_sum_reduction_for_comms", "_is_hsdp", "_all_reduce_hook"),
)


@dataclass(frozen=True)
class Slice:
    """Describe one rank's slice of a parameter, padded to that of the first rank in what a group reduces."""

    name: str
    parameter: nn.Parameter  # a DTensor
    cut: Cut
    padded: int  # entries

    @property
    def numel(self) -> int:
        return self.cut.numel


class Group:
    """One module's parameters, whose gradients are reduced as one vector."""

    def __init__(self, module: FSDPModule, private: Any, names: dict[nn.Parameter, str]) -> None:
        lacking = ", ".join(name for name in _READ if not hasattr(private, name))
        if lacking:
            raise ValueError(f"attach: FSDP2's groups of parameters have no {lacking}; this is {_OTHER_TORCH}")
        self.module = module
        self._private = private
        self._trained = {names[each.sharded_param]: each.sharded_param.requires_grad for each in private.fsdp_params}
        self.slices = [_slice(each, names) for each in private.fsdp_params if each.sharded_param.requires_grad]

    @property
    def device(self) -> torch.device:
        """Return where gradients are reduced, which is not where parameters are if they are offloaded."""
        return torch.device(self._private.device)

    @property
    def exchanges(self) -> bool:
        """Tell if gradients go to the other replicas in this backward: False under set_requires_all_reduce(False)."""
        return bool(self._private.all_reduce_grads)

    @property
    def can_fill(self) -> bool:
        """Tell if PyTorch can give parameters without a gradient zeros."""
        return hasattr(self.module, "set_reduce_scatter_unused_params")

    def refuse_change(self) -> None:
        """Raise RuntimeError if other parameters are trained than when the hook was made."""
        for each, (name, was_trained) in zip(self._private.fsdp_params, self._trained.items()):
            if each.sharded_param.requires_grad != was_trained:
                raise RuntimeError(
                    f"attach: exchanges what is trained when it is made, got requires_grad={not was_trained} of {name} "
                    "since; set it before attach(), or shard and attach anew"
                )

    @property
    def is_in_backward(self) -> bool:
        """Tell if FSDP2 thinks that the module's backward goes on."""
        state: Any = self.module._get_fsdp_state()
        return bool(state._training_state.name == "PRE_BACKWARD")

    def leave_replicas_to_hook(self) -> None:
        """Take the mean over the shards of a replica alone; on a mesh of two dimensions PyTorch goes over both.

        A hook runs behind PyTorch's own all-reduce, which has sent everything by then. The sharding of parameters and
        gradients stays as it is. Raises ValueError if PyTorch is not as it was.
        """
        from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, HSDPMeshInfo

        info = self._private.mesh_info
        if type(info) is FSDPMeshInfo:
            return
        if type(info) is not HSDPMeshInfo or not info.mesh.mesh_dim_names:
            raise ValueError(f"attach: cannot take replicas out of {type(info).__name__}; this is {_OTHER_TORCH}")
        shard_mesh = info.mesh[info.mesh.mesh_dim_names[info.shard_mesh_dim or 0]]
        alone = FSDPMeshInfo(shard_mesh, shard_mesh_dim=0)
        alone.reduce_scatter_process_group = getattr(info, "reduce_scatter_process_group", None)
        self._private.mesh_info = alone
        if self._private._is_hsdp or alone.shard_process_group is not info.shard_process_group:
            raise ValueError(f"attach: PyTorch still takes the mean over replicas itself; this is {_OTHER_TORCH}")

    def set_hook(self, hook: Callable[[Tensor], None]) -> None:
        """Let `hook` change what the reduction over shards leaves, a flat vector of all slices, in place."""
        if self._private._all_reduce_hook is not None:
            raise ValueError("attach: the model has an all-reduce hook already, and FSDP2 takes only one; leave it out")
        self.module.set_all_reduce_hook(hook)

    def stay_frozen(self) -> None:
        """Raise RuntimeError in the first backward of a frozen group that is trained: its gradients would stay here."""
        self.set_hook(lambda reduced: self.refuse_change())

    def check(self, shards: list[int]) -> None:
        """Raise ValueError if the mean is not finished when the hook sees it, or of values that it cannot keep.

        `shards` are the ranks of this replica.
        """
        private = self._private
        over = getattr(private.mesh_info, "shard_process_group", None)
        if over is not None and ranks_of(over) != shards:
            raise ValueError(
                f"attach.mesh: the model is sharded over the ranks {ranks_of(over)}, and a replica of the mesh is "
                f"{shards}; give the mesh that fully_shard was given"
            )
        if private.force_sum_reduction_for_comms or private.gradient_divide_factor is not None:
            raise ValueError(
                "attach: set_gradient_divide_factor and set_force_sum_reduction_for_comms divide behind the hook, "
                "whose memory would be of other units; leave them out"
            )
        policies = [each.mp_policy for each in private.fsdp_params]  # which PyTorch 2.15 no longer has of the group
        kinds = {policy.reduce_dtype or policy.param_dtype for policy in policies}
        if torch.float16 in kinds | {each.parameter.dtype for each in self.slices}:
            raise ValueError("attach: FSDP2 divides float16 gradients behind the hook; use reduce_dtype=torch.float32")


def refuse_broken_off(groups: Sequence[Group]) -> Callable[..., None]:
    """Return a forward pre-hook that raises RuntimeError behind a backward which an exception has ended.

    FSDP2 takes the next forward for a part of that backward, and trains wrong from then on (PyTorch 2.14).
    """

    def check(*unused: Any) -> None:
        is_recomputing = torch._C._current_graph_task_id() >= 0
        if not is_recomputing and any(each.is_in_backward for each in groups):
            raise RuntimeError(
                "attach: a backward was broken off, and FSDP2 would go on with wrong gradients, got another forward; "
                "build and shard the model anew, and load the last checkpoint"
            )

    return check


def groups_of(model: nn.Module) -> tuple[list[Group], list[Group]]:
    """Return the groups of a model with something to train, and the frozen ones.

    Raises ValueError for a model that cannot be hooked.
    """
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not modules:
        raise ValueError(
            f"attach: a mesh is for models of fully_shard (FSDP2), got {type(model).__name__}; FSDP1 hands its hooks "
            "one flat vector without the bounds of its parameters, so shard the model by fully_shard"
        )
    reshard(modules)  # so that the model's parameters are the sharded ones
    names = {parameter: name for name, parameter in model.named_parameters()}
    every = [group for module in modules for group in _groups_of(module, names)]
    groups = [group for group in every if group.slices]
    if not groups:
        raise ValueError("attach: the model has no parameters with requires_grad; there is nothing to exchange")
    held = {each.parameter for group in groups for each in group.slices}
    for parameter, name in names.items():
        if parameter.requires_grad and parameter not in held:
            raise ValueError(f"attach: {name} is in no group of fully_shard; shard the root module as well")
    return groups, [group for group in every if not group.slices]


def _groups_of(module: FSDPModule, names: dict[nn.Parameter, str]) -> list[Group]:
    state = module._get_fsdp_state()
    private = getattr(state, "_fsdp_param_groups", None)
    if private is None:
        private = [group for group in [state._fsdp_param_group] if group is not None]
    if len(private) > 1:
        raise ValueError(
            "attach: a module has parameters on several meshes, of which FSDP2 gives each no hook of its own; let "
            "shard_placement_fn return placements on one mesh"
        )
    return [Group(module, each, names) for each in private]


def _slice(private: Any, names: dict[nn.Parameter, str]) -> Slice:
    """Describe what a rank holds of a parameter; raises ValueError if it is sharded in another way, too."""
    parameter = private.sharded_param
    name = plain_name(names[parameter])
    if getattr(private, "is_dtensor", False):
        raise ValueError(f"attach: {name} is sharded by tensor parallelism as well; attach to models of FSDP2 alone")
    info = private.mesh_info
    shape = tuple(parameter.shape)
    cut = Cut.of_shard(shape, info.shard_mesh_rank, info.shard_mesh_size, private.fsdp_placement.dim)
    return Slice(name, parameter, cut, private.padded_sharded_param_size.numel())

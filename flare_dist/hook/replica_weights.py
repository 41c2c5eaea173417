"""The weights that one rank holds of its replica: made those of the first replica, and watched until they are sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.comm.collectives import broadcast_from_first, gather_objects
from flare_dist.hook.replicas import Replicas
from flare_dist.hook.wrappers import plain_name, reshard, sharded_modules, unwrapped
from flare_dist.layout import separate_buffers


class ReplicaWeights:
    """The parameters of a replica by name, and the trained ones, or their shards, as tensors that share their memory.

    Raises ValueError on all replicas if they have not built the same model, or if nothing of it is trained.
    """

    def __init__(
        self, model: nn.Module, replicas: Replicas, who: str = "outer", wire: torch.device | None = None
    ) -> None:
        """Take over the weights of the first replica, through `wire`, by default the device that they are on."""
        self._sharded = sharded_modules(model)
        is_ddp = isinstance(unwrapped(model), DistributedDataParallel)
        self._all = {_plain(name, is_ddp): parameter for name, parameter in model.named_parameters()}
        self._trained = {name for name, parameter in self._all.items() if parameter.requires_grad}
        local = {name: _local(parameter) for name, parameter in self._all.items()}
        # A tensor that is shorter than there are shards has empty ones.
        self.tensors = {name: local[name] for name in local if name in self._trained and local[name].numel()}
        separate_buffers(model)
        buffers = {_plain(name, is_ddp): _local(buffer) for name, buffer in model.named_buffers()}
        tensors = local | buffers
        shapes = {name: tuple(each.shape) for name, each in self._all.items()}  # of whole parameters, on each shard
        _check_same(tensors, shapes, self._trained, replicas, who)
        if not self._trained:
            raise ValueError(f"{who}: the model has no parameters with requires_grad; there is nothing to exchange")
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point():
                raise ValueError(f"{who}: exchanges real weights, got {tensor.dtype} in {name}; use real ones")
        for tensor in tensors.values():
            _begin_as_first(tensor, wire or next(iter(local.values())).device, replicas)

    def reshard(self) -> None:
        """Let the model compute with the weights that are here: FSDP2 may hold gathered ones, as of an evaluation."""
        reshard(self._sharded)

    @torch.no_grad()
    def set(self, weights: Mapping[str, Tensor]) -> None:
        """Overwrite the trained weights, or their shards, by name."""
        for name, weight in weights.items():
            self.tensors[name].copy_(weight)
        self.reshard()

    def check(self) -> None:
        """Raise ValueError if other parameters are trained than at first, or if they lie elsewhere by now."""
        for name, parameter in self._all.items():
            if parameter.requires_grad != (name in self._trained):
                raise ValueError(
                    f"outer: exchanges what is trained when it is made, got requires_grad={parameter.requires_grad} of "
                    f"{name} since; call finish(), then outer() anew"
                )
            if name in self.tensors and _local(parameter).data_ptr() != self.tensors[name].data_ptr():
                raise ValueError(
                    f"outer: writes to the weights where they are when it is made, got {name} elsewhere; call outer() "
                    "behind model.to() and what else moves them"
                )


def _check_same(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    trained: set[str],
    replicas: Replicas,
    who: str,
) -> None:
    """Raise ValueError on all ranks if replicas' tensors differ in name, order, shape, precision or in being trained.

    `shapes` are those of tensors of which a rank holds a part.
    """
    own = [
        (name, shapes.get(name, tuple(tensor.shape)), str(tensor.dtype), name in trained)
        for name, tensor in tensors.items()
    ]
    device = next((tensor.device for tensor in tensors.values()), None)
    for other, theirs in enumerate(gather_objects(own, replicas.group, device)):
        if theirs != own:
            different = sorted({*theirs} ^ {*own})
            what = different[0][0] if different else "order of parameters"
            raise ValueError(f"{who}: replica {other} has another {what}; build the same model on all of them")


@torch.no_grad()
def _begin_as_first(tensor: Tensor, device: torch.device, replicas: Replicas) -> None:
    """Make a tensor that of the first replica, in place, through the device of the weights."""
    if not tensor.numel():
        return
    whole = tensor.to(device).contiguous()
    broadcast_from_first(whole, replicas.group)
    if whole.data_ptr() != tensor.data_ptr() and not torch.equal(whole.to(tensor.device), tensor):
        tensor.copy_(whole)


def _local(parameter: Any) -> Tensor:
    local: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local.detach()


def _plain(name: str, is_ddp: bool) -> str:
    """Drop what wrappers put before and into the name of a parameter."""
    plain = plain_name(name)
    return plain.removeprefix("module.") if is_ddp else plain

"""The slices of parameters that ZeRO keeps on a rank, by DeepSpeed's own tables.

ZeRO 1 and 2 cut the concatenation of all parameters into one piece for each rank, so that a rank has parts of
neighbours; ZeRO 3 cuts each parameter into as many pieces as there are ranks. What is padded is never touched here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from deepspeed.runtime.zero import partitioned_param_coordinator as coordinator
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_grad, safe_set_local_grad
from torch import Tensor, nn

from flare_dist.comm.collectives import rank_and_size
from flare_dist.comm.host import Host
from flare_dist.cuts import FLAT, Cut
from flare_dist.engines.flow import Held


class Slices(Protocol):
    """Read and write this rank's slices of the parameters, and bring them to the model."""

    cuts: tuple[Cut, ...]
    weights: list[Tensor]  # float32 views of what the optimizer steps, flat

    def gradients(self) -> list[Tensor]:
        """Return the mean gradients of the slices, flat; between backward and step."""

    def set_gradient(self, number: int, value: Tensor) -> None:
        """Let the next step take this gradient of a slice."""

    def refresh(self) -> None:
        """Give the model the values of the weights; all ranks of the host call it together."""

    def clear_gradients(self) -> None:
        """Let the next step find no gradient but its own."""


class SlicesOfAll:
    """Address the slices of ZeRO 1 and 2."""

    def __init__(self, optimizer: Any, parameters: Sequence[nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._parameters = parameters
        self._mappings: list[Any] = [parameter._hp_mapping for parameter in parameters]  # type: ignore[attr-defined]
        addresses = [mapping.lp_fragment_address if mapping else None for mapping in self._mappings]
        self.cuts = tuple(
            Cut(FLAT, at.start, at.start + at.numel, tuple(p.shape)) if at else Cut(FLAT, 0, 0, tuple(p.shape))
            for at, p in zip(addresses, parameters)
        )
        nothing = torch.empty(0, device=parameters[0].device)
        self.weights = [mapping.get_hp_fragment().detach() if mapping else nothing for mapping in self._mappings]

    def _gradient(self, number: int) -> Tensor | None:
        mapping = self._mappings[number]
        index = getattr(self._parameters[number], "_index_in_param_group", 0)
        gradient: Tensor | None = mapping.get_lp_grad_fragment(index) if mapping else None
        return gradient

    def gradients(self) -> list[Tensor]:
        found = [self._gradient(number) for number in range(len(self._mappings))]
        return [empty if own is None else own.flatten() for own, empty in zip(found, self.weights)]

    def set_gradient(self, number: int, value: Tensor) -> None:
        own = self._gradient(number)
        if own is not None:
            own.copy_(value.view(own.shape))

    def refresh(self) -> None:
        self._optimizer.update_lp_params()

    def clear_gradients(self) -> None:
        """Do nothing: those of parameters that a batch does not use are zero."""


class SlicesOfEach:
    """Address the slices of ZeRO 3."""

    def __init__(self, optimizer: Any, parameters: Sequence[Any]) -> None:
        self._optimizer = optimizer
        self._parameters = parameters
        self.cuts = tuple(map(_cut_of, parameters))
        held = map(safe_get_local_fp32_param, parameters)
        self.weights = [own.detach()[: cut.numel] for own, cut in zip(held, self.cuts)]

    def gradients(self) -> list[Tensor]:
        return [safe_get_local_grad(p)[: cut.numel] for p, cut in zip(self._parameters, self.cuts)]

    def set_gradient(self, number: int, value: Tensor) -> None:
        parameter = self._parameters[number]
        padded = torch.zeros(parameter.partition_numel(), device=value.device)
        padded[: value.numel()] = value
        safe_set_local_grad(parameter, padded)

    def refresh(self) -> None:
        optimizer = self._optimizer
        optimizer.checkpoint_event_prologue()  # releases what is gathered
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()  # gathers the small parameters that stay whole

    def clear_gradients(self) -> None:
        # A parameter that a batch does not use would be stepped by the gradient of a batch before.
        self._optimizer.grad_partitions_flat_buffer.zero_()


def held_of(parameter: Any) -> Held:
    """Return what this rank holds of a parameter that no optimizer steps: all of it before ZeRO 3, then a piece."""
    if hasattr(parameter, "ds_id"):
        return parameter.ds_tensor.detach(), len(parameter.ds_shape)
    return parameter.detach(), parameter.dim()


def _cut_of(parameter: Any) -> Cut:
    each = parameter.partition_numel()
    rank = rank_and_size(parameter.ds_process_group)[0]
    start = min(each * rank, parameter.ds_numel)
    return Cut(FLAT, start, min(start + each, parameter.ds_numel), tuple(parameter.ds_shape))


SLICES: dict[int, Any] = {1: SlicesOfAll, 2: SlicesOfAll, 3: SlicesOfEach}


def check_within(host: Host, engine: Any) -> None:
    """Let ZeRO 3 compare the order of layers with the ranks of its host before a pass, and not with those of others.

    It would ask rank 0 of all, which may be evaluating, or wait for this host already.
    """
    offload = getattr(engine.optimizer, "parameter_offload", None)
    if offload is None:
        return
    reset_step = offload.param_coordinator.reset_step

    def reset_on_host() -> None:
        everywhere = coordinator.assert_ints_same_as_other_ranks
        coordinator.assert_ints_same_as_other_ranks = partial(_check_alike, host)
        try:
            reset_step()
        finally:
            coordinator.assert_ints_same_as_other_ranks = everywhere

    offload.param_coordinator.reset_step = reset_on_host


def _check_alike(host: Host, numbers: list[int]) -> None:
    """Raise RuntimeError if a rank of the host has other numbers."""
    digests = [0] * host.shards
    digests[host.shard] = hash(tuple(numbers))
    if len(set(host.sums(digests))) > 1:
        raise RuntimeError("the ranks of a host call the layers of the model in different orders")


def forget_state(engine: Any) -> None:
    """Empty the optimizer's state, and let go of what DeepSpeed holds of it by parameter."""
    engine.basic_optimizer.state.clear()
    for parameter in (p for group in getattr(engine.optimizer, "bit16_groups", ()) for p in group):
        if parameter._hp_mapping is not None:
            parameter._hp_mapping.optim_fragment = None  # views of it
            engine.optimizer._hp_optimizer_states_linked = False  # so that they are made anew

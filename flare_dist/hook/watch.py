"""A forward hook on the DDP module, for what a communication hook cannot see from inside backward."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _find_tensors

from flare_dist.hook.checks import sparse_gradient_names
from flare_dist.hook.state import SparseHookState

SILENT_FORWARDS = 100  # so many training forwards without an exchange are worth a warning


class HookWatch:
    """Looks after `state` at every forward of the DDP module that it is registered on.

    A copy of the module carries a copy of the watch, but its reducer is new and has no hook. So that it does not train
    densely in silence, its first synchronised backward raises RuntimeError as soon as it reaches the output of forward,
    before any gradient is exchanged. Copies in eval mode, under no_grad or no_sync may run as they like.
    """

    def __init__(self, ddp: DistributedDataParallel, state: SparseHookState) -> None:
        self.state = state
        self._reducer: Any = ddp.reducer
        self._exchanges = 0
        self._forwards = 0  # in training, since the last exchange
        self._has_warned = False
        self._handles = _refuse_sparse_gradients(ddp)

    def __getstate__(self) -> dict[str, Any]:
        return {"state": self.state}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.state = kept["state"]
        self._reducer = None

    def is_on(self, ddp: nn.Module) -> bool:
        """Tell whether the hook is registered on this module, which is False for a copy."""
        return self._reducer is not None and self._reducer is ddp.reducer

    @torch._disable_dynamo  # its counters would be guards, and every step a compilation
    def __call__(self, ddp: DistributedDataParallel, inputs: tuple[Any, ...], output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if not self.is_on(ddp):
            if ddp.require_backward_grad_sync:
                _refuse_backward(ddp, output)
            return
        _check_join(ddp)
        self._count(ddp.training)

    def _count(self, training: bool) -> None:
        """Count a training forward; warn once if none of many was followed by an exchange."""
        exchanges = self.state.traffic.collectives
        if exchanges != self._exchanges:
            self._exchanges = exchanges
            self._forwards = 0
            while self._handles:
                self._handles.pop().remove()
        self._forwards += training
        if self._forwards > SILENT_FORWARDS and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"the sparse hook has sent nothing for {SILENT_FORWARDS} training forwards: inside no_sync (LocalSGD, "
                "a long accumulation) and without backward gradients stay on their rank",
                stacklevel=2,
            )


def _check_join(ddp: DistributedDataParallel) -> None:
    """Raise ValueError inside a `join` that divides otherwise than the hook."""
    join = ddp._join_config
    if join.enable and not join.throw_on_early_termination and not ddp._divide_by_initial_world_size:
        raise ValueError(
            "join: divide_by_initial_world_size=False divides by the number of ranks that still have data, which DDP "
            "tells no communication hook; use True"
        )


def _refuse_backward(ddp: DistributedDataParallel, output: Any) -> None:
    """Let a backward from `output` raise; raise at once if it holds no tensors that DDP itself would find."""
    tensors = list(_find_tensors(output))
    if not tensors and ddp.training:
        _attach_again()
    for tensor in tensors:
        if tensor.requires_grad:
            tensor.register_hook(_attach_again)


def _attach_again(gradient: Tensor | None = None) -> None:
    raise RuntimeError(
        "this DistributedDataParallel is a copy, and PyTorch copies no communication hook: its gradients would be "
        "exchanged densely; attach again: state = flare_dist.attach(copy, ...)"
    )


def _refuse_sparse_gradients(ddp: DistributedDataParallel) -> list[Any]:
    """Let the first backward raise for sparse gradients that nothing has announced; returns the hooks' handles."""
    announced = sparse_gradient_names(ddp.module)
    named = [(name, p) for name, p in ddp.module.named_parameters() if p.requires_grad and name not in announced]
    return [parameter.register_hook(partial(_check_dense, name)) for name, parameter in named]


def _check_dense(name: str, gradient: Tensor) -> None:
    if gradient.is_sparse:
        raise RuntimeError(
            f"the gradient of {name} is sparse, and DistributedDataParallel exchanges sparse gradients only of "
            "nn.Embedding and nn.EmbeddingBag with sparse=True; use F.embedding(..., sparse=False)"
        )

"""DistributedDataParallel without its reducer, which is below the dispatcher: buckets, and the call of the hook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from tests.pretend_gpu.log import RefusedError
from tests.pretend_gpu.tensors import DEVICE

FIRST = 2**20  # bytes of DDP's first bucket
CAP = 25 * 2**20  # and of the others


class PretendBucket:
    """What DDP gives to a hook."""

    def __init__(self, number: int, is_last: bool, parameters: Sequence[Tensor], buffer: Tensor) -> None:
        self._number = number
        self._is_last = is_last
        self._parameters = list(parameters)
        self._buffer = buffer

    def index(self) -> int:
        return self._number

    def is_last(self) -> bool:
        return self._is_last

    def parameters(self) -> list[Tensor]:
        return self._parameters

    def buffer(self) -> Tensor:
        return self._buffer


def buckets_of(parameters: Sequence[Tensor], cap: float = CAP, first: float = FIRST) -> list[list[Tensor]]:
    """Form buckets as DDP does: the last parameters first, a small bucket to begin with."""
    found: list[list[Tensor]] = [[]]
    limit = min(first, cap)
    nbytes = 0
    for parameter in reversed(parameters):
        found[-1].append(parameter)
        nbytes += parameter.numel() * parameter.element_size()
        if nbytes >= limit:
            found.append([])
            limit = cap
            nbytes = 0
    return [bucket for bucket in found if bucket]


class PretendDDP(DistributedDataParallel):
    """Call the hook of every bucket when backward has ended."""

    def __init__(
        self,
        module: torch.nn.Module,
        device_ids: Any = None,
        broadcast_buffers: bool = True,
        bucket_cap_mb: float | None = None,
        process_group: Any = None,
        **options: Any,
    ) -> None:
        torch.nn.Module.__init__(self)
        if device_ids is not None and [torch.device(device) for device in device_ids] != [DEVICE]:
            raise RefusedError(f"device_ids {device_ids} on {DEVICE}")
        self.module = module
        self.process_group = process_group
        self.mixed_precision = None
        self._use_python_reducer = False
        self._delay_all_reduce_params: list[Tensor] = []
        self._join_config = SimpleNamespace(enable=False, throw_on_early_termination=False)
        self._divide_by_initial_world_size = True
        self.reducer: Any = object()
        self._comm_hooks: list[Any] = []
        self._synchronises = True
        self._is_queued = False
        self._cap = (bucket_cap_mb or 25) * 2**20
        self._own = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for parameter in self._own:
            parameter.register_post_accumulate_grad_hook(lambda _: self._queue())

    def register_comm_hook(self, state: Any, hook: Any) -> None:
        self._comm_hooks.append((hook, state))

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        self._synchronises = False
        yield
        self._synchronises = True

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)

    def _queue(self) -> None:
        if self._synchronises and not self._is_queued:
            self._is_queued = True
            Variable._execution_engine.queue_callback(self._exchange)

    @torch.no_grad()
    def _exchange(self) -> None:
        self._is_queued = False
        ((hook, state),) = self._comm_hooks
        groups = buckets_of(self._own, self._cap)
        futures = []
        for number, group in enumerate(groups):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
            buffer = torch.cat([gradient.flatten() for gradient in gradients])
            futures.append(hook(state, PretendBucket(number, group is groups[-1], group, buffer)))
        for future, group in zip(futures, groups):
            parts = future.wait().split([parameter.numel() for parameter in group])
            for parameter, part in zip(group, parts):
                if parameter.grad is not None:
                    parameter.grad.copy_(part.view_as(parameter))

"""Collectives with NCCL's manners: over gloo, or of equal ranks without a process group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from flare_dist.comm import collectives, group, world
from tests.pretend_gpu.futures import PretendFuture
from tests.pretend_gpu.log import LOG, RefusedError, where
from tests.pretend_gpu.streams import NCCL, STREAMS, Event
from tests.pretend_gpu.tensors import DEVICE, Pretend, raw


class PretendWork(dist.Work):
    """What an asynchronous collective returns."""

    def __init__(self, tensor: Tensor, event: Event) -> None:
        super().__init__()
        self._tensor = tensor
        self._event = event

    def get_future(self) -> Any:
        return PretendFuture.of([self._tensor], self._event)

    def wait(self, timeout: Any = None) -> bool:
        STREAMS.wait(self._event)
        return True


class PretendNccl:
    """torch.distributed as comm/ sees it; of `size` ranks that all send what this one sends, or of a gloo group."""

    def __init__(self, size: int | None = None) -> None:
        self._size = size

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def is_initialized(self) -> bool:
        return self._size is not None or dist.is_initialized()

    def get_rank(self, group: Any = None) -> int:
        return 0 if self._size else dist.get_rank(group)

    def get_world_size(self, group: Any = None) -> int:
        return self._size or dist.get_world_size(group)

    def get_process_group_ranks(self, group: Any = None) -> list[int]:
        return list(range(self._size)) if self._size else dist.get_process_group_ranks(group)

    def get_backend(self, group: Any = None) -> str:
        return "nccl"

    def init_process_group(self, backend: str, **options: Any) -> None:
        assert backend == "nccl", backend
        dist.init_process_group("gloo", **{key: value for key, value in options.items() if key != "device_id"})

    def all_gather_object(self, gathered: list[Any], own: Any, group: Any = None) -> None:
        if torch.cuda.current_device() != DEVICE.index:
            raise RefusedError(f"ranks meet on cuda:{torch.cuda.current_device()}, this one's is {DEVICE}: {where()}")
        LOG.wait("all_gather_object")
        if self._size:
            gathered[:] = [own] * self._size
        else:
            dist.all_gather_object(gathered, own, group)

    def all_gather_into_tensor(self, output: Tensor, tensor: Tensor, group: Any = None, async_op: bool = False) -> Any:
        def work(out: Tensor, local: Tensor) -> None:
            if self._size:
                out.view(self._size, -1).copy_(local.reshape(1, -1).expand(self._size, -1))
            else:
                all_gather_flat(out, local, group=group)

        return self._launch("all_gather", tensor, output, work, async_op)

    def all_reduce(self, tensor: Tensor, op: Any = None, group: Any = None, async_op: bool = False) -> Any:
        kind = op or dist.ReduceOp.SUM

        def work(out: Tensor, local: Tensor) -> None:
            if not self._size:
                dist.all_reduce(out, kind, group=group)
            elif kind == dist.ReduceOp.SUM:
                out.mul_(self._size)

        return self._launch("all_reduce", tensor, tensor, work, async_op)

    def broadcast(self, tensor: Tensor, src: int = 0, group: Any = None) -> Any:
        def work(out: Tensor, local: Tensor) -> None:
            if not self._size:
                dist.broadcast(out, src, group=group)

        return self._launch("broadcast", tensor, tensor, work, False)

    def barrier(self, group: Any = None) -> None:
        LOG.wait("NCCL barrier")
        if not self._size:
            dist.barrier(group)

    def _launch(
        self, name: str, reads: Tensor, writes: Tensor, work: Callable[[Tensor, Tensor], None], is_async: bool
    ) -> Any:
        """Run a collective on NCCL's own stream, behind what the current one has done."""
        for tensor in (reads, writes):
            if not isinstance(tensor, Pretend):
                raise RefusedError(f"No backend type associated with device type cpu: {name} at {where()}")
            if not tensor.is_contiguous():
                raise RefusedError(f"Tensors must be contiguous: {name} at {where()}")
        if reads.dtype in (torch.int16, torch.uint16):
            raise RefusedError(f"Input tensor data type is not supported for NCCL process group: {reads.dtype}")
        event = STREAMS.event()
        with STREAMS.on(NCCL):
            STREAMS.wait(event)
            STREAMS.tick()
            for tensor, is_written in ((reads, False), (writes, True)):
                storage = raw(tensor).untyped_storage()
                if storage.nbytes():
                    STREAMS.touch(storage.data_ptr(), storage.nbytes(), is_written, name)
            with torch._C._DisableTorchDispatch():
                work(raw(writes), raw(reads))
            done = STREAMS.event()
        started = PretendWork(writes, done)
        if is_async:
            return started
        started.wait()
        return None


all_gather_flat = collectives.all_gather_flat


@contextmanager
def nccl(size: int | None = None) -> Iterator[None]:
    """Let the collectives of comm/ be NCCL's in the block, among `size` equal ranks if given."""
    pretended = PretendNccl(size)
    with ExitStack() as stack:
        for module in (collectives, group, world):
            stack.enter_context(patch.object(module, "dist", pretended))
        stack.enter_context(patch.object(collectives, "all_gather_flat", pretended.all_gather_into_tensor))
        yield

"""The pretended GPU finds one planted fault of each kind; what it refuses and notes is in pretend_gpu/__init__.py.

The kinds: hangs (a mean that nobody sets), memory (callbacks on the streams of the pool), slow steps (a launch for each
tensor), waits of the host, crashes (tensors of two devices, ranks that meet on one GPU), reads and writes that nothing
orders, and other numbers than a CPU's (test_gpu_parity.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from flare_dist.hook import ddp, memory, scale
from flare_dist.hook.side_streams import SideStreams
from tests.pretend_gpu.cuda import pretend_gpu
from tests.pretend_gpu.hook_steps import Found, hook_steps
from tests.pretend_gpu.log import RefusedError
from tests.pretend_gpu.nccl import PretendWork, nccl
from tests.pretend_gpu.streams import DEFAULT, NCCL, POOL, SIDE, STREAMS
from tests.pretend_gpu.tensors import to_gpu

SHAPES = [(300, 400), (50,), (70000,)]


def took(**settings: Any) -> Found:
    return hook_steps(SHAPES, 4, steps=3, **settings)


def test_there_is_no_fault() -> None:
    found = took()
    assert not found.hazards
    assert not found.waits
    assert set(found.peaks) <= {DEFAULT, NCCL, SIDE}


def test_buffers_that_nobody_holds_are_found() -> None:
    with patch.object(SideStreams, "hold", lambda self, *tensors: None):
        assert any(f"freed to stream {DEFAULT} while stream" in hazard for hazard in took().hazards)


def test_a_side_stream_that_does_not_wait_is_found() -> None:
    with patch.object(PretendWork, "wait", lambda self: True):
        assert any(f"read of what stream {NCCL} wrote" in hazard for hazard in took().hazards)


def test_a_verdict_of_the_side_stream_that_is_read_later_is_found() -> None:
    """Fault 15 of the hook as it was: freed to the side stream while backward's stream may read it."""
    real = scale.Failures.note

    def note(self: Any, failed: Tensor) -> None:
        real(self, failed.clone())

    with patch.object(scale.Failures, "note", note):
        assert any(f"freed to stream {SIDE} while stream {DEFAULT}" in hazard for hazard in took().hazards)


def test_callbacks_on_the_streams_of_the_pool_are_found() -> None:
    """Fault 3 of the hook as it was: each stream of the pool holds what the largest bucket takes."""

    def on_the_pool(self: Any, work: Any, device: torch.device, make: Callable[[], Tensor]) -> Any:
        return work.get_future().then(lambda future: make())

    with patch.object(SideStreams, "behind", on_the_pool):
        found = took()
    assert len([stream for stream in found.peaks if 1 <= stream <= POOL]) > 2
    assert found.held_by_others > 2 * took().held_by_others


@pytest.mark.parametrize("wait", [lambda v: v.item(), bool, float, lambda v: v.cpu(), lambda v: v.nonzero()])
def test_a_wait_in_backward_is_found(wait: Callable[[Tensor], Any]) -> None:
    real = ddp.not_finite

    def asks(vector: Tensor) -> Tensor:
        broken = real(vector)
        wait(broken)
        return broken

    with patch.object(ddp, "not_finite", asks):
        waits = took().waits
    assert {place.split(":")[0] for _, place in waits} == {"hook/ddp.py"}
    assert waits.total() == took().buckets


def test_a_launch_for_each_tensor_is_found() -> None:
    real = memory.BucketMemory.largest_of_tensors

    def one_by_one(self: Any, gradient: Tensor) -> Tensor:
        for _, own in self.layout.views(gradient):
            own.count_nonzero()
        return real(self, gradient)

    before = took().launches
    with patch.object(memory.BucketMemory, "largest_of_tensors", one_by_one):
        assert took().launches == before + len(SHAPES)


def test_a_mean_that_nobody_sets_is_found() -> None:
    """Backward would wait for it for ever."""

    def forgets(self: Any, work: Any, device: torch.device, make: Callable[[], Tensor]) -> Any:
        make()
        return torch.futures.Future(devices=[device])

    with patch.object(SideStreams, "behind", forgets), pytest.raises(AssertionError, match="the host waits for ever"):
        took()


def test_memory_on_the_cpu_is_refused() -> None:
    def on_cpu(*shape: Any, **options: Any) -> Tensor:
        return torch.empty(*shape).fill_(0)

    with patch.object(memory.torch, "zeros", on_cpu), pytest.raises(RefusedError, match="at least two devices"):
        took()


def test_what_cuda_refuses_is_refused() -> None:
    with pretend_gpu(), nccl(2):
        there = to_gpu(torch.ones(4))
        for action in (
            lambda: there + torch.ones(4),
            lambda: torch.cat([there, torch.ones(4)]),
            lambda: torch.sum(there, 0, out=torch.empty(())),
            lambda: torch.ones(()).add_(there[0]),
            lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
            lambda: there.to("cuda:3"),
            lambda: torch.cuda.set_device(8),
            lambda: there.pin_memory(),
        ):
            with pytest.raises(RefusedError):
                action()
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            there.numpy()
        assert (there + torch.tensor(1.0)).is_cuda  # a number is an argument of the kernel


def test_streams_are_ordered_by_events_alone() -> None:
    with pretend_gpu():
        side = torch.cuda.Stream()
        there = to_gpu(torch.ones(4))
        there.add_(1)
        with torch.cuda.stream(side):
            there.sum()
        assert STREAMS.hazards.total() == 1
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            there.sum()
        assert STREAMS.hazards.total() == 1
        there.add_(1)  # while the side stream may be reading
        assert STREAMS.hazards.total() == 2
        torch.cuda.synchronize()
        there.add_(1)
        assert STREAMS.hazards.total() == 2

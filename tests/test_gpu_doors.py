"""What outer steps, and the hook between sharded replicas, launch and wait for on a GPU; the GPU is pretended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import flare_dist
from flare_dist.cuts import Cut
from flare_dist.engines.fsdp_groups import Slice
from flare_dist.engines.fsdp_hook import GroupHook
from flare_dist.hook.backwards import ABSENT, elsewhere
from flare_dist.hook.call_order import CallOrder
from flare_dist.hook.side_streams import SideStreams
from flare_dist.hook.stand_ins import StandIns
from flare_dist.hook.state import SparseHookState
from tests.pretend_gpu.cuda import pretend_gpu
from tests.pretend_gpu.hook_steps import Parameters
from tests.pretend_gpu.kernels import triton
from tests.pretend_gpu.log import LOG, Log
from tests.pretend_gpu.nccl import nccl
from tests.pretend_gpu.streams import STREAMS
from tests.pretend_gpu.tensors import to_gpu

SHAPES = [(64, 40, 3, 3), (64,), (300, 200), (7, 3)]
MORE = 1.03


@contextmanager
def gpus(size: int) -> Iterator[None]:
    with pretend_gpu(), nccl(size), triton():
        yield


def outer_steps(steps: int, **settings: Any) -> tuple[list[Log], Counter[str]]:
    """What each of these outer steps did among eight equal replicas."""
    draws = torch.Generator().manual_seed(1)
    logs = []
    with gpus(8):
        model = Parameters(SHAPES).to("cuda")
        outer = flare_dist.outer(model, **settings)
        for _ in range(steps):
            for parameter in model.parameters():
                parameter.data.add_(to_gpu(torch.randn(parameter.shape, generator=draws)))
            with LOG.fresh() as own:
                outer.step()
            logs.append(own)
    return logs, Counter(STREAMS.hazards)


@pytest.mark.parametrize(("density", "sent", "applied"), [(0.01, 50, 25), (1.0, 5, 25)])
def test_an_outer_step_waits_once_when_it_is_applied(density: float, sent: int, applied: int) -> None:
    """Steps 2 and 4 send, 3 and 5 apply; whether weights are finite is asked then, of what has arrived."""
    logs, hazards = outer_steps(5, every=2, delay=1, density=density)
    assert not hazards
    assert [sum(log.waits.values()) for log in logs] == [0, 0, 1, 0, 1]
    assert logs[0].launches.total() == 0
    assert logs[3].launches.total() <= MORE * sent
    assert logs[4].launches.total() <= MORE * applied


def group_steps(steps: int) -> tuple[list[Log], Counter[str]]:
    """What the hook of one group of FSDP2 did, among eight equal replicas; two of its slices are padded or short."""
    draws = torch.Generator().manual_seed(1)
    cuts = {"a": Cut(0, 0, 64, (200, 60)), "b": Cut(0, 0, 5, (20,)), "c": Cut(0, 0, 100, (400, 128))}
    padded = {"a": 66 * 60, "b": 5, "c": 100 * 128}
    logs = []
    with gpus(8):
        shapes = {name: cut.own_shape for name, cut in cuts.items()}
        stand_ins = StandIns(shapes, torch.device("cuda"))
        state = SparseHookState(stand_ins, density=0.01, quiet=True)
        order = CallOrder(None, ABSENT, elsewhere)
        unused = nn.Parameter(torch.zeros(1))
        slices = [Slice(name, unused, cut, padded[name]) for name, cut in cuts.items()]
        group: Any = SimpleNamespace(
            slices=slices, device=torch.device("cuda"), exchanges=True, refuse_change=lambda: None
        )
        held: list[Tensor] = []
        backwards: Any = SimpleNamespace(hand_over=lambda number, label: order.compare(label), hold=held.append)
        hook = GroupHook(group, 3, state, backwards, stand_ins)
        for _ in range(steps):
            reduced = to_gpu(torch.randn(sum(padded.values()), generator=draws))
            with LOG.fresh() as own:
                state.begin_step()
                hook(reduced)
                held.clear()
                order.end_step()
                order.look()
            del reduced
            logs.append(own)
        state.begin_step()
    return logs, Counter(STREAMS.hazards)


def test_a_group_of_a_sharded_model_waits_for_nothing() -> None:
    """Ten launches more than a bucket of DistributedDataParallel takes, for padding and the order of calls."""
    logs, hazards = group_steps(3)
    assert not hazards
    assert not any(log.waits for log in logs)
    assert logs[2].launches.total() <= MORE * 51


def test_a_hook_that_forgets_to_hold_what_it_reads_is_a_hazard() -> None:
    with patch.object(SideStreams, "hold", lambda self, *tensors: None):
        assert group_steps(3)[1]

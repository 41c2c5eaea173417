"""What outer steps, and the hook between sharded replicas, launch and wait for on a GPU; the GPU is pretended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

import flare_dist
from flare_dist.cuts import Cut
from flare_dist.engines.fsdp_groups import Slice
from flare_dist.engines.fsdp_hook import GroupHook
from flare_dist.hook import backwards as backwards_module
from flare_dist.hook.backwards import Backwards
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
        backwards = Backwards(state)
        unused = nn.Parameter(torch.zeros(1))
        slices = [Slice(name, unused, cut, padded[name]) for name, cut in cuts.items()]
        group: Any = SimpleNamespace(
            slices=slices, device=torch.device("cuda"), exchanges=True, refuse_change=lambda: None
        )
        ends: list[Callable[[], None]] = []  # what autograd calls when a backward is over
        engine = SimpleNamespace(_execution_engine=SimpleNamespace(queue_callback=ends.append))
        hook = GroupHook(group, 3, state, backwards, stand_ins)
        over_shards, over_replicas = STREAMS.made(), STREAMS.made()
        for _ in range(steps):
            STREAMS.wait(STREAMS.event(), over_shards)  # as FSDP2 lets it before it allocates
            with STREAMS.on(over_shards):
                reduced = to_gpu(torch.randn(sum(padded.values()), generator=draws)).clone()
            STREAMS.wait(STREAMS.event(over_shards), over_replicas)
            with LOG.fresh() as own, patch.object(backwards_module, "Variable", engine):
                with STREAMS.on(over_replicas):
                    hook(reduced)
                held = [*backwards._held]
                del reduced  # as FSDP2 does, which has made a gradient of it
                STREAMS.wait(STREAMS.event(over_replicas))
                while ends:
                    ends.pop(0)()
            logs.append(own)
            STREAMS.wait(STREAMS.event(), over_shards)
            STREAMS.wait(STREAMS.event(), over_replicas)
            del held  # what was let go of by now is given away from here on
        with STREAMS.on(over_replicas):
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


def test_a_hook_that_lets_go_of_what_was_reduced_is_a_hazard() -> None:
    with patch.object(Backwards, "hold", lambda self, reduced: None):
        assert group_steps(3)[1]


def test_the_outer_state_can_stay_on_the_cpu() -> None:
    """Global weights and momentum lie there; what an outer step gives is the same."""
    weights = []
    for offload in (False, True):
        with gpus(8):
            torch.manual_seed(0)
            model = Parameters(SHAPES).to("cuda")
            outer = flare_dist.outer(model, every=1, density=0.1, offload=offload)
            for parameter in model.parameters():
                parameter.data.mul_(0.5)
            outer.step()
            kept = [*outer.fragments[0].global_weights.values()]
            moved = [own["momentum_buffer"] for own in outer.fragments[0].optimizer.state.values()]
            assert {each.device.type for each in kept + moved} == {"cpu" if offload else "cuda"}
            weights.append([parameter.detach().cpu() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights))

"""What the host does not wait for on a GPU, and on which GPU ranks meet; the GPU is pretended (pretend_gpu/)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from flare_dist.comm.host import Host
from flare_dist.comm.world import World
from flare_dist.compression.unwaited import largest_unwaited
from flare_dist.data.batches import BatchSource
from flare_dist.data.examples import Examples
from flare_dist.engines import deepspeed_hook
from flare_dist.hook.checkpoint import load_hook_state, save_hook_state
from flare_dist.hook.state import SparseHookState
from tests.helpers.batches import MEAN, STD
from tests.pretend_gpu.cuda import pretend_gpu
from tests.pretend_gpu.hook_steps import Parameters, hook_steps
from tests.pretend_gpu.log import RefusedError
from tests.pretend_gpu.nccl import nccl
from tests.pretend_gpu.streams import STREAMS
from tests.pretend_gpu.tensors import on_gpu, raw, to_gpu

SHAPES = [(300, 400), (50,), (7, 90)]


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_batches_are_not_waited_for(augment: str) -> None:
    examples = Examples(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), torch.arange(40))
    with pretend_gpu() as did:
        source = BatchSource(examples, MEAN, STD, "cuda", augment)
        did.waits.clear()  # the data set itself has gone there
        draws = ((torch.arange(40), torch.Generator().manual_seed(step)) for step in range(3))
        assert sum(inputs.is_cuda for inputs, _ in source.each(draws)) == 3
    assert not did.waits


@pytest.mark.parametrize(
    "settings",
    [{"sparsifier": "randk"}, {"error_feedback": "none", "value_codec": "int8"}, {"warmup": [0.5], "warmup_rounds": 1}],
    ids=str,
)
def test_random_selection_rounding_and_new_plans_are_not_waited_for(settings: dict[str, Any]) -> None:
    assert not hook_steps(SHAPES, 2, steps=2, **settings).waits


def test_codecs_that_look_at_no_draws_get_none() -> None:
    with patch("flare_dist.hook.selection.BucketSelection.draws", side_effect=AssertionError):
        hook_steps(SHAPES, 2, steps=1, error_feedback="none", value_codec="fp16")
        with pytest.raises(AssertionError):
            hook_steps(SHAPES, 2, steps=1, error_feedback="none", value_codec="int8")


def test_positions_of_values_that_are_no_numbers_are_in_the_vector() -> None:
    magnitudes = torch.tensor([1.0, torch.nan, 3.0, torch.inf, torch.nan, 0.0])
    assert largest_unwaited(magnitudes, 2).tolist() == [1, 4]
    assert largest_unwaited(magnitudes, 4).tolist() == [1, 2, 3, 4]
    assert largest_unwaited(magnitudes.bfloat16().abs(), 3).tolist() == [1, 3, 4]


def test_the_ranks_of_a_hook_meet_on_their_own_gpus(tmp_path: Path) -> None:
    """In a loop that never calls torch.cuda.set_device every rank's current GPU is the first."""
    with pretend_gpu(current=5), nccl(2):
        state = SparseHookState(Parameters(SHAPES).to("cuda"))
        save_hook_state(state, tmp_path)
        (tmp_path / "sparse-hook-00001-of-00002-step-0.pt").write_bytes(next(tmp_path.iterdir()).read_bytes())
        load_hook_state(state, tmp_path)
        with (
            patch("flare_dist.hook.files.Ranks.of", lambda group, parameters: (group, None)),
            pytest.raises(RefusedError),
        ):
            load_hook_state(state, tmp_path)


def test_control_messages_of_the_cpu_go_through_the_gpu_under_nccl() -> None:
    gpu = torch.device("cuda", 0)
    with pretend_gpu(), nccl(2):
        world = World(hosts=2, device=gpu, backend="nccl")
        gathered = world.gather_from_all(torch.tensor([3, 7], dtype=torch.uint8))
        host = Host(shards=2, wire=gpu).gather(torch.ones(3), [3, 2])
    assert gathered.tolist() == [[3, 7], [3, 7]]
    assert gathered.device == host.device == torch.device("cpu")
    assert host.tolist() == [1.0] * 5


def test_a_bucket_of_deepspeed_is_read_behind_the_copies_into_it() -> None:
    """With an optimizer on the CPU DeepSpeed copies gradients there on other streams, and notes an event of each."""

    def average(notes: bool) -> dict[str, int]:
        with pretend_gpu():
            other = torch.cuda.Stream()
            with torch.cuda.stream(other):
                gradients = on_gpu(torch.ones(10))
                torch.add(gradients, 1, out=gradients)
            noted = {"ready_events": {other: other.record_event()}, "copy_streams": {other}} if notes else {}
            bucket = SimpleNamespace(params=[(0, 0, 0)], **noted)
            optimizer = SimpleNamespace(
                ipg_buckets={torch.float32: bucket}, bit16_groups=[[None]], reduce_gradients=None
            )
            with patch.object(deepspeed_hook, "exchange_gradients", read_gradients):
                state: Any = None
                deepspeed_hook._replace_average(optimizer, state)
                optimizer.average_tensor(gradients, torch.float32)
            assert raw(gradients).tolist() == [4.0] * 10
            del gradients, noted, bucket, optimizer
            return dict(STREAMS.hazards)

    assert average(notes=True) == {}
    assert average(notes=False)


def read_gradients(state: Any, parameters: list[Tensor], buffer: Tensor) -> Any:
    mean = buffer * 2
    return SimpleNamespace(wait=lambda: mean)


def test_a_throughput_timer_is_off_unless_somebody_asks_for_it() -> None:
    from flare_dist.engines.config import EngineConfig
    from flare_dist.engines.deepspeed_config import deepspeed_settings

    def timers(**given: Any) -> Any:
        config = EngineConfig(name="deepspeed", deepspeed_config=given)
        return deepspeed_settings(config, 8, None, "federated")["timers"]

    assert timers() == {"throughput": {"enabled": False}}
    assert timers(timers={"throughput": {"enabled": True}}) == {"throughput": {"enabled": True}}


@pytest.mark.parametrize(("backend", "is_one"), [("gloo", True), ("nccl", False)])
def test_powersgd_overlaps_with_backward_where_its_order_is_sure(backend: str, is_one: bool) -> None:
    from flare_dist.comm.config import GradientsConfig
    from flare_dist.engines import data_parallel

    with (
        patch.object(data_parallel, "backend_of", lambda group: backend),
        patch.object(data_parallel, "DistributedDataParallel") as ddp,
    ):
        data_parallel.wrap(torch.nn.Linear(2, 2), GradientsConfig(hook="powersgd"), torch.device("cpu"))
    assert (ddp.call_args.kwargs["bucket_cap_mb"] is not None) == is_one


def test_a_gpu_that_is_not_pinned_to_is_waited_for() -> None:
    """That the harness sees it: a copy from ordinary memory, and one to the host."""
    with pretend_gpu() as did:
        there = torch.arange(5).to("cuda", non_blocking=True)
        assert did.waits.total() == 1
        to_gpu(torch.ones(3)).cpu()
        assert did.waits.total() == 2
        there.pow(2).sum().item()
        assert did.waits.total() == 3


def test_more_positions_than_an_index_can_name_are_refused_at_the_start() -> None:
    """DeepSpeed at stage 0 exchanges all gradients as one vector, whatever the size of its tensors."""
    module = SimpleNamespace(parameters=lambda: [torch.empty(2**30, device="meta", requires_grad=True)] * 2)
    engine: Any = SimpleNamespace(module=module, zero_optimization_stage=lambda: 0)
    with pytest.raises(ValueError, match="at most 2,147,483,647 entries, got 2,147,483,648 in all gradients"):
        deepspeed_hook._check_length(engine, 0.01)
    deepspeed_hook._check_length(engine, 1.0)

"""What PyTorch, Accelerate and DeepSpeed do not do themselves: when one of these fails, some of our code can go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import DistributedDataParallelKwargs
from torch.nn.parallel import DistributedDataParallel

from flare_dist.comm.world import World
from tests.helpers.hook import batch, make_accelerator, net, with_hook
from tests.ranks import run_ranks


class Counter:
    """A state for Accelerate to save, different on each rank."""

    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


def facts(world: World, directory: str) -> dict[str, Any]:
    """What the libraries do, as seen by one rank."""
    called: list[int] = []

    def written_as_text(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        raise AssertionError("never registered")

    def unknown_to_accelerate(state: None, bucket: torch.distributed.GradBucket) -> Any:
        called.append(bucket.index())

    refused = ""
    try:
        DistributedDataParallel(net()).register_comm_hook(None, written_as_text)
    except ValueError as error:
        refused = str(error)

    accelerator = make_accelerator(world)
    handed = DistributedDataParallel(net())
    DistributedDataParallelKwargs(comm_hook=unknown_to_accelerate).register_comm_hook(handed)
    F.cross_entropy(handed(batch(0, 0)[0]), batch(0, 0)[1]).backward()

    counter = Counter(world.rank)
    accelerator.register_for_checkpointing(counter)
    accelerator.save_state(directory)
    accelerator.wait_for_everyone()
    accelerator.load_state(directory)

    wrapped, state = with_hook(net(), density=0.05)
    F.cross_entropy(wrapped(batch(world.rank, 0)[0]), batch(world.rank, 0)[1]).backward()
    saved = set(wrapped.state_dict())
    return {
        "refused": refused,
        "called": called,
        "restored": counter.value,
        "saved": saved,
        "memory": state.state_dict(),
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(facts, 2, str(tmp_path_factory.mktemp("state")))


def test_ddp_refuses_hooks_whose_annotations_are_text(seen: Any) -> None:
    """Why hook/ddp.py does without `from __future__ import annotations`."""
    assert all("annotation" in rank["refused"] for rank in seen)
    source = Path(__file__).parent.parent / "flare_dist" / "hook" / "ddp.py"
    assert "from __future__ import annotations" not in source.read_text()


def test_accelerate_drops_a_hook_that_it_does_not_know(seen: Any) -> None:
    """Why there is attach(accelerator, model)."""
    assert all(rank["called"] == [] for rank in seen)


def test_accelerate_keeps_one_rank_s_registered_state(seen: Any) -> None:
    """Why the memory is saved by a hook on save_state, one file a rank."""
    assert [rank["restored"] for rank in seen] == [0, 0]


def test_a_ddp_checkpoint_holds_nothing_of_the_hook(seen: Any) -> None:
    """Why there is save_hook_state."""
    for rank in seen:
        assert rank["saved"] == {f"module.{name}" for name in net().state_dict()}
        assert rank["memory"]["memory"]


def test_deepspeed_has_no_hook() -> None:
    """Why attach(engine) replaces the engine's reduction; DeepSpeed#886."""
    import deepspeed

    names = {*dir(deepspeed.DeepSpeedEngine), *dir(deepspeed)}
    assert not [name for name in names if "comm_hook" in name]
    assert {"buffered_allreduce_fallback", "_get_gradients_for_reduction"} <= names

"""The watch for ranks that do not save."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import flare_dist
from flare_dist.comm.world import World
from flare_dist.hook.save_watch import SaveWatch, failed_anywhere
from tests.helpers.hook import assert_same_memory, attached, backward, said_by
from tests.ranks import run_ranks

RANKS = 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_notes_on_a_gpu_are_not_waited_for() -> None:
    watch = SaveWatch()
    words = torch.tensor([2, 0], dtype=torch.int32, device="cuda").view(-1, 1).view(torch.uint8)
    torch.cuda._sleep(10**9)
    watch.receive(words)
    watch.look()
    assert watch.is_whole is None
    torch.cuda.synchronize()
    with pytest.warns(UserWarning, match="rank 0 saved .* and rank 1 did not"):
        watch.look()


def note(watch: SaveWatch) -> torch.Tensor:
    return watch.note(torch.zeros((), dtype=torch.bool))


def test_a_save_that_one_rank_did_not_make_is_told_once() -> None:
    first, second = SaveWatch(), SaveWatch()
    first.count(Path("somewhere"))
    first.receive(torch.stack([note(first), note(second)]))
    assert first.is_whole is None
    with pytest.warns(UserWarning, match="rank 0 saved .* and rank 1 did not"):
        first.look()
    assert first.is_whole is False
    first.count(Path("somewhere"))
    first.receive(torch.stack([note(first), note(second)]))
    first.look()  # which would raise if it warned again
    second.count(Path("somewhere"))
    second.count(Path("somewhere"))
    first.receive(torch.stack([note(first), note(second)]))
    first.look()


def test_flags_of_failures_and_of_saves_are_independent() -> None:
    watch = SaveWatch()
    for saves in range(3):
        failed, fine = (watch.note(torch.tensor(answer)) for answer in (True, False))
        assert failed.view(torch.int32).item() == 2 * saves + 1
        assert fine.view(torch.int32).item() == 2 * saves
        assert failed_anywhere(torch.stack([fine, failed]))
        assert not failed_anywhere(torch.stack([fine, fine]))
        watch.count(Path("somewhere"))


def story_of_rank_0_alone(world: World, directory: str) -> dict[str, Any]:
    """Rank 0 saves and rank 1 does not, twice; then both load."""
    told: dict[str, Any] = {}
    ddp, hook = attached()
    quiet, plain = attached()
    backward(ddp, world.rank, range(3))
    backward(quiet, world.rank, range(3))
    if world.rank == 0:
        flare_dist.save_hook_state(hook, directory)
    saved = hook.state_dict()
    told["within two steps"] = said_by(lambda: backward(ddp, world.rank, range(3, 5)))
    told["afterwards"] = said_by(lambda: backward(ddp, world.rank, range(5, 8)))
    backward(quiet, world.rank, range(3, 8))
    told["same bytes"] = hook.wire_bytes == plain.wire_bytes
    assert_same_memory(hook.state_dict(), plain.state_dict())

    _, fresh = attached()
    told["raise"] = said_by(lambda: flare_dist.load_hook_state(fresh, directory))
    told["zero"] = said_by(lambda: flare_dist.load_hook_state(fresh, directory, missing="zero"))
    told["step"] = fresh.step
    if world.rank == 0:
        assert_same_memory(fresh.state_dict(), saved)
    told["is zero"] = not fresh.state_dict()["memory"]
    told["choice"] = said_by(lambda: flare_dist.load_hook_state(fresh, directory, missing="ignore"))
    return told


def test_rank_0_may_save_alone_and_is_told(tmp_path: Path) -> None:
    """Before, it waited for rank 1 until the process group's timeout."""
    first, second = run_ranks(story_of_rank_0_alone, RANKS, str(tmp_path))
    for told in (first, second):
        assert told["same bytes"]
        (warning,) = told["within two steps"]
        assert re.search(r"rank 0 saved .* and rank 1 did not.*on every rank, outside `if rank == 0`", warning)
        assert told["afterwards"] == []
        (refused,) = told["raise"]
        assert f"refused: {tmp_path} holds no complete set of sparse-hook files: those of rank 1 of 2 are" in refused
        (warning,) = told["zero"]
        assert "the memory of rank 1 is lost" in warning
        assert told["step"] == 3
        assert told["choice"] == ["refused: missing: unknown choice, got 'ignore'; choose from raise, zero"]
    assert (first["is zero"], second["is zero"]) == (False, True)
    assert first["raise"] == second["raise"]

"""The memory beside a checkpoint is loaded; if there is none, one warning says what is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flare_dist
from flare_dist.comm.world import World
from flare_dist.hook.checkpoint import resume_hook_state
from tests.helpers.hook import assert_same_memory, attached, backward, said_by
from tests.ranks import run_ranks


def resumes(world: World, directory: str) -> dict[str, Any]:
    ddp, state = attached()
    backward(ddp, world.rank, range(2))
    saved = state.state_dict()
    flare_dist.save_hook_state(state, directory)
    world.wait_for_all()
    backward(ddp, world.rank, range(1))
    told: dict[str, Any] = {"another step": said_by(lambda: resume_hook_state(state, directory, step=3))}
    assert state.step == 3
    told["whole"] = said_by(lambda: resume_hook_state(state, directory, step=2))
    assert_same_memory(state.state_dict(), saved)
    told["missing"] = said_by(lambda: resume_hook_state(state, f"{directory}/elsewhere"))
    told["left"] = (state.step, state.state_dict()["memory"])
    dense = attached(density=1)[1]
    told["dense"] = said_by(lambda: resume_hook_state(dense, f"{directory}/elsewhere"))
    other = attached(error_feedback="dgc", momentum=0.9)[1]
    told["other"] = said_by(lambda: resume_hook_state(other, directory))
    world.wait_for_all()
    if world.rank == 1:
        (Path(directory) / "sparse-hook-00001-of-00002-step-2.pt").unlink()
    world.wait_for_all()
    told["half"] = said_by(lambda: resume_hook_state(state, directory))
    return told


def test_a_memory_is_loaded_or_its_loss_is_told_once(tmp_path: Path) -> None:
    first, second = run_ranks(resumes, 2, str(tmp_path))
    (said,) = first["missing"]
    assert said.startswith(f"resume_from: no memory of the sparse hook in {tmp_path}/elsewhere, so ")
    assert "lost (residual: zero from now on)" in said
    assert second["missing"] == []
    for told in (first, second):
        assert told["whole"] == told["dense"] == []
        assert told["left"] == (0, {})
        (wrong,) = told["another step"]
        assert wrong.startswith(f"refused: resume_from: the memory in {tmp_path} must be of step 3 ")
        assert ", got step 2; give " in wrong
        (refused,) = told["other"]
        assert "refused: " in refused
        assert "the memory was saved under ec" in refused
        assert any("the memory of rank 1 is lost" in said for said in told["half"])

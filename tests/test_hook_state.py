"""Copies, pickles and saved memories of the hook's state."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import flare_dist
from flare_dist.comm.world import World
from flare_dist.hook.watch import HookWatch
from tests.helpers.hook import assert_same_memory, attached, backward
from tests.ranks import run_ranks

RANKS = 2


def copied(world: World, directory: str) -> list[tuple[bool, Any]]:
    """Copies of a hook's state by every way that people copy models."""
    ddp, hook = attached(scaler=torch.amp.GradScaler("cpu"), seed=3)
    backward(ddp, world.rank, range(3))
    path = Path(directory) / str(world.rank)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        models: list[Any] = [copy.deepcopy(ddp), AveragedModel(ddp).module]
        torch.save(ddp, path)
        models.append(torch.load(path, weights_only=False))
    torch.save(hook, path)
    states: list[Any] = [model._comm_hooks[0][1] for model in models]
    states += [torch.load(path, weights_only=False), copy.deepcopy(hook)]
    for state in states:
        assert_same_memory(state.state_dict(), hook.state_dict())
        assert (state.shapes, state.config, state.seed) == (hook.shapes, hook.config, 3)
        assert (state.scaler, state.process_group, state._names) == (None, None, {})
    backward(ddp, world.rank, range(3, 4))
    assert (states[0].step, hook.step) == (3, 4)
    size = path.stat().st_size
    assert size < 1.5 * 4 * sum(p.numel() for p in ddp.parameters()) + 20_000  # the memory, and no parameters
    return [(state.is_attached, type(state).__name__) for state in [hook, *states]]


def test_copies_keep_settings_step_and_memory_and_are_not_attached(tmp_path: Path) -> None:
    for found in run_ranks(copied, RANKS, str(tmp_path)):
        assert found == [(True, "SparseHookState"), *5 * [(False, "SparseHookState")]]


def test_the_rule_is_compared_by_load_state_dict_as_well() -> None:
    dgc = flare_dist.SparseHookState(nn.Linear(3, 2), error_feedback="dgc")
    ec = flare_dist.SparseHookState(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="saved under dgc, and here the rule is ec"):
        ec.load_state_dict(dgc.state_dict())
    memory: dict[str, dict[str, Tensor]] = {"weight": {kind: torch.ones(2, 3) for kind in dgc.state_names}}
    with pytest.raises(ValueError, match="weight holds residual, velocity, and rule ec keeps residual; attach with"):
        ec.load_state_dict({"step": 1, "memory": memory})


def test_pickles_that_name_the_modules_of_older_versions_load() -> None:
    """Before flare_dist.hook, the state was in comm/ddp_hook.py and the watch in comm/hook_watch.py."""
    hook = flare_dist.SparseHookState(nn.Linear(3, 2), density=0.05, seed=3)
    pickled = pickle.dumps(hook, protocol=2)
    assert b"cflare_dist.hook.state\n" in pickled
    older = pickle.loads(pickled.replace(b"cflare_dist.hook.state\n", b"cflare_dist.comm.ddp_hook\n"))
    assert (type(older), older.config, older.seed) == (flare_dist.SparseHookState, hook.config, 3)
    assert pickle.loads(b"cflare_dist.comm.hook_watch\nHookWatch\n.") is HookWatch
    assert pickle.loads(b"cflare_dist.comm.ddp_hook\nsparse_hook\n.") is flare_dist.sparse_hook
    with pytest.raises(AttributeError, match=r"attribute .other."):
        pickle.loads(b"cflare_dist.comm.ddp_hook\nother\n.")

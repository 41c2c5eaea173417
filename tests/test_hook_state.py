"""Settings, copies, pickles and saved memories of the hook's state."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import flare_dist
from flare_dist.comm.world import World
from flare_dist.hook.state import SparseHookState
from flare_dist.hook.watch import HookWatch
from tests.helpers.hook import STEPS, assert_same_memory, attached, backward, batch, flat, net, with_hook
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


def continued(world: World, at: int, other_buckets: bool) -> tuple[Tensor, dict[str, Any]]:
    """Twenty steps with a new model, DDP object and hook state after `at` of them, all loaded from the old ones."""
    model = net()
    ddp: dict[str, Any] = {}
    wrapped, state = with_hook(model, density=0.05, error_feedback="dgc", momentum=0.5)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for step in range(STEPS):
        if step == at:
            fresh = net()
            fresh.load_state_dict(model.state_dict())
            model, saved = fresh, state.state_dict()
            ddp = {"bucket_cap_mb": 0.001} if other_buckets else {}
            wrapped, state = with_hook(model, ddp, density=0.05, error_feedback="dgc", momentum=0.5)
            state.load_state_dict(saved)
            optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        optimizer.zero_grad()
        inputs, labels = batch(world.rank, step)
        F.cross_entropy(wrapped(inputs), labels).backward()
        optimizer.step()
    return flat(model), state.state_dict()


@pytest.mark.parametrize("other_buckets", [False, True])
def test_a_restored_state_goes_on_bitwise(other_buckets: bool) -> None:
    for (parameters, state), (expected, memory) in zip(
        run_ranks(continued, 2, 9, other_buckets), run_ranks(continued, 2, STEPS, False)
    ):
        assert torch.equal(parameters, expected)
        assert state["step"] == STEPS
        assert_same_memory(state, memory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scope": "global"}, r"^compression\.scope: global would let DDP's bucket sizes decide"),
        ({"sparsifier": "threshold"}, r"^compression\.sparsifier: the size of what threshold sends"),
        ({"error_feedback": "ef21"}, r"^compression\.error_feedback: ef21 needs a server"),
        ({"density": 0.0}, r"^compression\.density: out of range, got .*; choose a number in \(0, 1\]"),
        ({"dense_below": -1}, r"^compression\.dense_below: out of range, got -1; choose at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseHookState(net(), **settings)


def test_the_memory_of_another_model_is_refused() -> None:
    state = SparseHookState(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"holds parameters that the model has not: head"):
        state.load_state_dict({"step": 1, "memory": {"head": {}}})


def test_a_tensor_with_more_entries_than_positions_can_name_is_refused_unless_dense() -> None:
    table = nn.Embedding(2**21, 2**10, device="meta")
    with pytest.raises(ValueError, match=r"^compression\.sparsifier: .* got 2,147,483,648 in weight; use dense"):
        SparseHookState(table, density=0.01)
    SparseHookState(table, density=1.0)

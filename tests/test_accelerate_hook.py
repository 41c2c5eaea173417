"""The hook's memory in the checkpoints of Accelerate."""

from __future__ import annotations

import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.comm.world import World
from tests.helpers.hook import assert_same_memory, make_accelerator, net, said_by, step
from tests.ranks import run_ranks

RANKS = 2


def retried(world: World, directory: str) -> dict[str, Any]:
    """Two attempts under one Accelerator, as find_executable_batch_size and loops over folds make them."""
    accelerator = make_accelerator(world)
    others: list[str] = []
    accelerator.register_save_state_pre_hook(lambda models, weights, place: others.append(place))  # as diffusers has
    accelerator.register_load_state_pre_hook(lambda models, place: models.clear())
    told: dict[str, Any] = {}
    gone = []
    for attempt in range(3):
        accelerator.free_memory()
        model = net()
        prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        hook = flare_dist.attach(accelerator, prepared, density=0.05)
        gone.append(weakref.ref(hook))
        for number in range(2 + attempt):
            step(prepared, optimizer, world.rank, number, accelerator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accelerator.save_state(directory)
    world.wait_for_all()
    gc.collect()
    told["alive"] = [reference() is not None for reference in gone]
    told["hooks"] = len(accelerator._save_model_state_pre_hook), len(accelerator._load_model_state_pre_hook)
    saved = hook.state_dict()
    step(prepared, optimizer, world.rank, 9, accelerator)
    accelerator.load_state(directory)
    assert_same_memory(hook.state_dict(), saved)
    again = flare_dist.attach(accelerator, DistributedDataParallel(model), density=0.05)  # the same model anew
    accelerator.load_state(directory)
    assert_same_memory(again.state_dict(), saved)
    told["hooks again"] = len(accelerator._save_model_state_pre_hook), len(accelerator._load_model_state_pre_hook)
    told["stranger"] = said_by(lambda: flare_dist.attach(accelerator, DistributedDataParallel(net())))

    old = Path(directory) / "old"  # where the name counted the hooks before: here there was one
    accelerator.save_state(str(old))
    world.wait_for_all()
    (file,) = old.glob(f"sparse-hook-0000{world.rank}-*.pt")
    whole = torch.load(file)
    torch.save(
        {key: whole[key] for key in ("step", "memory")}, old / f"sparse-hook-1-0000{world.rank}-of-0000{world.size}.pt"
    )
    file.unlink()
    world.wait_for_all()
    told["old"] = said_by(lambda: accelerator.load_state(str(old)))
    assert_same_memory(again.state_dict(), whole)
    if world.rank == 1:
        (old / "sparse-hook-1-00001-of-00002.pt").unlink()
    world.wait_for_all()
    told["lost"] = said_by(lambda: accelerator.load_state(str(old)))
    return told


def test_accelerate_saves_the_attempt_that_it_holds(tmp_path: Path) -> None:
    for told in run_ranks(retried, RANKS, str(tmp_path)):
        assert told["alive"] == [False, False, True]
        assert told["hooks"] == told["hooks again"] == (2, 2)
        assert told["stranger"] == [
            "refused: attach: the accelerator does not hold this model; give it what accelerator.prepare returned"
        ]
        assert any("older version" in said for said in told["old"])
        assert any("the memory of rank 1 is lost" in said for said in told["lost"])
    names = sorted(path.name for path in tmp_path.glob("sparse-hook*"))
    assert names == [f"sparse-hook-0000{rank}-of-00002-step-4.pt" for rank in range(2)]

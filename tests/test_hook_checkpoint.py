"""What the hook remembers on the disk: nobody waits to save, sets are whole or named, strange files are refused."""

from __future__ import annotations

import gc
import re
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.comm.world import World
from flare_dist.hook import checkpoint
from tests.helpers.hook import assert_same_memory, attached, backward, make_accelerator, net, step
from tests.ranks import run_ranks

RANKS = 2


def said_by(call: Callable[[], Any]) -> list[str]:
    """What a call warns of, and the one line of the ValueError that it raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except ValueError as error:
            return [f"refused: {error}"]
    return [str(each.message) for each in caught if each.category is UserWarning]


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


class Ranks:
    """Saves of several ranks, from one process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.rank = 0
        self.states: dict[int, flare_dist.SparseHookState] = {}

    def save(self, directory: Path, number: int, ranks: list[int], size: int = 2) -> None:
        self.monkeypatch.setattr(checkpoint, "rank_and_size", lambda group: (self.rank, size))
        for self.rank in ranks:
            state = self.states.setdefault(self.rank, flare_dist.SparseHookState(nn.Linear(3, 2)))
            state.step = number
            flare_dist.save_hook_state(state, directory)

    def hear(self, *saves: int) -> None:
        """The next messages: how often each rank has saved."""
        words = torch.tensor(saves, dtype=torch.int32).mul(2).view(-1, 1).view(torch.uint8)
        for state in self.states.values():
            state.saves.receive(words)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state.saves.look()

    def start_again(self) -> None:
        self.states.clear()


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    return Ranks(monkeypatch)


def files(directory: Path) -> list[str]:
    """Rank, ranks and step of each file that is there."""
    found = [
        re.fullmatch(r"sparse-hook-0000(\d)-of-0000(\d)-step-(\d+)\.pt", path.name) for path in directory.iterdir()
    ]
    return sorted(f"{match[1]}/{match[2]}@{match[3]}" for match in found if match)


def test_one_directory_for_all_saves_holds_the_last(tmp_path: Path, ranks: Ranks) -> None:
    for number in (1, 2, 3):
        ranks.save(tmp_path, number, [1, 0])
    assert files(tmp_path) == ["0/2@3", "1/2@3"]


def test_a_crash_between_the_ranks_leaves_the_whole_set(tmp_path: Path, ranks: Ranks) -> None:
    ranks.save(tmp_path, 1, [0, 1])
    for number in (2, 3):
        (tmp_path / "sparse-hook-00000-of-00002-step-2.part").touch()
        ranks.start_again()
        ranks.save(tmp_path, number, [0])
        assert {"0/2@1", "1/2@1"} <= set(files(tmp_path))
    ranks.save(tmp_path, 4, [0, 1])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"sparse-hook-0000{rank}-of-00002-step-4.pt" for rank in (0, 1)
    ]


def test_other_numbers_of_ranks_and_older_versions_go_once_a_set_is_whole(tmp_path: Path, ranks: Ranks) -> None:
    (tmp_path / "sparse-hook-00000-of-00001.pt").touch()
    ranks.save(tmp_path, 9, [0, 1, 2], size=3)
    assert files(tmp_path) == ["0/3@9", "1/3@9", "2/3@9"]
    ranks.save(tmp_path, 5, [1], size=2)
    assert files(tmp_path) == ["0/3@9", "1/2@5", "1/3@9", "2/3@9"]
    ranks.save(tmp_path, 5, [0], size=2)
    assert files(tmp_path) == ["0/2@5", "1/2@5"]
    assert len(list(tmp_path.iterdir())) == 2


def test_rank_0_alone_neither_piles_up_nor_destroys_a_whole_set(tmp_path: Path, ranks: Ranks) -> None:
    ranks.save(tmp_path, 1, [0, 1])
    ranks.hear(1, 1)
    for saves, number in enumerate((2, 3, 4, 5), 2):
        ranks.save(tmp_path, number, [0])
        ranks.hear(saves, 1)
    assert files(tmp_path) == ["0/2@1", "0/2@5", "1/2@1"]


def test_ranks_with_disks_of_their_own_keep_the_save_before(tmp_path: Path, ranks: Ranks) -> None:
    """Each sees only its own files, so it learns from messages that a set is whole."""
    for saves, number in enumerate((10, 20, 30), 1):
        for rank in (0, 1):
            ranks.save(tmp_path / str(rank), number, [rank])
        ranks.hear(saves, saves)
    for rank in (0, 1):
        assert files(tmp_path / str(rank)) == [f"{rank}/2@20", f"{rank}/2@30"]
    ranks.save(tmp_path / "0", 40, [0])
    ranks.hear(4, 3)
    ranks.save(tmp_path / "0", 50, [0])  # rank 1 has 20 and 30, and 30 is whole
    assert "0/2@30" in files(tmp_path / "0")


NO_MEMORIES: dict[str, Any] = {
    "list": [1],
    "one vector": {"first.weight": torch.zeros(3)},
    "text": {"first.weight": {"residual": "x"}},
}


def story_of_loading(world: World, directory: str) -> dict[str, Any]:
    """What is loaded, and what is refused, in directories that hold more, less or something else."""
    told: dict[str, Any] = {}
    place = Path(directory)
    ddp, hook = attached()

    def load(name: str, number: int | None = None, **settings: Any) -> tuple[list[str], dict[str, Any]]:
        _, fresh = attached(**settings)
        told[name] = said_by(lambda: flare_dist.load_hook_state(fresh, place / "saves", step=number))
        return told[name], fresh.state_dict()

    backward(ddp, world.rank, range(2))
    flare_dist.save_hook_state(hook, place / "saves")
    first = hook.state_dict()
    world.wait_for_all()
    said, loaded = load("whole")
    assert not said
    assert_same_memory(loaded, first)
    load("another step", 7)
    load("dgc", error_feedback="dgc")
    load("dense", density=1)
    said, loaded = load("another density", density=0.2)
    assert not said
    assert_same_memory(loaded, first)
    odd = nn.Sequential(nn.Linear(12, 3))
    told["another model"] = said_by(
        lambda: flare_dist.load_hook_state(
            flare_dist.attach(DistributedDataParallel(odd), density=0.05), place / "saves"
        )
    )
    larger = nn.Sequential()
    larger.first, larger.middle, larger.last = net().children()
    larger.extra = nn.Linear(4, 4)
    told["more parameters"] = said_by(
        lambda: flare_dist.load_hook_state(
            flare_dist.attach(DistributedDataParallel(larger), density=0.05), place / "saves"
        )
    )

    backward(ddp, world.rank, range(2, 4))
    if world.rank == 0:
        flare_dist.save_hook_state(hook, place / "saves")  # and rank 1 is killed
    world.wait_for_all()
    load("crash")
    said, loaded = load("crash, step 2", 2)
    assert not said
    assert_same_memory(loaded, first)
    load("crash, step 4", 4)

    world.wait_for_all()
    file = place / "saves" / "sparse-hook-00001-of-00002-step-2.pt"
    if world.rank == 1:
        file.write_bytes(file.read_bytes()[:1000])
    world.wait_for_all()
    load("damaged", 2)
    for kind, memory in NO_MEMORIES.items():
        world.wait_for_all()
        if world.rank == 1:
            torch.save({"step": 2, "memory": memory}, file)
        world.wait_for_all()
        load(f"no memory: {kind}", 2)
    told["a file"] = said_by(lambda: flare_dist.load_hook_state(attached()[1], file))
    world.wait_for_all()

    _, anew = attached()  # somebody starts over in that directory: the step is smaller, and the save is the last
    anew.step = 1
    if world.rank == 0:
        flare_dist.save_hook_state(anew, place / "saves")
    world.wait_for_all()
    load("started over, damaged")

    old = hook.state_dict()
    torch.save({key: old[key] for key in ("step", "memory")}, place / f"sparse-hook-0000{world.rank}-of-00002.pt")
    world.wait_for_all()
    _, fresh = attached()
    told["old"] = said_by(lambda: flare_dist.load_hook_state(fresh, place))
    assert_same_memory(fresh.state_dict(), old)
    told["old, dgc"] = said_by(lambda: flare_dist.load_hook_state(attached(error_feedback="dgc")[1], place))
    told["old, another step"] = said_by(lambda: flare_dist.load_hook_state(attached()[1], place, step=3))

    dense, hook = attached(density=1)
    backward(dense, world.rank, range(2))
    if world.rank == 0:
        flare_dist.save_hook_state(hook, place / "dense")
    world.wait_for_all()
    told["nothing to lose"] = said_by(lambda: flare_dist.load_hook_state(attached(density=1)[1], place / "dense"))
    told["nothing there"] = said_by(lambda: flare_dist.load_hook_state(hook, place / "nowhere"))
    told["nothing there, zero"] = said_by(lambda: flare_dist.load_hook_state(hook, place / "nowhere", missing="zero"))
    return told


EXPECTED = {
    "whole": [],
    "another step": [r"no complete set of sparse-hook files of step 7 \(found: step 2\)"],
    "dgc": [r"step-2.pt: error_feedback: the memory was saved under ec, and here the rule is dgc"],
    "dense": [r"saved under ec, and here the rule is none \(at density 1"],
    "another model": [r"step-2.pt: the saved memory holds parameters that the model has not: first.bias, first"],
    "more parameters": [r"^[^:]*saves: the saved memory lacks extra.bias, extra.weight"],
    "crash": [r"those of rank 1 of 2 are missing of step 4.*load step=2, which is whole"],
    "crash, step 2": [],
    "crash, step 4": [r"those of rank 1 of 2 are missing of step 4"],
    "damaged": [r"00001-of-00002-step-2.pt: cannot be read"],
    **{f"no memory: {kind}": [r"00001-of-00002-step-2.pt: holds no memory of a sparse hook"] for kind in NO_MEMORIES},
    "a file": [r"00001-of-00002-step-2.pt: is a file; the hook's memory is in a directory"],
    "started over, damaged": [r"00001-of-00002-step-2.pt: holds no memory"],
    "old": [r"written by an older version"],
    "old, dgc": [r"the saved memory of first.weight holds residual, and rule dgc keeps residual, velocity"],
    "old, another step": [r"saved after different steps: 4, not step 3"],
    "nothing to lose": [],
    "nothing there": [r"nowhere holds no complete set of sparse-hook files \(found: none\)"],
    "nothing there, zero": [r"every rank begins without a memory"],
}


def test_what_is_loaded_fits_or_is_refused_in_one_line_on_every_rank(tmp_path: Path) -> None:
    first, second = run_ranks(story_of_loading, RANKS, str(tmp_path))
    assert first == second
    for name, patterns in EXPECTED.items():
        assert len(first[name]) == len(patterns), (name, first[name])
        for said, pattern in zip(first[name], patterns):
            assert "\n" not in said
            assert re.search(pattern, said), (name, said)


def broken_off(world: World, directory: str) -> int:
    """The step of what a script saves when a backward has ended in an error, as it does before it gives up."""
    ddp, hook = attached()
    backward(ddp, world.rank, range(2))
    hook.begin_step()
    hook.is_whole = False
    flare_dist.save_hook_state(hook, directory)
    world.wait_for_all()
    _, fresh = attached()
    flare_dist.load_hook_state(fresh, directory, step=2)
    return fresh.step


def test_a_save_after_a_backward_that_was_broken_off_is_of_the_step_before(tmp_path: Path) -> None:
    assert run_ranks(broken_off, RANKS, str(tmp_path)) == [2, 2]


def started_over(world: World, directory: str) -> tuple[list[str], int]:
    """A whole set of step 5, then one of step 2 by rank 0 alone; what is loaded?"""
    _, old = attached()
    old.step = 5
    flare_dist.save_hook_state(old, directory)
    world.wait_for_all()
    ddp, anew = attached()
    backward(ddp, world.rank, range(2))
    if world.rank == 0:
        flare_dist.save_hook_state(anew, directory)
    world.wait_for_all()
    said = said_by(lambda: flare_dist.load_hook_state(attached()[1], directory))
    world.wait_for_all()
    flare_dist.save_hook_state(anew, directory)
    world.wait_for_all()
    _, fresh = attached()
    flare_dist.load_hook_state(fresh, directory)
    return said, fresh.step


def test_the_last_save_counts_and_not_the_highest_step(tmp_path: Path) -> None:
    for (said,), number in run_ranks(started_over, RANKS, str(tmp_path)):
        assert re.search("those of rank 1 of 2 are missing of step 2;.*load step=5, which is whole", said)
        assert number == 2


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

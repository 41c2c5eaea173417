"""Which files of the hook's memory are kept when ranks save."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import flare_dist
from flare_dist.comm.world import World
from flare_dist.hook import checkpoint
from tests.helpers.hook import attached, backward
from tests.ranks import run_ranks

RANKS = 2


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

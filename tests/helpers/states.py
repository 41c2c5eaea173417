"""Clients' states in files, and what a checkpoint keeps of them."""

from __future__ import annotations

from pathlib import Path

import torch

from flare_dist.clients.mapped_states import FileStates
from flare_dist.clients.versions import StoredStates

CPU = torch.device("cpu")


def mapped_states(directory: Path, names: tuple[str, ...] = ("residual", "mask")) -> FileStates:
    return FileStates(names, 5, CPU, directory)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*/*.bin"))


def checkpoint(states: FileStates, round_: int) -> StoredStates:
    """Read the states in the checkpoint of a round, as a run that resumes does."""
    saved = states.for_checkpoint(round_)
    assert saved["clients"] == {}
    return StoredStates.of(states.clients.directory, [saved["slots"]], lambda client: True)


def change(states: FileStates, client: int, amount: float = 1.0) -> None:
    with states.lend(client) as lent:
        lent["residual"].add_(amount)

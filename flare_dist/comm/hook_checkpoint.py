"""The hook's memory beside a checkpoint of any kind: one file per rank, since every rank remembers something else.

    DIRECTORY/sparse-hook-00000-of-00002.pt

DDP's, Accelerate's and DeepSpeed's own checkpoints hold nothing of it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from flare_dist.comm.ddp_hook import SparseHookState
from flare_dist.comm.distributed import all_equal, rank_and_size

NAME = "sparse-hook"


def save_hook_state(state: SparseHookState, directory: str | Path, name: str = NAME) -> None:
    """Write this rank's memory to `directory`; call it on every rank, between steps.

    Several hooks, or several process groups, need a `name` each where they save to one directory. What another number
    of ranks had saved there is removed: it belongs to an older checkpoint.
    """
    rank, size = rank_and_size(state.process_group)
    path = Path(directory) / _file(name, rank, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(state.state_dict(), temporary)
    os.replace(temporary, path)
    all_equal(1, state.process_group)  # a barrier: all files of this set are there
    for other, files in _sets(path.parent, name).items():
        for file in files.values() if other != size else ():
            file.unlink(missing_ok=True)


def load_hook_state(state: SparseHookState, directory: str | Path, name: str = NAME) -> None:
    """Restore what `save_hook_state` wrote; call it on every rank.

    On another number of ranks each takes the mean over the ranks that saved: the mean residual, which is the update
    still to come, stays what it was. Raises ValueError where the files are missing, incomplete or of several steps.
    """
    rank, size = rank_and_size(state.process_group)
    own = Path(directory) / _file(name, rank, size)
    found = list(_sets(own.parent, name)) == [size] and own.exists()
    if all_equal(int(found), state.process_group) and found:  # each rank reads its own file, perhaps of its own disk
        saved = [_read(own)]
    else:
        saved = [_read(file) for file in _complete_set(Path(directory), name)]
    steps = {one["step"] for one in saved}
    if not all_equal(min(steps) if len(steps) == 1 else -1 - rank, state.process_group):
        raise ValueError(f"the sparse-hook files in {directory} were saved after different steps, or are not complete")
    state.load_state_dict({"step": saved[0]["step"], "memory": _mean([one["memory"] for one in saved])})


def _file(name: str, rank: int, size: int) -> str:
    return f"{name}-{rank:05d}-of-{size:05d}.pt"


def _sets(directory: Path, name: str) -> dict[int, dict[int, Path]]:
    """The files in `directory` by the number of ranks that saved them, and by rank."""
    sets: dict[int, dict[int, Path]] = {}
    for path in directory.glob("*-of-*.pt"):
        match = re.fullmatch(rf"{re.escape(name)}-(\d{{5}})-of-(\d{{5}})\.pt", path.name)
        if match:
            sets.setdefault(int(match[2]), {})[int(match[1])] = path
    return sets


def _complete_set(directory: Path, name: str) -> list[Path]:
    """The files of one save by rank."""
    sets = _sets(directory, name)
    whole = {size: files for size, files in sets.items() if sorted(files) == list(range(size))}
    if not whole:
        found = ", ".join(f"{len(files)} of {size} ranks" for size, files in sets.items()) or "none"
        raise ValueError(
            f"{directory} holds no complete set of {name} files (found: {found}); save_hook_state is called on "
            "every rank, and a checkpoint made without the hook is continued by attaching it after loading"
        )
    if len(whole) > 1:
        raise ValueError(f"{directory} holds sets of {', '.join(map(str, sorted(whole)))} ranks: remove all but one")
    ((_, files),) = whole.items()
    return [files[rank] for rank in sorted(files)]


def _read(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _mean(memories: list[dict[str, dict[str, torch.Tensor]]]) -> dict[str, dict[str, torch.Tensor]]:
    """The mean over ranks of each vector; a rank that holds none of a parameter counts as zero."""
    mean: dict[str, dict[str, torch.Tensor]] = {}
    for memory in memories:
        for name, own in memory.items():
            for kind, vector in own.items():
                total = mean.setdefault(name, {}).setdefault(kind, torch.zeros_like(vector))
                total.add_(vector, alpha=1 / len(memories))
    return mean

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
from flare_dist.comm.distributed import rank_and_size


def save_hook_state(state: SparseHookState, directory: str | Path) -> None:
    """Write this rank's memory to `directory`; call it on every rank, between steps."""
    rank, size = rank_and_size(state.process_group)
    path = Path(directory) / f"sparse-hook-{rank:05d}-of-{size:05d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(state.state_dict(), temporary)
    os.replace(temporary, path)


def load_hook_state(state: SparseHookState, directory: str | Path) -> None:
    """Restore what `save_hook_state` wrote; call it on every rank.

    On another number of ranks each takes the mean over the ranks that saved: the mean residual, which is the update
    still to come, stays what it was. Raises ValueError where the files are missing, incomplete or of several steps.
    """
    rank, size = rank_and_size(state.process_group)
    files = _complete_set(Path(directory), size)
    if len(files) == size:
        state.load_state_dict(_read(files[rank]))
        return
    saved = [_read(file) for file in files]
    if len({own["step"] for own in saved}) > 1:
        raise ValueError(f"the files in {directory} were saved after different steps")
    state.load_state_dict({"step": saved[0]["step"], "memory": _mean([own["memory"] for own in saved])})


def _complete_set(directory: Path, preferred: int) -> list[Path]:
    """The files of one save by rank; that of `preferred` ranks where the directory holds several."""
    sets: dict[int, dict[int, Path]] = {}
    for path in directory.glob("sparse-hook-*-of-*.pt"):
        match = re.fullmatch(r"sparse-hook-(\d+)-of-(\d+)\.pt", path.name)
        if match:
            sets.setdefault(int(match[2]), {})[int(match[1])] = path
    whole = {size: files for size, files in sets.items() if sorted(files) == list(range(size))}
    if not whole:
        raise ValueError(f"{directory} holds no complete set of sparse-hook files")
    if preferred not in whole and len(whole) > 1:
        raise ValueError(f"{directory} holds sets of {', '.join(map(str, sorted(whole)))} ranks: remove all but one")
    files = whole.get(preferred) or next(iter(whole.values()))
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

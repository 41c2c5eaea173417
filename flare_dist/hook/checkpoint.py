"""The hook's memory beside a checkpoint of any kind: one file per rank, since every rank remembers something else.

    DIRECTORY/sparse-hook-00000-of-00002-step-300.pt

DDP's, Accelerate's and DeepSpeed's own checkpoints hold nothing of it. Saving waits for nobody, since many scripts save
on one rank only: a set of files is whole once those of all ranks are there. Loading is done by all ranks together, and
what one of them cannot load is raised on all.
"""

from __future__ import annotations

import glob
import os
import time
import warnings
from collections.abc import Set
from pathlib import Path

import torch

from flare_dist.comm.collectives import rank_and_size
from flare_dist.hook.files import Ranks, SavedSet, find_sets, on_all_ranks
from flare_dist.hook.remembering import Remembering, savers
from flare_dist.hook.restore import load_named
from flare_dist.hook.state import SparseHookState

NAME = "sparse-hook"


def save_hook_state(state: Remembering, directory: str | Path, name: str = NAME) -> None:
    """Write this rank's memory to `directory`; call it on every rank, between steps. It waits for no other rank.

    Several hooks, or several process groups, need a `name` each if they save to one directory. Older files there are
    removed once it is known that a whole set remains without them.
    """
    rank, size = rank_and_size(savers(state))
    saved = state.state_dict() | {"ranks": size, "saved_at": time.time()}
    own = SavedSet(name + state.suffix, size, saved["step"])  # without a backward that was broken off
    path = Path(directory) / own.file(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    for broken_off in path.parent.glob(f"{glob.escape(own.name)}-{rank:05d}-of-*.part"):
        broken_off.unlink(missing_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(saved, temporary)
    os.replace(temporary, path)
    state.saves.look()
    for outdated in _outdated(state, own, path):
        outdated.unlink(missing_ok=True)
    state.saves.count(path)


def _outdated(state: Remembering, own: SavedSet, path: Path) -> list[Path]:
    """List the files beside `path`, which has just been written, that no whole set can need any more.

    If all ranks write to one disk, the last of them sees that the set is whole. A rank with a disk of its own never
    does; but by now the messages since the save before have shown whether all ranks made that one.
    """
    sets = find_sets(path.parent, own.name)
    previous = state.saves.last
    keep = {own}
    if len(sets[own]) < own.size:
        if previous is None or previous.parent != path.parent or previous == path:
            return []
        if state.saves.is_whole is None and state.state_names:
            return []
        if not state.saves.is_whole:  # it never will be, or there is nothing in it
            return [previous]
        keep |= {key for key, files in sets.items() if previous in files.values()}
    return [file for key, files in sets.items() if key not in keep for file in files.values()]


def load_hook_state(
    state: Remembering, directory: str | Path, name: str = NAME, missing: str = "raise", step: int | None = None
) -> None:
    """Restore what `save_hook_state` wrote last; call it on every rank. Raises the same ValueError on all of them.

    On another number of ranks each takes the mean over the ranks that saved: the mean residual, which is the update
    still to come, stays what it was.

    Args:
        missing: what to do if the files of some ranks are not there: raise, or zero (these ranks begin without a
            memory, and a warning names them).
        step: the `state.step` that the rest of the checkpoint is of; files of another step are refused.
    """
    load_named(state, directory, name + state.suffix, name, missing, step)


def resume_hook_state(state: SparseHookState, directory: str | Path, step: int | None = None) -> None:
    """Load the memory in `directory` on all ranks; if there is none, begin with an empty one and say what is lost.

    For trainers that load the checkpoint themselves. That warning comes once, on the first rank: a checkpoint may have
    been made without the hook. What `load_hook_state` refuses is refused here, too, and so are files if none is of
    `step`; files of some ranks that are missing are its warning.
    """
    place = Path(directory)
    ranks = Ranks.of(savers(state), state.parameters)
    found = set().union(*on_all_ranks(ranks, lambda: set(find_sets(place, NAME))))
    if found:
        _refuse_other_steps(place, {key.step for key in found} - {None}, step)
        load_hook_state(state, place, missing="zero", step=step)
        return
    state.load_state_dict({"step": 0, "memory": {}})
    if state.state_names and rank_and_size(state.process_group)[0] == 0:
        names = ", ".join(state.state_names)
        warnings.warn(
            f"resume_from: no memory of the sparse hook in {place}, so what its ranks had not sent yet is lost "
            f"({names}: zero from now on), and a warm-up begins anew; give the directory of sparse-hook-*.pt if they "
            "are elsewhere",
            stacklevel=3,
        )


def _refuse_other_steps(place: Path, found: Set[int | None], step: int | None) -> None:
    """Raise ValueError if there are files that note a step, and none notes that of the checkpoint."""
    if step is not None and found and step not in found:
        steps = ", ".join(map(str, sorted(each for each in found if each is not None)))
        raise ValueError(
            f"resume_from: the memory in {place} must be of step {step} as the checkpoint is, got step {steps}; give "
            "the directory of the memory that was saved with it"
        )

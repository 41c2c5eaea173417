"""Continue with the memory that lies beside a checkpoint, for trainers that load the checkpoint themselves."""

from __future__ import annotations

import warnings
from collections.abc import Set
from pathlib import Path

from flare_dist.comm.collectives import rank_and_size
from flare_dist.hook.checkpoint import NAME, load_hook_state
from flare_dist.hook.files import Ranks, find_sets, on_all_ranks
from flare_dist.hook.state import SparseHookState


def resume_hook_state(state: SparseHookState, directory: str | Path, step: int | None = None) -> None:
    """Load the memory in `directory` on all ranks; if there is none, begin with an empty one and say what is lost.

    That warning comes once, on the first rank: a checkpoint may have been made without the hook. What
    `load_hook_state` refuses is refused here, too, and so are files if none is of `step`; files of some ranks that are
    missing are its warning.
    """
    place = Path(directory)
    ranks = Ranks.of(state.process_group, state.parameters)
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

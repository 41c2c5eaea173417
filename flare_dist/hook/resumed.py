"""Continue with the memory that lies beside a checkpoint, for trainers that load the checkpoint themselves."""

from __future__ import annotations

import warnings
from pathlib import Path

from flare_dist.comm.collectives import rank_and_size
from flare_dist.hook.checkpoint import NAME, load_hook_state
from flare_dist.hook.files import find_sets, on_all_ranks
from flare_dist.hook.state import SparseHookState


def resume_hook_state(state: SparseHookState, directory: str | Path, step: int | None = None) -> None:
    """Load the memory in `directory` on all ranks; if there is none, begin with an empty one and say what is lost.

    That warning comes once, on the first rank: a checkpoint may have been made without the hook. What
    `load_hook_state` refuses is refused here, too; files of some ranks that are missing are its warning.
    """
    place = Path(directory)
    if any(on_all_ranks(state.process_group, lambda: bool(find_sets(place, NAME)))):
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

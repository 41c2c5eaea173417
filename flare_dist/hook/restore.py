"""Loading the hook's memory: the ranks agree on a set of files, read their shares and raise the same errors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flare_dist.comm.collectives import rank_and_size
from flare_dist.compression.preconditioners import second_moment_scale
from flare_dist.errors import check_choice
from flare_dist.hook.checks import check_saved
from flare_dist.hook.files import (
    Ranks,
    SavedSet,
    Views,
    look,
    may_be_meant,
    newest_set,
    numbers_of_shards,
    on_all_ranks,
    read_file,
    whole_sets,
)
from flare_dist.hook.remembering import Remembering, savers
from flare_dist.hook.shards import Memory, is_of_shard, joined, mean_of, replicas_in
from flare_dist.units import show_numbered


def load_named(
    state: Remembering, directory: str | Path, name: str, old_name: str, missing: str, step: int | None = None
) -> None:
    """Do what `load_hook_state` does, from files that an older version may have written under another name."""
    check_choice("missing", missing, ("raise", "zero"))
    place = Path(directory)
    ranks = Ranks.of(savers(state), state.parameters)
    seen, views = look(place, (name, old_name), ranks)
    candidates = may_be_meant(place, name, old_name, step, views)
    if not candidates:
        _raise_or_warn(missing, _nothing_found(place, name, step, views), "every rank begins without a memory")
        state.load_state_dict({"step": state.finished_steps, "memory": {}})
        return
    chosen = newest_set(candidates, seen, ranks)
    files = seen.get(chosen, {})
    is_own = all(on_all_ranks(ranks, lambda: _goes_on_with_own(chosen, files, state)))
    wanted = [_read_by(reader, chosen, is_own) for reader in range(len(views))]
    lost = sorted(set().union(*(want - view.get(chosen, set()) for want, view in zip(wanted, views))))
    own_wanted = wanted[rank_and_size(ranks.group)[0]]
    saved, heads = _read([files[number] for number in sorted(own_wanted - set(lost))], state, ranks)
    found = _common_step(place, chosen, step, heads)
    if lost and (found is None or any(head.remembers for head in heads)):
        loss = f"the memory of {show_numbered('rank', lost)} is lost, and zero from now on"
        _raise_or_warn(missing, _lost(place, chosen, lost, views), loss)
    memory, saved_by = _own_memory(saved, is_own, state)
    rescale_second_moments(memory, saved_by, rank_and_size(state.process_group)[1])
    shapes = {"shapes": state.shapes} if state.shard else {}
    shared = {"shared": saved[0]["shared"]} if saved and "shared" in saved[0] else {}
    of_step = state.finished_steps if found is None else found
    state.load_state_dict({"step": of_step, "memory": memory, **shapes, **shared})
    _warn_of_gaps(place, chosen, heads)


def _goes_on_with_own(chosen: SavedSet, files: Mapping[int, Path], state: Remembering) -> bool:
    """Tell if as many ranks saved as there are, and this one's file, if there is one, is of the rows that it has."""
    rank, size = rank_and_size(savers(state))
    return chosen.size == size and (rank not in files or is_of_shard(state.shard, files[rank]))


def _read_by(rank: int, chosen: SavedSet, is_own: bool) -> set[int]:
    """Return whose files a rank reads: its own, or those of all if the memory goes to other ranks."""
    return {rank} if is_own else set(range(chosen.size))


def _read(paths: Sequence[Path], state: Remembering, ranks: Ranks) -> tuple[list[dict[str, Any]], list[_Head]]:
    """Return what is in this rank's files, and the heads of what each rank has read."""
    saved: list[dict[str, Any]] = []

    def read() -> _Head:
        saved.extend(_read_own(path, state) for path in paths)
        return _Head.of(saved, state)

    heads = on_all_ranks(ranks, read)
    return saved, heads


def _own_memory(saved: Sequence[Mapping[str, Any]], is_own: bool, state: Remembering) -> tuple[Memory, int]:
    """Return this rank's memory, and how many replicas saved it.

    It is that of its own file, or comes from those of all ranks if others had saved.
    """
    rank, size = rank_and_size(state.process_group)  # of the replicas
    if is_own or not saved:
        return (dict(saved[0]["memory"]) if saved else {}), size
    by_replica = joined(saved, state.shard.cuts if state.shard else None)
    saved_by = replicas_in(saved)
    if saved_by == size:
        return by_replica.get(rank, {}), size
    return mean_of(list(by_replica.values()), saved_by, state.fed_back), saved_by


def rescale_second_moments(memory: Memory, saved_by: int, size: int) -> None:
    """Multiply the second moments of a preconditioner, in place, for another number of ranks; warn of it."""
    moments = [own["second_moment"] for own in memory.values() if "second_moment" in own]
    if not moments or saved_by == size:
        return
    factor = second_moment_scale(saved_by, size)
    for moment in moments:
        moment.mul_(factor)
    warnings.warn(
        f"gradients.preconditioner: {saved_by} ranks saved their second moments and {size} load them, times {factor:g} "
        "as if all ranks together still took as many examples; if each rank does, the first steps are too "
        f"{'small' if factor > 1 else 'large'}",
        stacklevel=4,
    )


class _Head(NamedTuple):
    """A summary of the files that one rank has read, for the other ranks."""

    steps: set[int]
    remembers: bool  # False if there is nothing in them to lose
    is_old: bool
    added: set[str]  # parameters that are trained now, and were not

    @classmethod
    def of(cls, saved: list[dict[str, Any]], state: Remembering) -> _Head:
        return cls(
            steps={one["step"] for one in saved},
            remembers=any(own for one in saved for own in one["memory"].values()),
            is_old=any("rule" not in one for one in saved),
            added=set().union(*(set(state.shapes) - set(one.get("shapes", state.shapes)) for one in saved)),
        )


def _common_step(place: Path, chosen: SavedSet, step: int | None, heads: Sequence[_Head]) -> int | None:
    """Return the step of all files, None if nothing was read; raises ValueError if they differ, or from `step`."""
    steps = sorted(set().union(*(head.steps for head in heads)))
    if len(steps) > 1 or (steps and step not in (None, *steps)):
        found = " and ".join(map(str, steps))
        expected = "one step" if step is None else f"step {step}"
        raise ValueError(f"{place}: the {chosen.name} files were saved after different steps: {found}, not {expected}")
    return steps[0] if steps else None


def _warn_of_gaps(place: Path, chosen: SavedSet, heads: Sequence[_Head]) -> None:
    """Warn of files that cannot be checked, and of parameters that they lack."""
    if any(head.is_old for head in heads):
        warnings.warn(
            f"{place}: the {chosen.name} files were written by an older version, which did not note the rule, the "
            "step and the parameters; check that they belong to this checkpoint",
            stacklevel=4,
        )
    added = sorted(set().union(*(head.added for head in heads)))
    if added:
        warnings.warn(f"{place}: the saved memory lacks {', '.join(added)}: zero from now on", stacklevel=4)


def _read_own(path: Path, state: Remembering) -> dict[str, Any]:
    """Read one file; raises ValueError if it is of another rule or model than this state's."""
    saved = read_file(path)
    try:
        check_saved(saved, state.rule_name, state.state_names, state.shapes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return saved


def _raise_or_warn(missing: str, problem: str, consequence: str) -> None:
    if missing == "raise":
        raise ValueError(f"{problem}; missing='zero' goes on without")
    warnings.warn(f"{problem}; {consequence}", stacklevel=4)


def _nothing_found(place: Path, name: str, step: int | None, views: Views) -> str:
    steps = sorted({key.step for view in views for key in view if key.name == name and key.step is not None})
    elsewhere = [] if steps else numbers_of_shards(place, name)
    if elsewhere:
        return (
            f"{place} holds outer steps of replicas of {' or '.join(map(str, elsewhere))} ranks, got another number; "
            "load them with as many, or call outer.finish() there and begin with the weights alone"
        )
    return (
        f"{place} holds no complete set of {name} files{'' if step is None else f' of step {step}'} (found: "
        f"{', '.join(f'step {one}' for one in steps) or 'none'}); save_hook_state is called on every rank, and a "
        "checkpoint made without the hook is continued by attaching it after loading"
    )


def _lost(place: Path, chosen: SavedSet, lost: list[int], views: Views) -> str:
    whole = sorted(key.step for key in whole_sets(set().union(*views), views) if key.step and key.name == chosen.name)
    of_step = "" if chosen.step is None else f" of step {chosen.step}"
    ranks = show_numbered("rank", lost)
    return (
        f"{place} holds no complete set of {chosen.name} files: those of {ranks} of {chosen.size} are "
        f"missing{of_step}; call save_hook_state on every rank, outside `if rank == 0`"
        f"{f', or load step={whole[-1]}, which is whole' if whole else ''}"
    )

"""The files of the hook's memory in a directory: what they are called, which belong together, which were saved last."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from flare_dist.comm.collectives import ProcessGroup, gather_objects

T = TypeVar("T")


class SavedSet(NamedTuple):
    """The files of one save, by what they have in common; it is whole if those of ranks 0 to size - 1 are there."""

    name: str
    size: int  # ranks that saved
    step: int | None  # None: by an older version, whose file names lack it

    def file(self, rank: int) -> str:
        step = "" if self.step is None else f"-step-{self.step}"
        return f"{self.name}-{rank:05d}-of-{self.size:05d}{step}.pt"


Seen = dict[SavedSet, dict[int, Path]]  # the files that a rank sees, by set and by the rank that saved them
Views = Sequence[dict[SavedSet, set[int]]]  # the same of all ranks, without the paths


def find_sets(directory: Path, *names: str) -> Seen:
    """Find the files of these names in `directory`, set by set."""
    if directory.is_file():
        raise ValueError(f"{directory}: is a file; the hook's memory is in a directory, one file a rank")
    sets: Seen = {}
    for path in directory.glob("*-of-*.pt"):
        match = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})(?:-step-(\d+))?\.pt", path.name)
        if match and match[1] in names:
            step = None if match[4] is None else int(match[4])
            sets.setdefault(SavedSet(match[1], int(match[3]), step), {})[int(match[2])] = path
    return sets


def read_file(path: Path, **options: Any) -> dict[str, Any]:
    """Read what one rank saved; raises ValueError with the path if it is damaged, or something else."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, **options)
    except Exception as error:  # of a zip file, of a pickle, of a disk
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: cannot be read ({reason}); save again, or take an older step") from error
    if not _is_memory(saved):
        raise ValueError(f"{path}: holds no memory of a sparse hook; save_hook_state writes such files")
    return saved


def _is_memory(saved: Any) -> bool:
    """Tell if it is what `SparseHookState.state_dict` gives, now or in an older version."""
    if not (isinstance(saved, dict) and isinstance(saved.get("step"), int) and isinstance(saved.get("memory"), dict)):
        return False
    own = list(saved["memory"].values())
    return all(isinstance(vectors, dict) for vectors in own) and all(
        isinstance(vector, torch.Tensor) for vectors in own for vector in vectors.values()
    )


class Ranks(NamedTuple):
    """The ranks of a model, and this one's device, through which NCCL moves what they tell each other."""

    group: ProcessGroup | None
    device: torch.device | None

    @classmethod
    def of(cls, group: ProcessGroup | None, parameters: Sequence[torch.Tensor]) -> Ranks:
        return cls(group, parameters[0].device if parameters else None)


def on_all_ranks(ranks: Ranks, action: Callable[[], T]) -> list[T]:
    """Return the results of `action` by rank; a ValueError or OSError of one rank is raised as ValueError on all."""
    result = None
    problem = None
    try:
        result = action()
    except (ValueError, OSError) as error:
        problem = str(error)
    gathered = gather_objects((result, problem), *ranks)
    problems = [problem for _, problem in gathered if problem is not None]
    if problems:
        raise ValueError(problems[0])
    return [result for result, _ in gathered]


def look(directory: Path, names: Sequence[str], ranks: Ranks) -> tuple[Seen, Views]:
    """Return the files of these names that this rank sees, and which ones each rank does; all ranks call it."""
    seen: Seen = {}

    def find() -> dict[SavedSet, set[int]]:
        seen.update(find_sets(directory, *names))
        return {key: set(files) for key, files in seen.items()}

    views = on_all_ranks(ranks, find)
    return seen, views


def may_be_meant(place: Path, name: str, old_name: str, step: int | None, views: Views) -> list[SavedSet]:
    """List the sets that may be meant: those of this version, of `step` if given; else the one of an older version."""
    found = set().union(*views)
    new = [key for key in found if key.name == name and key.step is not None]
    if new:
        return [key for key in new if step in (None, key.step)]
    old = [key for key in found if key.name == old_name and key.step is None]
    old = old or [key for key in found if key.name == name and key.step is None]
    whole = whole_sets(old, views)
    if len(old) > 1 and len(whole) != 1:
        sizes = ", ".join(str(key.size) for key in sorted(whole or old))
        raise ValueError(f"{place} holds sets of {sizes} ranks: remove all but one")
    return whole or old


def numbers_of_shards(place: Path, name: str) -> list[int]:
    """List on how many ranks a replica the outer steps there were saved, whatever shard `name` is of."""
    root = re.escape(name.partition("-shard-")[0])
    found = [re.match(rf"{root}(?:-shard-\d+-of-(\d+))?-\d{{5}}-of-", path.name) for path in place.glob("*.pt")]
    return sorted({int(each[1] or 1) for each in found if each})


def newest_set(candidates: Sequence[SavedSet], seen: Seen, ranks: Ranks) -> SavedSet:
    """Choose the set that was saved last, by the time in its files: steps begin anew if somebody starts over."""
    if len(candidates) == 1:
        return candidates[0]

    def times() -> dict[SavedSet, float]:
        return {
            key: max(read_file(path, mmap=True).get("saved_at", 0.0) for path in seen[key].values())
            for key in candidates
            if key in seen
        }

    by_rank = on_all_ranks(ranks, times)
    return max(candidates, key=lambda key: (max(own.get(key, 0.0) for own in by_rank), key.step, key.size))


def whole_sets(candidates: Iterable[SavedSet], views: Views) -> list[SavedSet]:
    """Choose the sets of which every file is seen by some rank."""

    def is_whole(key: SavedSet) -> bool:
        return set().union(*(view.get(key, set()) for view in views)) >= set(range(key.size))

    return [key for key in candidates if is_whole(key)]

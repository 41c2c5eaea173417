"""Checkpoints: one file per rank, complete once rank 0 has written the manifest.

    checkpoints/round-00000040/rank-00000.pt   the server's state and the state of the clients homed on rank 0
                               rank-00001.pt   the state of the clients homed on rank 1
                               manifest.json   round, world size and the SHA-256 of every file; written last

Where clients' memory is spilled to files (clients/slots.py), a rank's file names versions and checksums instead, which
are on the disk before the manifest is.

After a kill, or where a file is damaged, the ranks agree on the newest set that is whole for all of them. Randomness is
derived from the seed, so none is saved.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flare_dist.clients.slots import Slots
from flare_dist.comm.world import World
from flare_dist.disk import DiskError, explained
from flare_dist.records.files import on_all_ranks, save_state, sha256, write_text

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Restored:
    """What a checkpoint gives back to one rank."""

    round: int
    server: dict[str, Any]
    clients: Mapping[int, dict[str, Tensor]]  # the state of the clients homed on this rank now
    problems: list[str]  # files of theirs that are missing or cut off


def complete_rounds(directory: Path) -> list[int]:
    """Rounds in `directory` for which there is a manifest, ascending; says nothing of damage."""
    folders = (manifest.parent.name for manifest in directory.glob(f"round-*/{MANIFEST}"))
    return sorted(int(name.removeprefix("round-")) for name in folders if name.removeprefix("round-").isdecimal())


def _folder(directory: Path, round_: int) -> Path:
    return directory / f"round-{round_:08d}"


def save(
    directory: Path,
    round_: int,
    world: World,
    layout: list[list[object]],
    server: dict[str, Any],
    memory: dict[str, Any],
    keep: int,
) -> int:
    """Write this rank's part of the checkpoint of `round_`; all ranks call it together.

    `layout` names the tensors in the flat vectors, `server` counts on rank 0 only, `memory` is what the states of this
    rank's clients give for it. Older sets than the last `keep` are removed once the new one is complete; returns the
    round of the oldest that is left. Raises DiskError on all ranks if one of them cannot write its part, which leaves
    the sets before.
    """
    state = {"round": round_, "layout": layout, "server": server if world.rank == 0 else {}} | memory
    with _new_folder(_folder(directory, round_), world) as folder:
        path = folder / f"rank-{world.rank:05d}.pt"
        with on_all_ranks(world):
            save_state(path, _compact(state))
        digests = world.all_gather(torch.tensor(list(sha256(path)), dtype=torch.uint8))
        with on_all_ranks(world):  # no rank removes what an older set names before the new one is complete
            if world.rank == 0:
                files = {f"rank-{rank:05d}.pt": bytes(digest.tolist()).hex() for rank, digest in enumerate(digests)}
                manifest = {"format": 1, "round": round_, "world_size": world.size, "sha256": files}
                write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
                for old in complete_rounds(directory)[:-keep]:
                    shutil.rmtree(_folder(directory, old))
    return min(complete_rounds(directory))


@contextmanager
def _new_folder(folder: Path, world: World) -> Iterator[Path]:
    """Make the folder of a set, and remove it again if the disk does not take the whole set."""
    try:
        with on_all_ranks(world), explained("output_dir", folder):
            if world.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)  # what a killed group left there does not belong to this set
                folder.mkdir(parents=True)
        yield folder
    except DiskError:
        if world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # half a set only takes the space that is missing
        raise


def _compact(value: Any) -> Any:
    """All tensors on the CPU; copies of views, of which the whole storage would be written otherwise."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
    if isinstance(value, dict):
        return {key: _compact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_compact(item) for item in value]
    return value


def restore(directory: Path, world: World, layout: list[list[object]], state_dir: Path | None = None) -> Restored:
    """The newest checkpoint that every rank finds whole; all ranks call it together, and nothing is changed.

    `state_dir` is where the run has its clients' memory, if it is not in the checkpoint.
    Damaged sets are passed over with a warning. Raises ValueError on all ranks where no set is whole, or where the
    checkpoint holds another model.
    """
    newest = max(complete_rounds(directory), default=-1)
    while True:
        mine = [round_ for round_ in complete_rounds(directory) if round_ <= newest]
        newest = int(-world.largest([-float(max(mine, default=-1))])[0])  # the newest that all ranks have
        if newest < 0:
            raise ValueError(f"checkpoint.resume: no checkpoint in {directory} is whole on all ranks")
        folder = _folder(directory, newest)
        digests = _digests(folder)
        share = sorted(digests)[world.rank :: world.size]  # the shares of all ranks are the set
        restored = None
        if world.all_true(bool(digests) and not _damaged(folder, digests, share)):
            restored = _load(folder, layout, state_dir, world.rank, world.size)
            if world.all_true(not restored.problems):
                return restored
        if world.rank == 0:
            if restored:
                problems = _load(folder, layout, state_dir, 0, 1).problems  # those of all ranks
                problems[3:] = [f"{len(problems) - 3} more"] if len(problems) > 3 else []
            else:
                problems = _damaged(folder, digests, sorted(digests)) or [f"{folder / MANIFEST} cannot be read"]
            log.warning("%s; all ranks fall back to the checkpoint before round %d", "; ".join(problems), newest)
        newest -= 1


def discard_after(directory: Path, round_: int) -> None:
    """Remove what is newer than `round_`, damaged or never completed; for one rank, before the run goes on."""
    for folder in directory.glob("round-*"):
        number = folder.name.removeprefix("round-")
        if number.isdecimal() and int(number) > round_:
            shutil.rmtree(folder)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 by file name, from the manifest of a set; empty where it cannot be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return dict(manifest["sha256"]) if folder == _folder(folder.parent, manifest["round"]) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _damaged(folder: Path, digests: dict[str, str], names: list[str]) -> list[str]:
    """What is wrong with the files `names` of a set."""
    problems = []
    for name in names:
        try:
            if sha256(folder / name).hex() != digests[name]:
                problems.append(f"{folder / name} does not have the checksum of its manifest")
        except OSError as error:
            problems.append(f"{folder / name}: {error.strerror}")
    return problems


def _load(folder: Path, layout: list[list[object]], state_dir: Path | None, rank: int, size: int) -> Restored:
    """What a set has for one of `size` ranks. Files are mapped, so that only what is taken from them is read."""
    server: dict[str, Any] = {}
    clients: dict[int, dict[str, Tensor]] = {}
    spilled = []
    for name in sorted(_digests(folder)):
        state = torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True)
        if state["layout"] != layout:
            raise ValueError(f"checkpoint.resume: {folder} holds another model than the one that model.name gives")
        server = state["server"] or server
        clients.update({c: own for c, own in state["clients"].items() if c % size == rank})
        if "slots" in state:
            spilled.append(state["slots"])
    round_ = int(folder.name.removeprefix("round-"))
    if not spilled:
        return Restored(round_, server, clients, [])
    if state_dir is None:
        raise ValueError(f"checkpoint.resume: {folder} needs the clients.state_dir of its run, whose config has none")
    slots = Slots.of(state_dir, spilled, lambda client: client % size == rank)
    return Restored(round_, server, slots, slots.problems())

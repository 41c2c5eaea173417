"""Checkpoints: one file per rank, complete once rank 0 has written the manifest.

    checkpoints/round-00000040/rank-00000.pt   the server's state and the memory of the clients homed on rank 0
                               rank-00001.pt   the memory of the clients homed on rank 1
                               manifest.json   round, world size and the SHA-256 of every file; written last

After a kill, or where a file is damaged, the ranks agree on the newest set that is whole for all of them. Randomness is
derived from the seed, so none is saved.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flare_dist.comm.distributed import World
from flare_dist.run.files import save_state, sha256, write_text

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Restored:
    """What a checkpoint gives back to one rank."""

    round: int
    server: dict[str, Any]
    clients: dict[int, dict[str, Tensor]]  # the memory of the clients homed on this rank now


def complete_rounds(directory: Path) -> list[int]:
    """Rounds in `directory` for which there is a manifest, ascending; says nothing of damage."""
    return sorted(
        int(manifest.parent.name.removeprefix("round-")) for manifest in directory.glob(f"round-*/{MANIFEST}")
    )


def _folder(directory: Path, round_: int) -> Path:
    return directory / f"round-{round_:08d}"


def save(
    directory: Path,
    round_: int,
    world: World,
    layout: list[list[object]],
    server: dict[str, Any],
    clients: dict[int, dict[str, Tensor]],
    keep: int,
) -> None:
    """Write this rank's part of the checkpoint of `round_`; all ranks call it together.

    `layout` names the tensors in the flat vectors, `server` counts on rank 0 only. Older sets than the last `keep`
    are removed once the new one is complete.
    """
    folder = _folder(directory, round_)
    if world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # of a set that was found damaged: it is written anew
    world.wait_for_all()
    state = {"round": round_, "layout": layout, "clients": clients, "server": server if world.rank == 0 else {}}
    path = folder / f"rank-{world.rank:05d}.pt"
    save_state(path, _compact(state))
    digests = world.all_gather(torch.tensor(list(sha256(path)), dtype=torch.uint8))
    if world.rank == 0:
        files = {f"rank-{rank:05d}.pt": bytes(digest.tolist()).hex() for rank, digest in enumerate(digests)}
        manifest = {"format": 1, "round": round_, "world_size": world.size, "sha256": files}
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
        for old in complete_rounds(directory)[:-keep]:
            shutil.rmtree(_folder(directory, old))


def _compact(value: Any) -> Any:
    """Copies of all tensors on the CPU: saving a view would write the whole storage behind it."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _compact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_compact(item) for item in value]
    return value


def restore(directory: Path, world: World, layout: list[list[object]]) -> Restored | None:
    """The newest checkpoint that every rank finds whole, or None where there is none; all ranks call it together.

    Damaged sets are passed over with a warning, and removed. Raises ValueError where every set is damaged, or where
    the checkpoint holds another model.
    """
    bound = max(complete_rounds(directory), default=-1)
    found_any = bound >= 0
    while True:
        mine = [round_ for round_ in complete_rounds(directory) if round_ <= bound]
        bound = int(-world.largest([-float(max(mine, default=-1))])[0])
        if bound < 0:
            if found_any:
                raise ValueError(f"checkpoint.resume: every checkpoint in {directory} is damaged")
            return None
        damage = _find_damage(_folder(directory, bound), world)
        if world.all_true(not damage):
            break
        log.warning("the checkpoint of round %d is damaged; falling back to the one before", bound)
        for problem in damage:
            log.error("%s", problem)
        bound -= 1
    if world.rank == 0:
        for later in [round_ for round_ in complete_rounds(directory) if round_ > bound]:
            shutil.rmtree(_folder(directory, later))
    world.wait_for_all()
    return _load(_folder(directory, bound), world, layout)


def _find_damage(folder: Path, world: World) -> list[str]:
    """What is wrong with this rank's share of the files of a set; the shares of all ranks are the set."""
    try:
        expected = json.loads((folder / MANIFEST).read_text())["sha256"]
        names = sorted(expected)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder / MANIFEST}: {error}"]
    problems = []
    for name in names[world.rank :: world.size]:
        try:
            if sha256(folder / name).hex() != expected[name]:
                problems.append(f"{folder / name}: the content does not have the checksum of the manifest")
        except OSError as error:
            problems.append(f"{folder / name}: {error}")
    return problems


def _load(folder: Path, world: World, layout: list[list[object]]) -> Restored:
    server: dict[str, Any] = {}
    clients: dict[int, dict[str, Tensor]] = {}
    for state in _states(folder):
        if state["layout"] != layout:
            raise ValueError(
                f"checkpoint.resume: {folder} holds another model: its parameters differ from model.name's"
            )
        server = state["server"] or server
        clients.update({c: memory for c, memory in state["clients"].items() if c % world.size == world.rank})
    return Restored(int(folder.name.removeprefix("round-")), server, clients)


def _states(folder: Path) -> Iterator[dict[str, Any]]:
    """The files of a set one after the other; mapped, so that only what is taken from them is read."""
    for path in sorted(folder.glob("rank-*.pt")):
        yield torch.load(path, map_location="cpu", weights_only=True, mmap=True)

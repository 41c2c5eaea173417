"""One checkpoint on the disk: the files of its ranks, the manifest that makes them a set, and their damage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flare_dist.clients.versions import StoredStates
from flare_dist.cuts import ModelShard
from flare_dist.records.files import sha256
from flare_dist.records.rows import as_held

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Restored:
    """Hold what a checkpoint gives back to one rank."""

    round: int
    server: dict[str, Any]
    clients: Mapping[int, dict[str, Tensor]]  # the state of the clients whose home is this rank now
    problems: list[str]  # files of theirs that are missing or cut off


def complete_rounds(directory: Path) -> list[int]:
    """List the rounds in `directory` that have a manifest, ascending; their files may be damaged."""
    folders = (manifest.parent.name for manifest in directory.glob(f"round-*/{MANIFEST}"))
    return sorted(int(name.removeprefix("round-")) for name in folders if name.removeprefix("round-").isdecimal())


def folder_of(directory: Path, round_: int) -> Path:
    """Return the folder of the set of `round_`."""
    return directory / f"round-{round_:08d}"


def digests_of(folder: Path) -> dict[str, str]:
    """Read SHA-256 by file name from the manifest of a set; empty if it cannot be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return dict(manifest["sha256"]) if folder == folder_of(folder.parent, manifest["round"]) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def damage_in(folder: Path, digests: dict[str, str], names: list[str]) -> list[str]:
    """List what is wrong with the files `names` of a set."""
    problems = []
    for name in names:
        try:
            if sha256(folder / name).hex() != digests[name]:
                problems.append(f"{folder / name} does not have the checksum of its manifest")
        except OSError as error:
            problems.append(f"{folder / name}: {error.strerror}")
    return problems


def load_set(
    folder: Path,
    layout: list[list[object]],
    state_dir: Path | None,
    rank: int,
    size: int,
    shard: ModelShard | None = None,
) -> Restored:
    """Read what a set has for one of `size` hosts, or for the `shard` of it that a rank holds.

    Files are mapped, so that only what is taken from them is read.
    """
    server: dict[str, Any] = {}
    clients: dict[int, dict[str, Tensor]] = {}
    in_files: list[Any] = []
    states = [
        torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True)
        for name in sorted(digests_of(folder))
    ]
    for state in states:
        if state["layout"] != layout:
            raise ValueError(
                f"checkpoint.resume: {folder} holds another model than model.name builds; name the model of that run"
            )
    for state in states:  # before anything is put together
        state["clients"] = {client: own for client, own in state["clients"].items() if client % size == rank}
    for state in as_held(states, shard, layout):
        server = state["server"] or server
        clients.update(state["clients"])
        if "slots" in state:
            in_files.append(state["slots"])
    round_ = int(folder.name.removeprefix("round-"))
    if not in_files:
        return Restored(round_, server, clients, [])
    if state_dir is None:
        raise ValueError(
            f"checkpoint.resume: {folder} needs the clients.state_dir of its run, and its config.yaml has none; "
            "write the path into it"
        )
    stored = StoredStates.of(state_dir, in_files, lambda client: client % size == rank)
    return Restored(round_, server, stored, stored.problems())

"""Checkpoints: one file per rank, complete once rank 0 has written the manifest.

    checkpoints/round-00000040/rank-00000.pt   the server's state, and the memory of the clients whose home is rank 0
                               rank-00001.pt   the memory (residuals and the like) of those whose home is rank 1
                               manifest.json   round, world size and the SHA-256 of every file; written last

If hosts have several ranks, each rank writes its slices of what its host has to say, and which they are (rows.py).
If clients' memory is in files of its own (clients/versions.py), a rank's file names their versions and checksums
instead, and they are on the disk before the manifest is. The hook has checkpoints of its own (hook/checkpoint.py).

After a kill, or if a file is damaged, the ranks agree on the newest set that is whole for all of them. Randomness is
derived from the seed, so none is saved.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flare_dist.comm.failures import on_all_ranks
from flare_dist.comm.world import World
from flare_dist.cuts import ModelShard
from flare_dist.disk import explained
from flare_dist.errors import ReportedError
from flare_dist.records.checkpoint_set import (
    MANIFEST,
    Restored,
    complete_rounds,
    damage_in,
    digests_of,
    folder_of,
    load_set,
)
from flare_dist.records.files import save_state, sha256, write_text
from flare_dist.records.rows import described

log = logging.getLogger(__name__)


def save(
    directory: Path,
    round_: int,
    world: World,
    layout: list[list[object]],
    server: dict[str, Any],
    memory: dict[str, Any],
    keep: int,
    shard: ModelShard | None = None,
) -> int:
    """Write this rank's part of the checkpoint of `round_`; all ranks call it together.

    `layout` names the tensors in the flat vectors, of which this rank holds the slices of `shard` (None = all).
    `server` is saved by host 0 only, `memory` is that of this host's clients. Older sets than the last `keep` are
    removed once the new one is complete; returns the round of the oldest that is left. Raises ReportedError on all
    ranks if one of them cannot write its part; the sets before stay.
    """
    of_server = server if world.host_number == 0 else {}
    state = {"round": round_, "layout": layout, "server": of_server, **described(shard)} | memory
    with _new_folder(folder_of(directory, round_), world) as folder:
        path = folder / f"rank-{world.rank:05d}.pt"
        with on_all_ranks(world):
            save_state(path, _compact(state))
        digests = world.gather_from_all(torch.tensor(list(sha256(path)), dtype=torch.uint8))
        with on_all_ranks(world):  # no rank removes what an older set names before the new one is complete
            if world.rank == 0:
                files = {f"rank-{rank:05d}.pt": bytes(digest.tolist()).hex() for rank, digest in enumerate(digests)}
                manifest = {"format": 1, "round": round_, "world_size": world.size, "sha256": files}
                write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
                for old in complete_rounds(directory)[:-keep]:
                    shutil.rmtree(folder_of(directory, old))
    return min(complete_rounds(directory))


@contextmanager
def _new_folder(folder: Path, world: World) -> Iterator[Path]:
    """Make the folder of a set, and remove it again if the disk does not take the whole set; all ranks together."""
    try:
        with on_all_ranks(world), explained("output_dir", folder):
            if world.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)  # a killed group may have left files of another set
                folder.mkdir(parents=True)
        yield folder
    except ReportedError:
        if world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # half a set only takes the space that is missing
        raise


def _compact(value: Any) -> Any:
    """Copy views, for torch.save would write their whole storage.

    What is whole on a GPU stays there: torch.save copies one storage after another to the CPU, and not all at once.
    """
    if isinstance(value, Tensor):
        tensor = value.detach()
        return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.cpu().clone()
    if isinstance(value, dict):
        return {key: _compact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_compact(item) for item in value]
    return value


def restore(
    directory: Path,
    world: World,
    layout: list[list[object]],
    state_dir: Path | None = None,
    shard: ModelShard | None = None,
) -> Restored:
    """Read the newest checkpoint that every rank finds whole; all ranks call it together, and nothing is changed.

    `state_dir` is the directory of the clients' memory, if that is not in the checkpoint. Damaged sets are passed over
    with a warning. Raises ValueError on all ranks if no set is whole, or if the checkpoint holds another model.
    """
    newest = max(complete_rounds(directory), default=-1)
    while True:
        mine = [round_ for round_ in complete_rounds(directory) if round_ <= newest]
        newest = int(-world.largest([-float(max(mine, default=-1))])[0])  # the newest that all ranks have
        if newest < 0:
            raise ValueError(
                f"checkpoint.resume: no checkpoint in {directory} is whole on all ranks; start over with never"
            )
        folder = folder_of(directory, newest)
        digests = digests_of(folder)
        share = sorted(digests)[world.rank :: world.size]  # the shares of all ranks are the set
        restored = None
        if world.all_true(bool(digests) and not damage_in(folder, digests, share)):
            restored = load_set(folder, layout, state_dir, world.host_number, world.hosts, shard)
            if world.all_true(not restored.problems):
                return restored
        if world.rank == 0:
            problems = _problems(folder, layout, state_dir, was_read=restored is not None)
            log.warning("%s; all ranks fall back to the checkpoint before round %d", "; ".join(problems), newest)
        newest -= 1


def _problems(folder: Path, layout: list[list[object]], state_dir: Path | None, was_read: bool) -> list[str]:
    """List what is wrong with a set, of all ranks; if it `was_read`, that is in files of clients."""
    if was_read:
        problems = load_set(folder, layout, state_dir, 0, 1).problems
        return problems if len(problems) <= 3 else [*problems[:3], f"{len(problems) - 3} more"]
    digests = digests_of(folder)
    return damage_in(folder, digests, sorted(digests)) or [f"{folder / MANIFEST} cannot be read"]


def discard_after(directory: Path, round_: int) -> None:
    """Remove what is newer than `round_`, damaged or never completed; for one rank, before the run goes on."""
    for folder in directory.glob("round-*"):
        number = folder.name.removeprefix("round-")
        if number.isdecimal() and int(number) > round_:
            shutil.rmtree(folder)

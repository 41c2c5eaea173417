"""The process group of a run: where its ranks meet, who is where, and how it ends, in order or not."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from flare_dist.comm.collectives import hold
from flare_dist.comm.heartbeat import heartbeat
from flare_dist.comm.host import Host
from flare_dist.comm.launch import Launch
from flare_dist.comm.leave import destroy_or_leave
from flare_dist.comm.places import Place, agree_on_backend, neighbours, share_places
from flare_dist.comm.rank_progress import RankProgress
from flare_dist.comm.world import World

_last_group: list[Any] = []  # of all ranks, as it was opened here last; it may have ended
# By place; rank 0's may be the server of all others, who come back to it for the next run of the same processes.
_stores: dict[tuple[str, str, str], dist.Store] = {}

AS_LONG_AS_IT_TAKES = timedelta(days=365)  # for a group wants a limit
COLLECTIVE_SECONDS = 1800.0  # for which one rank may keep the others waiting in a collective


@contextmanager
def open_world(
    launch: Launch,
    device: torch.device,
    timeout_seconds: float,
    rendezvous: str = "env://",
    alone: bool = False,
    collective_seconds: float = COLLECTIVE_SECONDS,
    step_seconds: float | None = None,
    shards: int = 1,
) -> Iterator[World]:
    """Open the process group of this run, which is destroyed at its end, but not if the block raises.

    To destroy it may wait for the other ranks, who wait for this one in a collective. What a failed block has left over
    goes when the next group is opened or the process ends.

    Each host has `shards` consecutive ranks. The ranks meet at `rendezvous`. A process without a launcher gets a group
    only with `alone`, which DistributedDataParallel needs. A rank that gives no sign of life for `timeout_seconds` ends
    the run, and so does one whose steps stop for `step_seconds` while the others wait; by default, as long as a
    collective may take.

    The store is prefixed by the launcher's attempt, and by how many groups it has served: a group that reuses the keys
    of the group before it fails or hangs more often than not.
    """
    if launch.size == 1 and not launch.launched and not alone:
        yield World(device=device)
        return
    _destroy_left_over()
    timeout = timedelta(seconds=max(timeout_seconds, collective_seconds))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    rank = launch.rank
    size = launch.size
    store: dist.Store = dist.HashStore()
    if launch.launched or size > 1:
        store = _store_of_attempt(launch, rendezvous, timeout)
    store = dist.PrefixStore(f"group_{store.add(f'groups_of_{rank}', 1)}", store)
    progress = RankProgress(_marks_on(device) if size > 1 and step_seconds else None)
    watched: AbstractContextManager[None] = nullcontext()
    if size > 1:  # the store of the signs of life is another connection, for a store serves one thread at a time
        watched = heartbeat(store.clone(), rank, size, timeout_seconds, progress, step_seconds or collective_seconds)
    with watched:
        backend = agree_on_backend(share_places(store, rank, size, Place.of(device)))
        own_gpu = device if backend == "nccl" else None
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout, device_id=own_gpu)
        # On gloo whatever the backend: rank 0 may train, evaluate or save alone for hours while no GPU waits, and the
        # broken connection of a rank that dies is an error at once.
        meeting_group: Any = dist.new_group(backend="gloo", timeout=AS_LONG_AS_IT_TAKES) if size > 1 else None
        _last_group[:] = [dist.group.WORLD]
        hold(meeting_group)
        try:
            group, host = _divided(rank, size, shards, device if backend == "nccl" else torch.device("cpu"))
            hosts = size // shards
            yield World(rank // shards, hosts, device, backend, progress, meeting_group, group, host)
        except BaseException:
            if size == 1:
                _destroy_left_over()
            atexit.register(destroy_or_leave, _destroy_left_over)
            raise
        finally:
            progress.close()
        gc.collect()  # futures still alive here can abort the process when the group goes first
        dist.destroy_process_group()


def _divided(rank: int, size: int, shards: int, wire: torch.device) -> tuple[Any, Host]:
    """Divide the ranks into hosts of `shards`; returns the ranks of this one's shard (None = all), and its host."""
    if shards == 1:
        return None, Host()
    of_shards = [dist.new_group(list(range(shard, size, shards))) for shard in range(shards)]
    of_hosts = [dist.new_group(list(range(first, first + shards))) for first in range(0, size, shards)]
    of_shard: Any = of_shards[rank % shards]
    of_host: Any = of_hosts[rank // shards]
    hold(of_shard)
    hold(of_host)
    return of_shard, Host(rank % shards, shards, of_host, wire)


def with_neighbours(launch: Launch, timeout_seconds: float, rendezvous: str = "env://") -> Launch:
    """Add what a launcher does not tell: which of how many ranks on this host this one is. All ranks call it."""
    if launch.local_size:
        return launch
    store = _store_of_attempt(launch, rendezvous, timedelta(seconds=max(timeout_seconds, COLLECTIVE_SECONDS)))
    places = share_places(dist.PrefixStore("hosts", store), launch.rank, launch.size, Place.of(torch.device("cpu")))
    here = neighbours(places, launch.rank)
    local_rank = launch.local_rank if launch.launched else here.index(launch.rank)
    return replace(launch, local_rank=local_rank, local_size=len(here))


def _store_of_attempt(launch: Launch, rendezvous: str, timeout: timedelta) -> dist.Store:
    """Meet the other ranks at a store, with keys of this attempt of the launcher."""
    where = (rendezvous, os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", ""))
    if where not in _stores:
        _stores[where] = next(dist.rendezvous(rendezvous, launch.rank, launch.size, timeout=timeout))[0]
    return dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", _stores[where])


def _marks_on(device: torch.device) -> Callable[[], torch.cuda.Event] | None:
    """Return what records an event behind all that a GPU has been given so far; None for a CPU."""
    if device.type != "cuda":
        return None

    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record()
        return event

    return mark


def is_left_over() -> bool:
    """Tell if there still is the group of a run that has failed."""
    return bool(_last_group) and _last_group[0] is dist.group.WORLD


def _destroy_left_over() -> None:
    """Destroy the group of a run that has failed, if there is one."""
    if is_left_over():
        gc.collect()
        dist.destroy_process_group()

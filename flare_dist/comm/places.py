"""Who is where: the ranks agree on their hosts and GPUs before the process group exists, and so on its backend.

What one rank sees does not tell: a task that SLURM gives one GPU sees a single one, and so does a pod; of two nodes one
may have a broken GPU.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from flare_dist.comm.collectives import Store
from flare_dist.units import show_numbered

log = logging.getLogger(__name__)

BOOT = Path("/proc/sys/kernel/random/boot_id")  # tells apart hosts of the same name


@dataclass(frozen=True)
class Place:
    """Where a rank is."""

    host: str
    boot: str  # differs between hosts of the same name
    kind: str  # of its device: cpu or cuda
    gpu: str = ""  # the UUID of its GPU, which is the same whoever looks

    @classmethod
    def of(cls, device: torch.device) -> Place:
        """Return the place of this process."""
        gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
        return cls(socket.gethostname(), BOOT.read_text().strip() if BOOT.exists() else "", device.type, gpu)


class MixedDevicesError(ValueError):
    """Raised on every rank alike if some have GPUs and others do not."""

    is_agreed = True


def share_places(store: Store, rank: int, size: int, own: Place) -> list[Place]:
    """Return the places of all ranks, in their order; all of them call it."""
    store.set(f"place/{rank}", json.dumps(astuple(own)))
    return [Place(*json.loads(store.get(f"place/{other}"))) for other in range(size)]


def neighbours(places: Sequence[Place], rank: int) -> list[int]:
    """Return the ranks on the host of `rank`, itself among them."""
    here = (places[rank].host, places[rank].boot)
    return [other for other, place in enumerate(places) if (place.host, place.boot) == here]


def agree_on_backend(places: Sequence[Place]) -> str:
    """Choose NCCL if every rank has a GPU of its own (NCCL refuses a shared one), otherwise gloo.

    Raises MixedDevicesError that names the hosts if some ranks have GPUs and others do not.
    """
    kinds = sorted({place.kind for place in places}, reverse=True)
    if len(kinds) > 1:
        found = ", ".join(f"{kind} on {_hosts(places, kind)}" for kind in kinds)
        raise MixedDevicesError(
            f"engine.device: all ranks need devices of one kind, got {found}; look at nvidia-smi on the hosts with "
            "cpu, leave them out, or set engine.device=cpu"
        )
    if kinds == ["cpu"]:
        return "gloo"
    shared = _sharing(places)
    if not shared:
        return "nccl"
    log.warning(
        "engine.device: %s of %s share a GPU, so that all ranks exchange over gloo, through the CPUs; start one rank "
        "for each GPU for NCCL",
        show_numbered("rank", shared),
        places[shared[0]].host,
    )
    return "gloo"


def _hosts(places: Sequence[Place], kind: str) -> str:
    """List the hosts of a kind of device, each with its ranks."""
    hosts: dict[str, list[int]] = {}
    for rank, place in enumerate(places):
        if place.kind == kind:
            hosts.setdefault(place.host, []).append(rank)
    return " and ".join(f"{host} ({show_numbered('rank', ranks)})" for host, ranks in hosts.items())


def _sharing(places: Sequence[Place]) -> list[int]:
    """Return the ranks on the first GPU that several have; empty if there is none."""
    ranks: dict[str, list[int]] = {}
    for rank, place in enumerate(places):
        ranks.setdefault(place.gpu, []).append(rank)
    return next((on_it for on_it in ranks.values() if len(on_it) > 1), [])

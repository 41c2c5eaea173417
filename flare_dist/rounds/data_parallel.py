"""A data-parallel run: its model, its hook, and the hook's memory in checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flare_dist.comm.world import World
from flare_dist.data.batches import SharedEpochs
from flare_dist.hook.library import LibraryHookState
from flare_dist.hook.memory import lengths_of
from flare_dist.hook.restore import rescale_second_moments
from flare_dist.hook.state import SparseHookState
from flare_dist.rounds.local_run import LocalRun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataParallel(LocalRun):
    """The parties of mode: gradient."""

    hook: SparseHookState | LibraryHookState
    epochs: SharedEpochs

    def held_alike(self) -> list[Tensor]:
        """Return what every rank must hold with the same bits."""
        return [self.view, self.server.buffers]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint saves beside the hook's memory; references, not copies."""
        return super().state_dict() | {"step": self.hook.step}

    def memory_to_save(self, round_: int) -> dict[str, Any]:
        """Return this rank's side of a checkpoint: its error-feedback memory, as that of a client of its number."""
        memory = self.hook.state_dict()["memory"]
        flat = {kind: torch.zeros(length, device=self.world.device) for kind, length in self._lengths.items()}
        for kind, vector in flat.items():
            for name, view in self._by_name(kind, vector):
                if name in memory:
                    view.copy_(memory[name][kind].view_as(view))
        return {"clients": {self.world.host_number: flat}}

    @property
    def _lengths(self) -> dict[str, int]:
        """Give the length of each vector that the hook remembers of all parameters."""
        return lengths_of(self.config.exchanged, self.config.gradients.preconditioning, self.model.layout)

    def _by_name(self, kind: str, vector: Tensor) -> Iterable[tuple[str, Tensor]]:
        """Divide a vector of the hook's by parameter: views."""
        layout = self.model.layout
        if kind in self.config.gradients.preconditioning.record.counts:
            return zip((entry.name for entry in layout.entries), vector.unbind())
        return layout.views(vector)

    def take_over(self, saved: Mapping[int, dict[str, Tensor]], step: int | None) -> None:
        """Take over the memory that a checkpoint held, and its number of steps; all ranks call it together.

        `saved` holds, by rank, what of it is homed here; `step` is None for a new run. On another number of ranks than
        saved it, each takes the mean, which is the update that is still to come.
        """
        if step is None:
            return
        remembers = "second_moment" in self._lengths
        if not self.world.all_true(all(("second_moment" in own) == remembers for own in saved.values())):
            log.warning("gradients.preconditioner: the other run's differs, whose memory has other units; none is kept")
            saved = {}
        ranks = int(self.world.all_reduce_(torch.tensor([len(saved)])).item())
        memory: dict[str, dict[str, Tensor]] = {}
        for kind, length in self._lengths.items():
            for name, view in self._by_name(kind, _own_or_mean(kind, saved, length, ranks, self.world)):
                memory.setdefault(name, {})[kind] = view
        rescale_second_moments(memory, ranks or self.world.hosts, self.world.hosts)
        self.hook.load_state_dict({"step": step, "memory": memory})


def _own_or_mean(kind: str, saved: Mapping[int, dict[str, Tensor]], length: int, ranks: int, world: World) -> Tensor:
    """Return this rank's vector, or the mean of those of all `ranks`; zero if there is none of that kind."""
    if world.all_true(ranks == world.hosts and list(saved) == [world.host_number]):
        return saved[world.host_number].get(kind, torch.zeros(length)).to(world.device)
    mean = torch.zeros(length, device=world.device)
    for of_rank in saved.values():
        if kind in of_rank:
            mean.add_(of_rank[kind].to(world.device))
    return world.all_reduce_(mean).div_(max(1, ranks))

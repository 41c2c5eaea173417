"""A data-parallel run: its model, its hook, and the hook's memory in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flare_dist.clients.client import LocalTrainer
from flare_dist.clients.local_model import LocalModel
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.data.batches import SharedEpochs
from flare_dist.hook.library import LibraryHookState
from flare_dist.hook.state import SparseHookState
from flare_dist.server.server import Server
from flare_dist.sparse_training.no_masks import NoMasks
from flare_dist.tasks.task import Task


@dataclass(frozen=True)
class DataParallel:
    """The parties of mode: gradient; the server holds the parameters between rounds, and takes no step."""

    config: Config
    world: World
    task: Task
    trainer: LocalTrainer
    server: Server
    hook: SparseHookState | LibraryHookState
    epochs: SharedEpochs
    memory_names: tuple[str, ...]  # of the vectors that error feedback remembers
    masks = NoMasks()

    @property
    def model(self) -> LocalModel:
        """Return the model that trains and is evaluated here."""
        return self.trainer.model

    @property
    def view(self) -> Tensor:
        """Return the parameters, float32 [total], as every rank holds them."""
        return self.server.parameters.data

    def held_alike(self) -> list[Tensor]:
        """Return what every rank must hold with the same bits."""
        return [self.view, self.server.buffers]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint saves beside the hook's memory; references, not copies."""
        optimizer = self.model.optimizer_state(self.config.clients.optimizer)
        return self.server.state_dict() | {"step": self.hook.step, "local_optimizer": optimizer}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what a checkpoint saved, which may be another mode's."""
        self.server.load_state_dict(saved)
        if "local_optimizer" in saved:
            self.model.load_optimizer_state(self.config.clients.optimizer, saved["local_optimizer"])

    def memory_to_save(self, round_: int) -> dict[str, Any]:
        """Return this rank's side of a checkpoint: its error-feedback memory, as that of a client of its number."""
        memory = self.hook.state_dict()["memory"]
        layout = self.model.layout
        flat = {kind: torch.zeros(layout.total, device=self.world.device) for kind in self.memory_names}
        for kind, vector in flat.items():
            for name, view in layout.views(vector):
                if name in memory:
                    view.copy_(memory[name][kind].view_as(view))
        return {"clients": {self.world.rank: flat}}

    def take_over(self, saved: Mapping[int, dict[str, Tensor]], step: int | None) -> None:
        """Take over the memory that a checkpoint held, and its number of steps; all ranks call it together.

        `saved` holds, by rank, what of it is homed here; `step` is None for a new run. On another number of ranks than
        saved it, each takes the mean, which is the update that is still to come.
        """
        if step is None:
            return
        layout = self.model.layout
        flat = {kind: _own_or_mean(kind, saved, layout.total, self.world) for kind in self.memory_names}
        memory: dict[str, dict[str, Tensor]] = {}
        for kind, vector in flat.items():
            for name, view in layout.views(vector):
                memory.setdefault(name, {})[kind] = view
        self.hook.load_state_dict({"step": step, "memory": memory})

    def release(self, oldest: int) -> None:
        """Forget nothing: each checkpoint holds its own memory."""


def _own_or_mean(kind: str, saved: Mapping[int, dict[str, Tensor]], total: int, world: World) -> Tensor:
    """Return this rank's vector, or the mean of all; zero if the checkpoint holds none of that kind."""
    count = int(world.all_reduce_(torch.tensor([len(saved)])).item())
    if world.all_true(count == world.size and list(saved) == [world.rank]):
        return saved[world.rank].get(kind, torch.zeros(total)).to(world.device)
    mean = torch.zeros(total, device=world.device)
    for of_rank in saved.values():
        if kind in of_rank:
            mean.add_(of_rank[kind].to(world.device))
    return world.all_reduce_(mean).div_(max(1, count))

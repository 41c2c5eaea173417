"""The federation of a run, as one rank holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from flare_dist.clients.hosting import Clients
from flare_dist.clients.local_model import LocalModel
from flare_dist.comm.world import World
from flare_dist.compression.compressor import Compressor
from flare_dist.config.config import Config
from flare_dist.data.batches import Batches
from flare_dist.server.downlink import Downlink
from flare_dist.server.server import Server
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.no_masks import NoMasks
from flare_dist.tasks.task import Task


@dataclass(frozen=True)
class Federation:
    """The parties of mode: federated, and how a round's uplink is opened."""

    config: Config
    world: World
    task: Task
    clients: Clients
    compressor: Compressor
    server: Server
    downlink: Downlink
    masks: Masks | NoMasks
    held_out: Batches | None  # the server's own examples, by which models may be pruned
    open_uplink: Callable[..., Any]  # (round, cohort, this) -> rounds/uplink.py's Uplink: of whole or of sparse models

    @cached_property
    def steps_here(self) -> bool:
        """Tell whether this rank steps the server: rank 0, or all if the step is stateless and sent back whole."""
        return self.world.host_number == 0 or (self.server.is_plain and self.downlink.is_lossless)

    @property
    def source(self) -> Batches:
        """Return the batches on which clients train."""
        return self.clients.trainer.source

    @property
    def model(self) -> LocalModel:
        """Return the model that trains and is evaluated here."""
        return self.clients.trainer.model

    @property
    def view(self) -> Tensor:
        """Return the global parameters as clients hold them, float32 [total]."""
        return self.downlink.view

    def held_alike(self) -> list[Tensor]:
        """Return what every rank must hold with the same bits: what clients are sent."""
        return [self.view, self.server.buffers, *self.server.told.values()]

    def state_dict(self) -> dict[str, Any]:
        """Return the server's side of a checkpoint; references, not copies."""
        state = self.server.state_dict() | {"downlink": self.downlink.state_dict()}
        return state | {"masks": self.masks.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over the server's side of a checkpoint, which may be another mode's."""
        self.server.load_state_dict(saved)
        self.downlink.load_state_dict(saved.get("downlink"))
        self.masks.load_state_dict(saved.get("masks", {}))

    def memory_to_save(self, round_: int) -> dict[str, Any]:
        """Return this rank's side of the checkpoint of a round: the memory of the clients homed here."""
        return self.clients.states.for_checkpoint(round_)

    def take_over(self, saved: Mapping[int, dict[str, Tensor]], step: int | None) -> None:
        """Begin with the clients' memory that a checkpoint holds."""
        self.clients.states.take_over(saved)

    def release(self, oldest: int) -> None:
        """Forget the memory that only checkpoints before that of round `oldest` need."""
        self.clients.states.release(oldest)

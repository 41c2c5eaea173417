"""A run without a step of the server: ranks hold the model between rounds, each its own or all the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flare_dist.clients.client import LocalTrainer
from flare_dist.clients.local_model import LocalModel
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.data.batches import Batches
from flare_dist.server.server import Server
from flare_dist.sparse_training.no_masks import NoMasks
from flare_dist.tasks.task import Task


@dataclass(frozen=True)
class LocalRun:
    """The parties of modes gradient and centralised; the server holds the parameters, and takes no step."""

    config: Config
    world: World
    task: Task
    trainer: LocalTrainer
    server: Server
    masks = NoMasks()

    @property
    def source(self) -> Batches:
        """Return the batches on which ranks train."""
        return self.trainer.source

    @property
    def model(self) -> LocalModel:
        """Return the model that trains and is evaluated here."""
        return self.trainer.model

    @property
    def view(self) -> Tensor:
        """Return the parameters, float32 [total]."""
        return self.server.parameters.data

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint saves beside a rank's own memory; references, not copies."""
        optimizer = self.model.optimizer_state(self.config.clients.optimizer)
        return self.server.state_dict() | {"local_optimizer": optimizer}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what a checkpoint saved, which may be another mode's."""
        self.server.load_state_dict(saved)
        if "local_optimizer" in saved:
            self.model.load_optimizer_state(self.config.clients.optimizer, saved["local_optimizer"])

    def release(self, oldest: int) -> None:
        """Forget nothing: each checkpoint holds its own memory."""

"""The parties of a run on this rank."""

from __future__ import annotations

from dataclasses import dataclass

from flare_dist.clients.batched import BatchedTrainer
from flare_dist.clients.client import LocalTrainer
from flare_dist.clients.spill import SpilledStates
from flare_dist.clients.state import ClientStates
from flare_dist.comm.world import World
from flare_dist.compression.compressor import Compressor
from flare_dist.data.batches import BatchSource, SharedEpochs
from flare_dist.data.partition import Partition
from flare_dist.hook.library import LibraryHookState
from flare_dist.hook.state import SparseHookState
from flare_dist.server.downlink import Downlink
from flare_dist.server.masks import Masks
from flare_dist.server.server import Server
from flare_dist.tasks.task import Task

DIVERGED = "diverged: "  # how the command line begins to say so; a sweep looks for it in a run's output


class DivergedError(RuntimeError):
    """Nothing usable from any client, in a round or before; raised on every rank alike."""


@dataclass(frozen=True)
class DataParallel:
    """What mode: gradient trains with."""

    hook: SparseHookState | LibraryHookState
    epochs: SharedEpochs


@dataclass(frozen=True)
class Parties:
    """The parties of a run on this rank."""

    world: World
    trainer: LocalTrainer
    compressor: Compressor
    states: ClientStates | SpilledStates  # in mode: gradient the names alone; what a hook remembers is the hook's
    server: Server
    downlink: Downlink
    partition: Partition  # the indices of each client's examples
    task: Task
    batched: BatchedTrainer | None = None  # where clients are trained as one batch
    masks: Masks | None = None  # of sparse models
    held_out: BatchSource | None = None  # the server's own examples, for pruning
    data_parallel: DataParallel | None = None  # of mode: gradient

    @property
    def steps_here(self) -> bool:
        """Rank 0 is the server; where its step is stateless and not compressed again, all ranks take it themselves."""
        return self.world.rank == 0 or (self.server.is_plain and self.downlink.is_lossless)

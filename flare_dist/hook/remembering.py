"""What remembers something between steps that is saved beside a checkpoint: the hook, or outer steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from flare_dist.comm.collectives import ProcessGroup
from flare_dist.hook.save_watch import SaveWatch
from flare_dist.hook.shards import Shard


class Remembering(Protocol):
    """The part of a `SparseHookState` that saving and loading need."""

    process_group: ProcessGroup | None  # whose ranks remember each something else
    suffix: str  # of the names of its files, if there are several such groups
    shard: Shard | None  # that this rank holds, if the ranks of several groups save together
    shapes: dict[str, tuple[int, ...]]  # by name of parameter
    state_names: tuple[str, ...]  # kinds of vectors, of each parameter one
    rule_name: str  # the rule that such a memory belongs to
    saves: SaveWatch

    @property
    def parameters(self) -> Sequence[Tensor]:
        """Return what is trained."""

    @property
    def fed_back(self) -> tuple[str, ...]:
        """Return the kinds that are still to be sent, so that a mean over ranks counts a missing one as zero."""

    @property
    def finished_steps(self) -> int:
        """Return the number of steps that it is of."""

    def state_dict(self) -> dict[str, Any]:
        """Copy step, memory and whose it is; `shared` is what all ranks have in common, if there is such a thing."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""


def savers(state: Remembering) -> ProcessGroup | None:
    """Return the ranks that save and load the memory together (None = all)."""
    return state.shard.group if state.shard else state.process_group

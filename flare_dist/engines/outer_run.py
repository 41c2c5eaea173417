"""Outer steps inside another trainer: its DistributedDataParallel is kept from averaging, its checkpoints get the rest.

Such a trainer saves the weights and the inner optimizer of its first rank alone. What is each replica's own is written
beside them: by save_hook_state, and a file of the optimizer's state for each rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.comm.collectives import debugging_hooks, gather_objects, rank_and_size
from flare_dist.engines.attach_ddp import check_ddp
from flare_dist.engines.callback_run import CallbackRun
from flare_dist.engines.callback_settings import check_settings
from flare_dist.hook.checkpoint import load_hook_state, save_hook_state
from flare_dist.hook.outer import outer
from flare_dist.hook.outer_settings import settings_of
from flare_dist.hook.outer_steps import OuterSteps

SETTINGS_OF_OUTER = ("preset", "seed", "offload")


def check_given(user: str, outer_settings: Mapping[str, Any] | None, others: dict[str, Any]) -> None:
    """Raise ValueError at once for what `outer`, or `attach` if there are no settings of outer steps, would refuse."""
    if outer_settings is None:
        check_settings(user, others)
        return
    if not isinstance(outer_settings, Mapping):
        raise ValueError(
            f"{user}.outer: takes the settings of flare_dist.outer, got {outer_settings!r}; write "
            '{"preset": "diloco"}, or every, density and others'
        )
    if others:
        names = ", ".join(others)
        raise ValueError(f"{user}.outer: takes all settings itself, got {names} beside it; write them there")
    own = {key: value for key, value in outer_settings.items() if key not in SETTINGS_OF_OUTER}
    settings_of(outer_settings.get("preset"), own)


class OuterRun(CallbackRun):
    """The outer steps of one training, and the weights that are shown while the trainer evaluates or saves."""

    def __init__(self, user: str, wrapped: nn.Module, optimizers: Sequence[Any], settings: Mapping[str, Any]) -> None:
        """Begin with the weights of the first replica; `wrapped` is the model as the trainer has wrapped it."""
        if not isinstance(wrapped, DistributedDataParallel):
            raise ValueError(
                f"{user}.outer: needs a DistributedDataParallel model, got {type(wrapped).__name__}; start several "
                "ranks, without DeepSpeed and FSDP"
            )
        check_ddp(wrapped)
        wrapped.register_comm_hook(None, debugging_hooks.noop_hook)
        wrapped.broadcast_buffers = False  # each replica has its own
        self.hook: OuterSteps = outer(wrapped.module, **settings)
        self._optimizers = [getattr(each, "optimizer", each) for each in optimizers]
        self._own: dict[str, Tensor] | None = None  # this replica's weights, as long as the model has the global ones
        self._is_over = False  # all replicas have the same weights, or those that the trainer has loaded

    def step(self) -> None:
        """Count a step of the inner optimizers."""
        self.hide_global()
        self._is_over = False
        group = self._optimizers[0].param_groups[0]
        self.hook.step(lr=float(group["lr"]) if self.hook.settings.pull else None)

    def show_global(self) -> None:
        """Let the model have the global weights until `hide_global`."""
        if self._own is None and not self._is_over:
            self._own = self.hook.show_global()

    def hide_global(self) -> None:
        """Give the model its own weights back."""
        if self._own is not None:
            self.hook.weights.set(self._own)
        self._own = None

    @contextmanager
    def global_weights(self) -> Iterator[None]:
        """Let the model have the global weights as long as the block runs."""
        was_shown = self._own is not None
        self.show_global()
        try:
            yield
        finally:
            if not was_shown:
                self.hide_global()

    def finish(self) -> None:
        """Take one more outer step of what is not the same yet."""
        self.hide_global()
        self.hook.finish()
        self._is_over = True

    def leave(self) -> None:
        """Forget this replica's own weights."""
        self._own = None
        self._is_over = True

    def save(self, directory: Path) -> None:
        """Write what is this replica's own; every rank calls it."""
        self.hide_global()
        save_hook_state(self.hook, directory)
        state = [optimizer.state_dict() for optimizer in self._optimizers]
        torch.save(state, self._file(directory))

    def load(self, directory: Path, step: int | None = None) -> None:
        """Take over what `save` wrote; replicas that are new keep the optimizer's state that the trainer has loaded."""
        load_hook_state(self.hook, directory, step=step)
        path = self._file(directory)
        has_own = path.exists()
        if has_own:
            for optimizer, state in zip(self._optimizers, torch.load(path, map_location="cpu", weights_only=True)):
                optimizer.load_state_dict(state)
        if not all(gather_objects(has_own, self.hook.process_group, self.hook.parameters[0].device)):
            warnings.warn(
                f"outer: {directory} holds no optimizer of some replicas, as many as there are now did not save; they "
                "go on with that of the checkpoint",
                stacklevel=2,
            )

    def _file(self, directory: Path) -> Path:
        rank, size = rank_and_size(self.hook.process_group)
        return directory / f"inner-optimizer-{rank:05d}-of-{size:05d}.pt"

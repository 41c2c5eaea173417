"""What a callback does at the events of another trainer: the same ones, whatever it exchanges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flare_dist.hook.checkpoint import resume_hook_state, save_hook_state
from flare_dist.hook.state import SparseHookState


class CallbackRun:
    """One training inside another trainer; before it begins there is nothing to do at any event."""

    hook: Any = None  # what attach() or outer() returned

    def step(self) -> None:
        """Count a step of the optimizers."""

    def show_global(self) -> None:
        """Let the model have the weights that are evaluated and saved, until `hide_global`."""

    def hide_global(self) -> None:
        """Give the model the weights back that this rank trains."""

    @contextmanager
    def global_weights(self) -> Iterator[None]:
        """Let the model, and all that shares its memory, have those of `show_global` as long as the block runs."""
        yield

    def finish(self) -> None:
        """Let all ranks end with the same weights."""

    def leave(self) -> None:
        """End with the weights that the trainer has loaded, the same on all ranks."""

    def save(self, directory: Path) -> None:
        """Write what is this rank's own; every rank calls it."""

    def load(self, directory: Path, step: int | None = None) -> None:
        """Take over what `save` wrote, in this process or another; all ranks call it.

        Raises ValueError if it is of another step than `step`.
        """


class HookRun(CallbackRun):
    """A training with the hook, which exchanges in backward: ranks hold the same weights at all events."""

    def __init__(self, hook: SparseHookState) -> None:
        self.hook = hook

    def save(self, directory: Path) -> None:
        """Write this rank's memory."""
        save_hook_state(self.hook, directory)

    def load(self, directory: Path, step: int | None = None) -> None:
        """Load the memory, or say that there is none."""
        resume_hook_state(self.hook, directory, step)

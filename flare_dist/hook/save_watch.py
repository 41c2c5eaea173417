"""A watch for ranks that do not save: the note of each message carries the number of its sender's saves.

    | bit 0: a gradient is not finite | bits 1 to 30: saves of this rank |

So nobody waits for a save of another rank, and a script that saves on rank 0 alone is warned within two steps.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from flare_dist.compression.payload import WORD
from flare_dist.units import show_numbered

_WRAP = 2**30


class SaveWatch:
    """The saves of this rank, and those of the others by their messages."""

    def __init__(self) -> None:
        self.last: Path | None = None  # the file that this rank wrote last
        self.is_whole: bool | None = None  # whether every rank made that save; None until their next messages are there
        self._saves = 0
        self._known: list[int] = []  # the saves of each rank, as of the last look
        self._arrived: Tensor | None = None  # the notes of one step's messages
        self._event: torch.cuda.Event | None = None  # recorded behind their copy, if they came to a GPU
        self._has_told = False

    def count(self, path: Path) -> None:
        """Note a save of this rank."""
        self.last = path
        self.is_whole = None
        self._saves = (self._saves + 1) % _WRAP

    def note(self, failed: Tensor) -> Tensor:
        """Return the note of a message, uint8 [4] on the device of `failed`, a boolean scalar."""
        return (failed + 2 * self._saves).view(1).view(torch.uint8)[:WORD]  # of int64

    def receive(self, notes: Tensor) -> None:
        """Keep the notes of all ranks' messages, uint8 [ranks, 4]; nobody waits for those on a GPU."""
        if self._arrived is not None:
            return
        if notes.is_cuda:
            arrived = torch.empty(notes.shape, dtype=torch.uint8, pin_memory=True)
            arrived.copy_(notes, non_blocking=True)
            self._event = torch.cuda.current_stream(notes.device).record_event()
        else:
            arrived = notes.clone()
        self._arrived = arrived

    def look(self) -> None:
        """Compare what has arrived by now, without waiting; warn once if some ranks saved and others did not."""
        if self._arrived is None or (self._event is not None and not self._event.query()):
            return
        saves = [flags >> 1 for flags in self._arrived.contiguous().view(torch.int32).flatten().tolist()]
        self._arrived = self._event = None
        known = self._known or [0] * len(saves)
        self._known = saves
        new = [(now - before) % _WRAP for now, before in zip(saves, known)]
        if any(new):
            self.is_whole = len(set(new)) == 1
            self._tell(new)

    def _tell(self, new: list[int]) -> None:
        if self.is_whole or self._has_told:
            return
        self._has_told = True
        most = max(new)
        saved = show_numbered("rank", [rank for rank, count in enumerate(new) if count == most])
        others = show_numbered("rank", [rank for rank, count in enumerate(new) if count < most])
        warnings.warn(
            f"save_hook_state: {saved} saved the sparse hook's memory and {others} did not, so what they have not sent "
            "yet is missing from the checkpoint; call it (or accelerator.save_state) on every rank, outside "
            "`if rank == 0` or `if accelerator.is_main_process`",
            stacklevel=2,
        )


def failed_anywhere(notes: Tensor) -> Tensor:
    """Tell from the notes of all ranks, uint8 [ranks, 4], if a gradient was not finite; a scalar there, uint8."""
    return (notes[:, 0] & 1).any()

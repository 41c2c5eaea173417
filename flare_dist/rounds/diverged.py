"""Divergence: nothing that came of training can be used."""

from __future__ import annotations

DIVERGED = "diverged: "  # how the command line begins its message; a sweep looks for it in a run's output


class DivergedError(RuntimeError):
    """Nothing usable from any client, in a round or before; raised on every rank alike."""

    is_agreed = True  # so that no rank has to tell the others of it

"""Errors of one rank, raised by all: a rank that goes on alone would wait for the others in its next collective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flare_dist.comm.world import World
from flare_dist.errors import ReportedError

MESSAGE_BYTES = 1000  # of a rank's error that the other ranks receive


@contextmanager
def on_all_ranks(world: World) -> Iterator[None]:
    """Raise ReportedError on every rank if the block raises one on one of them; all ranks enter and leave it together.

    A rank without an error of its own raises that of the first rank that has one.
    """
    problem = ""
    try:
        yield
    except ReportedError as error:
        problem = str(error)
    if world.all_true(not problem):
        return
    sent = torch.tensor(list(problem.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES)), dtype=torch.uint8)
    heard = [bytes(line.tolist()).decode(errors="replace").strip() for line in world.all_gather(sent)]
    raise ReportedError(problem or next(line for line in heard if line))

"""Errors of one rank, raised by all: a rank that goes on alone would wait for the others in its next collective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flare_dist.comm.world import World
from flare_dist.errors import AgreedError, ReportedError

MESSAGE_BYTES = 1000  # of a rank's error that the other ranks receive


@contextmanager
def on_all_ranks(world: World) -> Iterator[None]:
    """Raise AgreedError on every rank if the block raises ReportedError on one of them.

    All ranks enter and leave it together, whatever time it takes on one of them. A rank without an error of its own
    raises that of the first rank that has one.
    """
    problem = ""
    try:
        yield
    except ReportedError as error:
        problem = str(error)
    world.meet()  # one rank may have evaluated or saved for hours
    if world.all_true(not problem):
        return
    sent = torch.tensor(list(problem.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES)), dtype=torch.uint8)
    heard = [bytes(line.tolist()).decode(errors="replace").strip() for line in world.gather_from_all(sent)]
    raise AgreedError(problem or next(line for line in heard if line))

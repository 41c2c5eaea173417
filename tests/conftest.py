"""Property tests draw the same everywhere, a busy machine is no failure, and every test begins alike."""

import logging
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as launchers set it; Accelerate warns if nobody has

settings.register_profile("here", deadline=None, derandomize=True, database=None)
settings.load_profile("here")


@pytest.fixture(autouse=True)
def as_it_began() -> Iterator[None]:
    """One thread, as ranks have, for bits depend on it; denormal floats, which a run flushes for its process; and a log
    that the command line has not taken for itself.
    """
    torch.set_num_threads(1)
    log = logging.getLogger("flare_dist")
    log.handlers.clear()
    log.setLevel(logging.NOTSET)
    log.propagate = True
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Forget Accelerate's precision and device, a singleton of the process, before and after a test."""
    from accelerate.state import AcceleratorState  # here, for most tests import no Accelerate

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)

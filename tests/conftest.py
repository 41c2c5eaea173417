"""Property tests draw the same everywhere, a busy machine is no failure, and no test changes how others count."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("here", deadline=None, derandomize=True, database=None)
settings.load_profile("here")


@pytest.fixture(autouse=True)
def as_it_began() -> Iterator[None]:
    """One thread, as ranks have, for bits depend on it; and denormal floats, which a run flushes for its process."""
    torch.set_num_threads(1)
    yield
    torch.set_flush_denormal(False)

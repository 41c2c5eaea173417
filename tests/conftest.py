"""Property tests draw the same everywhere, a busy machine is no failure, and no test changes how others count."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("here", deadline=None, derandomize=True, database=None)
settings.load_profile("here")


@pytest.fixture(autouse=True)
def denormal_floats() -> Iterator[None]:
    """A run flushes them to zero for its whole process."""
    yield
    torch.set_flush_denormal(False)

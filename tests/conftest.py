"""Property tests draw the same everywhere, a busy machine is no failure, and every test begins alike."""

import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run of one rank without interruption; tests copy what they change."""
    from tests.helpers.runs import start, tiny  # here, for most tests import no trainer

    directory = tmp_path_factory.mktemp("straight")
    start(tiny(directory))
    return directory


@pytest.fixture
def read_yaml(tmp_path: Path) -> Any:
    """Return a function from the content of my.yaml to the configuration."""
    from tests.helpers.configs import read_yaml

    return partial(read_yaml, tmp_path / "my.yaml")


@pytest.fixture
def layers(tmp_path: Path) -> Any:
    """Return a function from the contents of 0.yaml, 1.yaml, ... to arguments that lay one over the other."""
    from tests.helpers.configs import layers

    return partial(layers, tmp_path)

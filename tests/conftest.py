"""Property tests draw the same everywhere, a busy machine is no failure, and every test begins alike."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

from tests.helpers.browser import NO_BROWSER
from tests.helpers.extras import in_a_line, missing_extras

if TYPE_CHECKING:
    from tests.helpers.sweeps import Processes

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as launchers set it; Accelerate warns if nobody has

LONG = {  # about ten seconds and more
    "test_benchmarks.py",
    "test_cli.py",
    "test_commands.py",
    "test_compare.py",
    "test_deepspeed.py",
    "test_deepspeed_hook.py",
    "test_example_programs.py",
    "test_extending.py",
    "test_gpu_parity.py",
    "test_gpu_runs.py",
    "test_gpu_selection.py",
    "test_gradient.py",
    "test_heartbeat.py",
    "test_hosts_deepspeed.py",
    "test_launch.py",
    "test_launchers.py",
    "test_lazy_runs.py",
    "test_leave.py",
    "test_locks.py",
    "test_notebook.py",
    "test_outer.py",
    "test_presets.py",
    "test_readme.py",
    "test_site.py",
    "test_statedir.py",
    "test_trainer.py",
    "test_world_meet.py",
}

settings.register_profile("here", deadline=None, derandomize=True, database=None)
settings.load_profile("here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, or one of them comes last and one worker of pytest-xdist waits for it."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in a line which tests were skipped for want of an extra, and in another how many for want of a browser."""
    missing = _missing_extras(terminalreporter)
    if missing:
        terminalreporter.write_line(in_a_line(missing), yellow=True)
    unseen = sum(NO_BROWSER in reason for reason in _reasons(terminalreporter))
    if unseen:
        terminalreporter.write_line(f"skipped for want of a browser: {unseen}; apt-get install chromium", yellow=True)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail if tests were skipped for want of an extra where all of them must be there, as in CI."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("REQUIRE_EXTRAS") and exitstatus == 0 and reporter and _missing_extras(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _missing_extras(reporter: Any) -> Counter[str]:
    """Count the tests that were skipped for want of an extra."""
    return missing_extras(_reasons(reporter))


def _reasons(reporter: Any) -> list[str]:
    """List why tests were skipped; a reason is the last part of where and why."""
    return [str(report.longrepr[2]) for report in reporter.stats.get("skipped", [])]


def pytest_collection_finish() -> None:
    """Keep the garbage collections at the end of runs to what tests leave behind: all that was imported is not."""
    gc.freeze()


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


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    """Replace the training processes of sweeps by a table of results."""
    from tests.helpers.sweeps import Processes

    used = Processes()
    monkeypatch.setattr("flare_dist.studies.sweep_run._run", used.run)
    return used


@pytest.fixture
def forked_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the runs of sweeps in forks instead of fresh interpreters."""
    from tests.helpers.forked import Forked

    stand_in = SimpleNamespace(Popen=Forked, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr("flare_dist.studies.sweep_run.subprocess", stand_in)


@pytest.fixture
def nothing_left_running() -> Iterator[None]:
    """Kill the launchers that a failing test leaves behind; those of a module's fixtures have ended by then."""
    from tests.helpers.launching import RUNNING

    yield
    for process in RUNNING:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    RUNNING.clear()


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Forget Accelerate's precision and device, a singleton of the process, before and after a test."""
    from accelerate.state import AcceleratorState  # here, for most tests import no Accelerate

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Keep the figures instead of saving them; they are laid out, but not rendered, which takes a second."""
    from flare_dist.analysis import figure_style

    figures: list[Any] = []

    def keep(figure: Any, path: Path) -> None:
        figure.draw_without_rendering()
        if figure not in figures:
            figures.append(figure)

    monkeypatch.setattr(figure_style, "_save", keep)
    return figures

"""The launchers beside torchrun start the same ranks, and the engine follows the configuration."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.launching import ENVIRONMENT, finished, forked, launched, options_of, torchrun

pytestmark = pytest.mark.usefixtures("nothing_left_running")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Train with torchrun the model that Accelerate and DeepSpeed must train as well."""
    directory = tmp_path_factory.mktemp("torchrun")
    finished(torchrun(directory))
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("launcher", ["accelerate", "deepspeed"])
def test_other_launchers_train_the_same(expected: dict[str, Tensor], tmp_path: Path, launcher: str) -> None:
    arguments = ["--config", "configs/smoke.yaml", "--engine.name", launcher, "--output_dir", str(tmp_path)]
    output = finished(forked(launcher, *arguments))
    assert output.count("compression against dense") == 1
    model = load_file(tmp_path / "model.safetensors")
    assert all(torch.allclose(model[name], expected[name], rtol=0, atol=1e-6) for name in expected)
    assert json.loads((tmp_path / "summary.json").read_text())["hardware"]["ranks"] == 2


PYTHON = """#!/bin/sh
# Stands in for a Python that sees $GPUS devices, and shows how it would start ranks.
if [ "$1" = -c ]; then echo "$GPUS"; exit; fi
echo "ACCELERATE_USE_CPU=$ACCELERATE_USE_CPU DS_ACCELERATOR=$DS_ACCELERATOR OMP_NUM_THREADS=$OMP_NUM_THREADS"
echo "$@"
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A copy of launch/ beside an environment whose Python only shows what it is given."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return Path(shutil.copytree("launch", tmp_path / "launch"))


@pytest.mark.parametrize(
    ("launcher", "gpus", "shown"),
    [
        ("torchrun", 0, "ACCELERATE_USE_CPU= DS_ACCELERATOR= OMP_NUM_THREADS=1"),
        ("accelerate", 0, "ACCELERATE_USE_CPU=true DS_ACCELERATOR= OMP_NUM_THREADS=1"),
        ("accelerate", 8, "ACCELERATE_USE_CPU= DS_ACCELERATOR= OMP_NUM_THREADS=1"),
        ("deepspeed", 0, "ACCELERATE_USE_CPU= DS_ACCELERATOR=cpu OMP_NUM_THREADS=1"),
        ("deepspeed", 8, "ACCELERATE_USE_CPU= DS_ACCELERATOR= OMP_NUM_THREADS=1"),
    ],
)
def test_a_script_starts_the_ranks_that_the_tests_start(scripts: Path, launcher: str, gpus: int, shown: str) -> None:
    environment = {"PATH": os.environ["PATH"], "GPUS": str(gpus), "MASTER_PORT": "1234"}
    command = ["bash", str(scripts / f"{launcher}.sh"), "--rounds", "3"]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    ranks = "auto" if launcher == "torchrun" else str(gpus or 2)
    started = ["launch/run.py", launcher, *options_of(launcher, "1234", ranks), "flare_dist", "train", "--rounds", "3"]
    assert output.replace(f"{scripts.parent}/", "").splitlines() == [shown, " ".join(started)]


RANKS = """
import os, sys, time
rank = os.environ["RANK"]
if rank == "0":
    time.sleep(60)
if sys.argv[1] == "crash":
    raise RuntimeError("a crash of rank 1")
for _ in range(2):
    open(os.environ["FLARE_DIST_ERRORS"], "a").write("error: data.root: wrong on rank 1\\n")
sys.exit(2)
"""


@pytest.mark.parametrize("how", ["error", "crash"])
def test_a_launch_ends_with_the_error_of_the_rank_that_failed(tmp_path: Path, how: str) -> None:
    """A crash keeps its traceback and the launcher's report, an error stands alone."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "launch/run.py", "torchrun", "--standalone", "--nproc_per_node", "2", str(script), how]
    process = launched(command, ENVIRONMENT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    if how == "error":
        assert error == "error: data.root: wrong on rank 1\n"
    else:
        assert "RuntimeError: a crash of rank 1" in error
        assert "ChildFailedError" in error
        assert "local_rank: 1" in error


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate", "deepspeed"])
def test_a_wrong_key_is_the_last_line_of_every_launcher(tmp_path: Path, launcher: str) -> None:
    process = forked(launcher, "--clients.lrr", "1", "--output_dir", str(tmp_path))
    output, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Traceback" not in error + output
    assert error.count("--clients.lrr") == 1
    assert error.splitlines()[-1].startswith("error: ")


class StoppedError(Exception):
    """Raise as torchrun does: SignalException has `sigval`, ChildFailedError the first failure."""

    def __init__(self, sigval: signal.Signals | None = None, exitcode: int = 0) -> None:
        super().__init__("a page of the launcher's own")
        if sigval:
            self.sigval = sigval
        else:
            self.get_first_failure = lambda: (1, SimpleNamespace(exitcode=exitcode))


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (StoppedError(signal.SIGINT), 130, "error: stopped by SIGINT; the same command continues from the last "),
        (StoppedError(exitcode=-9), 1, "error: rank 1 was stopped by SIGKILL; the same command continues from "),
    ],
)
def test_a_signal_is_reported_in_one_line(
    error: Exception, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("launch_run", "launch/run.py")
    assert spec
    assert spec.loader
    launch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launch)

    def main() -> None:
        raise error

    monkeypatch.setitem(sys.modules, "a_launcher", SimpleNamespace(main=main))
    monkeypatch.setitem(launch.LAUNCHERS, "torchrun", "a_launcher")
    monkeypatch.setattr(sys, "argv", ["launch/run.py", "torchrun"])
    monkeypatch.setenv("FLARE_DIST_ERRORS", "")
    assert launch.main() == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate", "deepspeed"])
def test_a_wrong_number_of_ranks_starts_nothing(launcher: str) -> None:
    process = launched([sys.executable, "launch/run.py", launcher], {**ENVIRONMENT, "NPROC_PER_NODE": "two"})
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert error == "error: NPROC_PER_NODE: expected a number of ranks of at least 1, got 'two'\n"


def test_a_node_without_its_rank_is_refused() -> None:
    process = launched(["bash", "launch/torchrun.sh"], {**ENVIRONMENT, "NNODES": "2"})
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert error.endswith("NODE_RANK: set it to the number of this node, 0 to NNODES - 1\n")

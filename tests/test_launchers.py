"""The launchers beside torchrun start the same ranks, and the engine is what the configuration says."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.test_launch import ENVIRONMENT, finished, launched, nothing_left_running, torchrun  # noqa: F401 (a fixture)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What torchrun and Accelerate train."""
    directory = tmp_path_factory.mktemp("torchrun")
    finished(torchrun(directory))
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize(
    ("script", "engine"),
    [("accelerate.sh", "accelerate"), ("deepspeed.sh", "deepspeed")],
)
def test_other_launchers_train_the_same(expected: dict[str, Tensor], tmp_path: Path, script: str, engine: str) -> None:
    command = ["bash", f"launch/{script}", "--config", "configs/smoke.yaml", "--engine.name", engine]
    port = {"MASTER_PORT": str(free_port())}
    output = finished(launched([*command, "--output_dir", str(tmp_path)], ENVIRONMENT | port))
    assert output.count("compression against dense") == 1
    model = load_file(tmp_path / "model.safetensors")
    assert all(torch.allclose(model[name], expected[name], rtol=0, atol=1e-6) for name in expected)
    assert json.loads((tmp_path / "summary.json").read_text())["hardware"]["ranks"] == 2

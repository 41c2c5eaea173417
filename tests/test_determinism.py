"""What `engine.deterministic` sets, gives back and names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flare_dist import cli
from flare_dist.clients import batchable
from flare_dist.engines.determinism import CUBLAS, NotDeterministicError, deterministic
from tests.helpers.runs import assert_same_run


def settings() -> list[object]:
    cudnn = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    algorithms = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    tf32 = (cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    return [cudnn.deterministic, cudnn.benchmark, *tf32, *algorithms, memory.fill_uninitialized_memory]


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, "")
    monkeypatch.delenv(CUBLAS)


def test_everything_that_cuda_needs_is_set_and_given_back() -> None:
    before = settings()
    with deterministic(True):
        assert settings() == [True, False, False, False, True, False, False]
        assert os.environ[CUBLAS] == ":4096:8"
    assert settings() == before
    with deterministic(False):
        assert settings() == before


def test_a_workspace_that_is_not_deterministic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, ":0:0")
    before = settings()
    with (
        pytest.raises(ValueError, match=r"^engine\.deterministic: needs .*, got ':0:0'; unset it$"),
        deterministic(True),
    ):
        pass
    assert settings() == before


def scatter(vector: Tensor) -> Tensor:
    return vector.put_(torch.zeros(2, dtype=torch.int64), torch.ones(2))  # which of the two is last?


def test_an_operation_without_a_deterministic_kernel_is_named() -> None:
    with (
        pytest.raises(
            NotDeterministicError, match=r"^engine\.deterministic: put_ has no deterministic kernel, got true"
        ),
        deterministic(True),
    ):
        scatter(torch.zeros(3))
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match=r"^another$"), deterministic(True):
        raise RuntimeError("another")


class Scattering(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        scatter(torch.zeros(3))
        return super().forward(inputs.flatten(1))


def scattering(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Scattering(36, num_classes)


SMOKE = ["train", "--config", "configs/smoke.yaml"]


def test_a_run_names_the_operation_of_the_user_s_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model.name", "tests.test_determinism:scattering", "--output_dir", str(tmp_path)]
    assert cli.main([*SMOKE, *model, "--engine.deterministic", "true"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: engine.deterministic: put_ has no deterministic kernel, got true; use another ")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("mode", [[], ["--mode", "gradient", "--eval_every", "3"]])
def test_every_operation_of_ours_on_a_cpu_has_a_deterministic_kernel(mode: list[str], tmp_path: Path) -> None:
    """The model that is trained is that of a run without the key, too."""
    for name in ("true", "false"):
        assert cli.main([*SMOKE, *mode, "--engine.deterministic", name, "--output_dir", str(tmp_path / name)]) == 0
    assert_same_run(tmp_path / "true", tmp_path / "false")


def test_groups_of_clients_do_not_depend_on_who_else_uses_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2**20, 8)
    device = torch.device("cuda", 0)
    found = {}
    for free in (2**33, 2**34):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2**35))
        found[free] = [
            batchable.most_clients(model, torch.zeros(1, 2**20), 4, device, fixed) for fixed in (False, True)
        ]
    assert found[2**33][0] != found[2**34][0]
    assert found[2**33][1] == found[2**34][1]

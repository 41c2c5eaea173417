"""The engine's keys are checked, and its device and threads fit the machine."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from flare_dist.engines.config import EngineConfig, default_threads, resolve_device


def test_ranks_of_a_machine_share_its_cores() -> None:
    assert default_threads(10**6) == 1
    for ranks in (1, 2, 3):
        assert 1 <= default_threads(ranks) <= max(1, default_threads(1) // ranks)


NO_GPU = r"engine\.device: PyTorch sees no GPU, got cuda; choose auto or cpu"
NO_FP16 = r"engine\.mixed_precision: fp16 needs a GPU .*"


@pytest.mark.parametrize(
    ("has_gpu", "settings", "message"),
    [
        (False, {"device": "cuda"}, NO_GPU),
        (False, {"device": "cuda", "mixed_precision": "fp16"}, NO_GPU),
        (False, {"mixed_precision": "fp16"}, NO_FP16),
        (False, {"device": "cpu", "mixed_precision": "fp16"}, NO_FP16),
        (True, {"device": "cpu", "mixed_precision": "fp16"}, NO_FP16),
    ],
)
def test_what_this_machine_cannot_do_is_refused(
    has_gpu: bool, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the device is resolved, not before: a configuration of another machine can be read on this one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    config = EngineConfig(**settings)
    with pytest.raises(ValueError, match=f"^{message}$"):
        resolve_device(config)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("device", "has_gpu", "resolved"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_a_gpu_is_taken_if_there_is_one(
    device: str, has_gpu: bool, resolved: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    config = EngineConfig(device=device, mixed_precision=precision)
    if (resolved, precision) == ("cpu", "fp16"):
        with pytest.raises(ValueError, match=r"^engine\.mixed_precision: "):
            resolve_device(config)
    else:
        assert resolve_device(config) == resolved


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("name", {"name": "lightning"}),
        ("mixed_precision", {"mixed_precision": "fp8"}),
        ("device", {"device": "tpu"}),
        ("threads", {"threads": 0}),
        ("timeout_seconds", {"timeout_seconds": 0.0}),
        ("timeout_seconds", {"timeout_seconds": math.nan}),
        ("step_timeout_seconds", {"step_timeout_seconds": 0.0}),
    ],
)
def test_errors_name_the_key(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^engine\.{key}: "):
        EngineConfig(**values)

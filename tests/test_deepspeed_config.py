"""Our configuration fills DeepSpeed's "auto", and nothing may contradict it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flare_dist.engines.config import EngineConfig
from flare_dist.engines.deepspeed_config import deepspeed_settings

ROOT = Path(__file__).parent.parent


def settings(file: str | dict[str, Any], mode: str = "federated", clipping: float | None = None, **engine: Any) -> Any:
    return deepspeed_settings(EngineConfig(name="deepspeed", deepspeed_config=file, **engine), 10, clipping, mode)


@pytest.mark.parametrize("mode", ["federated", "gradient", "centralised"])
def test_the_file_at_the_root_takes_everything_from_ours(mode: str) -> None:
    file = str(ROOT / "deepspeed_config.json")
    found = settings(file, mode, 0.5, mixed_precision="bf16", gradient_accumulation_steps=4)
    assert found["train_micro_batch_size_per_gpu"] == 3  # of 10 in 4 pieces
    assert found["gradient_accumulation_steps"] == 4
    assert found["gradient_clipping"] == 0.5
    assert (found["bf16"]["enabled"], found["fp16"]["enabled"]) == (True, False)
    assert found["data_types"] == {"buffer_dtype": "bf16"}
    assert '"auto"' not in json.dumps(found)
    plain = settings(file, mode)
    assert plain["gradient_clipping"] == 0.0
    assert (plain["bf16"]["enabled"], plain["fp16"]["enabled"]) == (False, False)
    assert "data_types" not in plain


def test_filled_settings_are_taken_as_they_are() -> None:
    once = settings(str(ROOT / "deepspeed_config.json"), clipping=2.0)
    assert settings(once, clipping=2.0) == once


def test_a_file_is_not_changed_by_reading_it() -> None:
    given: dict[str, Any] = {"bf16": {"enabled": "auto"}}
    settings(given, mixed_precision="bf16")
    assert given == {"bf16": {"enabled": "auto"}}


@pytest.mark.parametrize(
    ("given", "mode", "message"),
    [
        (
            {"gradient_clipping": 1.0},
            "federated",
            "gradient_clipping must be 0.0 to agree with clients.gradient_clipping, got 1.0",
        ),
        (
            {"bf16": {"enabled": True}},
            "federated",
            "bf16.enabled must be False to agree with engine.mixed_precision, got True",
        ),
        ({"train_micro_batch_size_per_gpu": 8}, "federated", "must be 10 to agree with clients.batch_size, got 8"),
        ({"train_batch_size": 8}, "federated", "sets train_batch_size, which is clients.batch_size here"),
        ({"optimizer": {"type": "Adam"}}, "federated", "sets optimizer, which is clients.optimizer here"),
        ({"scheduler": {"type": "OneCycle"}}, "federated", "sets scheduler, which is clients.lr_schedule here"),
        ({"zero_optimization": {"stage": 3}}, "federated", "shards the weights, or leaves no whole gradient"),
        (
            {"zero_optimization": {"stage": 2}},
            "gradient",
            "with zero_stage=2 and mode=gradient; use 0 to 2, in mode gradient 0 or 1",
        ),
        ({"zero_optimization": {"stage": "x"}}, "federated", "with zero_stage=x and mode=federated"),
        (
            {"zero_optimization": {"stage": 1, "round_robin_gradients": True}},
            "gradient",
            "round_robin_gradients must be",
        ),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, "gradient", "keeps a second set of gradients"),
    ],
)
def test_what_contradicts_or_cannot_work_is_refused(given: dict[str, Any], mode: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^engine\.deepspeed_config: ") as caught:
        settings(given, mode)
    assert message in str(caught.value)


def test_fp16_needs_stage_1() -> None:
    assert settings({"zero_optimization": {"stage": 1}}, mixed_precision="fp16")["fp16"]["enabled"] is True
    with pytest.raises(ValueError, match=r"fp16 needs zero_optimization\.stage 1"):
        settings({}, mixed_precision="fp16")


@pytest.mark.parametrize(
    ("text", "message"), [(None, "cannot read"), ("{", "is not JSON"), ("[1]", "holds no JSON object")]
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "settings.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"^engine\.deepspeed_config: ") as caught:
        settings(str(path))
    assert message in str(caught.value)

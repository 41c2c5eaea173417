"""Read DeepSpeed's own settings: a JSON file of theirs, in which "auto" stands for the value in our configuration."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from flare_dist.compatibility import EXCLUSIONS
from flare_dist.engines.config import EngineConfig
from flare_dist.exclusion import refuse

OURS = {
    "optimizer": "clients.optimizer",
    "scheduler": "clients.lr_schedule",
    "torch_autocast": "engine.mixed_precision",
    "train_batch_size": "clients.batch_size",
}
UNTESTED_WITH_SHARDS = (  # keys of zero_optimization that put slices elsewhere, change what travels, or ask all ranks
    "offload_optimizer",
    "offload_param",
    "cpu_offload",
    "cpu_offload_param",
    "zenflow",
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
    "zero_quantized_gradients",
    "enable_sanity_checks",
)


def deepspeed_settings(
    config: EngineConfig, batch_size: int, gradient_clipping: float | None, mode: str
) -> dict[str, Any]:
    """Read the settings in `engine.deepspeed_config`, and fill in every "auto".

    Raises ValueError that names the key if the file is missing or no JSON object, if a value in it contradicts ours or
    takes the place of one of ours, and if DeepSpeed cannot do what is asked for.
    """
    settings = _read(config.deepspeed_config)
    for key, ours in OURS.items():
        if settings.pop(key, "auto") != "auto":
            raise ValueError(f"engine.deepspeed_config: sets {key}, which is {ours} here; leave it out")

    steps = config.gradient_accumulation_steps
    _fill(
        settings, "train_micro_batch_size_per_gpu", math.ceil(batch_size / steps / config.shards), "clients.batch_size"
    )
    _fill(settings, "gradient_accumulation_steps", steps, "engine.gradient_accumulation_steps")
    _fill(settings, "gradient_clipping", gradient_clipping or 0.0, "clients.gradient_clipping")
    for precision in ("bf16", "fp16"):
        section = settings[precision] = dict(settings.get(precision, {}))
        is_enabled = config.mixed_precision == precision
        _fill(section, "enabled", is_enabled, "engine.mixed_precision", f"{precision}.enabled")

    if config.mixed_precision != "no":  # BatchNorm takes its statistics in the precision of its weights only
        settings["data_types"] = {"buffer_dtype": config.mixed_precision, **settings.get("data_types", {})}

    if settings.get("data_types", {}).get("grad_accum_dtype") is not None:
        raise ValueError(
            "engine.deepspeed_config: data_types.grad_accum_dtype keeps a second set of gradients; leave it out"
        )
    zero = settings.get("zero_optimization", {})
    if zero.get("round_robin_gradients"):
        raise ValueError("engine.deepspeed_config: zero_optimization.round_robin_gradients must be false, got true")
    if config.shards > 1:
        _check_untested(zero)
    # It synchronises twice a micro-batch, for a figure that nobody here reads.
    settings["timers"] = {"throughput": {"enabled": False}} | settings.get("timers", {})
    refuse(EXCLUSIONS, engine=config, mode=mode, zero_stage=zero.get("stage", 0))
    return settings


def _check_untested(zero: dict[str, Any]) -> None:
    """Raise ValueError if these settings of ZeRO ask for what nobody has tried on a host of several ranks."""
    for key in UNTESTED_WITH_SHARDS:
        value = zero.get(key)
        if isinstance(value, dict) and value.get("device", "none") == "none":
            continue
        if value and not (key == "zero_hpz_partition_size" and value == 1):
            raise ValueError(
                f"engine.deepspeed_config: zero_optimization.{key} is untested with engine.shards above 1, "
                f"got {value}; leave it out"
            )


def _read(given: str | dict[str, Any]) -> dict[str, Any]:
    """Read the settings in a JSON file, or copy those given."""
    if isinstance(given, dict):
        return dict(given)
    try:
        settings = json.loads(Path(given).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"engine.deepspeed_config: cannot read {given}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"engine.deepspeed_config: {given} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"engine.deepspeed_config: {given} holds no JSON object")
    return settings


def _fill(settings: dict[str, Any], key: str, value: Any, ours: str, name: str | None = None) -> None:
    """Put our value for a missing or "auto" one; raises ValueError if another one stands there."""
    found = settings.get(key, "auto")
    if found not in ("auto", value):
        raise ValueError(
            f"engine.deepspeed_config: {name or key} must be {value} to agree with {ours}, got {found}; "
            'write "auto", which takes ours'
        )
    settings[key] = value

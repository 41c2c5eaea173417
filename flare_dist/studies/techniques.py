"""Name the ways of exchanging gradients that `flare-dist compare` sets side by side, each as the keys that select it.

Everything else is the same for all of them and follows the configuration: model, data, batch, accumulation, learning
rate, density, and how entries are counted and indexed.
"""

from __future__ import annotations

from flare_dist.config.config import Config
from flare_dist.errors import unknown_choice

# Each begins with these, whatever the configuration has: top-k of float32 with error feedback.
PLAIN = {
    "engine.mixed_precision": "no",
    "gradients.hook": "sparse",
    "compression.sparsifier": "topk",
    "compression.error_feedback": "ec",
    "compression.momentum": "null",
    "compression.value_codec": "fp32",
    **{f"compression.{key}_options": "{}" for key in ("sparsifier", "error_feedback", "value_codec")},
}
DENSE = {"compression.sparsifier": "dense"}
MOMENTUM = "the value of clients.momentum"

DIFFERENCES: dict[str, dict[str, str]] = {
    "full_precision": DENSE,
    "fp16": {"gradients.hook": "fp16"},
    "bf16": {"gradients.hook": "bf16"},
    "powersgd": {"gradients.hook": "powersgd"},
    "topk": {},
    "topk_fp16": {"compression.value_codec": "fp16"},
    "topk_int8": {"compression.value_codec": "int8"},
    "topk_2bit": {"compression.value_codec": "2bit"},
    # Momentum in the hook, which corrects it for what was not sent, instead of in the optimizer.
    "topk_dgc": {"compression.error_feedback": "dgc", "compression.momentum": MOMENTUM, "clients.momentum": "0"},
    # Training in half precision, without and with compression of the gradients; fp16 needs a GPU, bf16 does not.
    "fp16_training": DENSE | {"engine.mixed_precision": "fp16"},
    "fp16_training_topk_int8": {"engine.mixed_precision": "fp16", "compression.value_codec": "int8"},
    "bf16_training": DENSE | {"engine.mixed_precision": "bf16"},
    "bf16_training_topk_int8": {"engine.mixed_precision": "bf16", "compression.value_codec": "int8"},
}
USUAL = ("full_precision", "fp16", "powersgd", "topk", "topk_fp16", "topk_int8", "topk_2bit")


def find_techniques(names: str, config: Config) -> dict[str, list[str]]:
    """Look up techniques by name, separated by commas; returns for each the arguments that change `config` to it.

    Raises ValueError if one is unknown, with the names that are known, or is given twice.
    """
    chosen = [name.strip() for name in names.split(",")]
    unknown = [name for name in chosen if name not in DIFFERENCES]
    if unknown:
        raise unknown_choice("--techniques", unknown[0], DIFFERENCES)
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"--techniques: the same technique twice, got {names}; give each once")
    found = {}
    for name in chosen:
        keys = PLAIN | DIFFERENCES[name]
        found[name] = [f"--{key}={config.clients.momentum if v is MOMENTUM else v}" for key, v in keys.items()]
    return found

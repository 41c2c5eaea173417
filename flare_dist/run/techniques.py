"""Ways of exchanging gradients that `flare-dist compare` sets side by side, as the keys in which they differ.

Everything else is what the configuration says for all of them: model, data, batch, accumulation, learning rate and
density.
"""

from __future__ import annotations

TECHNIQUES: dict[str, dict[str, str]] = {
    "full_precision": {"compression.sparsifier": "dense"},
    "fp16": {"gradients.hook": "fp16"},
    "bf16": {"gradients.hook": "bf16"},
    "powersgd": {"gradients.hook": "powersgd"},
    "topk": {},
    # Momentum in the hook, which corrects it for what was not sent, instead of in the optimizer.
    "topk_dgc": {"compression.error_feedback": "dgc", "clients.momentum": "0"},
    "topk_fp16": {"compression.value_codec": "fp16"},
    "topk_int8": {"compression.value_codec": "int8"},
    "topk_2bit": {"compression.value_codec": "2bit"},
    # Training in half precision, without and with compression of the gradients; fp16 needs a GPU, bf16 does not.
    "fp16_training": {"engine.mixed_precision": "fp16", "compression.sparsifier": "dense"},
    "fp16_training_topk_int8": {"engine.mixed_precision": "fp16", "compression.value_codec": "int8"},
    "bf16_training": {"engine.mixed_precision": "bf16", "compression.sparsifier": "dense"},
    "bf16_training_topk_int8": {"engine.mixed_precision": "bf16", "compression.value_codec": "int8"},
}
USUAL = ("full_precision", "fp16", "powersgd", "topk", "topk_fp16", "topk_int8", "topk_2bit")


def find_techniques(names: str) -> dict[str, dict[str, str]]:
    """The techniques of these names, separated by commas; ValueError that lists them where there is none."""
    chosen = [name.strip() for name in names.split(",")]
    unknown = [name for name in chosen if name not in TECHNIQUES]
    if unknown or len(set(chosen)) < len(chosen):
        wrong = f"unknown technique {unknown[0]!r}" if unknown else "the same technique twice"
        raise ValueError(f"--techniques: {wrong} (choose from {', '.join(TECHNIQUES)})")
    return {name: TECHNIQUES[name] for name in chosen}

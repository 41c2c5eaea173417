"""Read the three experiments of a published comparison from their configurations."""

from __future__ import annotations

from pathlib import Path

from flare_dist.config.config import Config
from flare_dist.config.load import load_config

ROOT = Path(__file__).parent.parent.parent
PUBLISHED = {
    "baseline": [],
    "compression": ["methods/topk_int8"],
    "fp16_compression": ["methods/topk_int8", "methods/fp16_training"],
}


def published(name: str) -> Config:
    """Load one of the three experiments of a published comparison."""
    return load_config(*[ROOT / "configs" / f"{layer}.yaml" for layer in ["compare/deepspeed", *PUBLISHED[name]]])

"""Preprocessing of a trained model's inputs, and the meaning of its outputs: plain values that go with its weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from flare_dist.config.config import Config
from flare_dist.data.datasets import DataSplits, load
from flare_dist.errors import printable
from flare_dist.records.rundir import PREPROCESSING

FORMULA = "(scale * x - mean) / std by channel, for pixels x in [0, 1]"


def describe(data: DataSplits) -> dict[str, Any]:
    """Describe inputs and outputs: task, shapes, classes and groups by name, and how images are normalised.

    `mean` and `std` are in the units of the data set's pixels, of which `scale` is white.
    """
    blank = data.blank
    is_normalized = data.mean.numel() > 0
    normalization = {
        "mean": data.mean.tolist(),
        "std": data.std.tolist(),
        "scale": data.white,
        "formula": FORMULA,
    }
    return {
        "task": data.task_name,
        "input_shape": None if data.input_shape is None else list(data.input_shape),
        "input_dtype": str(blank.dtype).removeprefix("torch.") if isinstance(blank, Tensor) else None,
        "num_classes": data.num_classes,
        "classes": list(data.class_names) or None,
        "groups": [printable(str(name)) for name in data.train.group_names],
        "normalization": normalization if is_normalized else None,
        "vocabulary": data.vocabulary._asdict() if data.vocabulary else None,
    }


def of_run(directory: Path, config: Config, root: str | None) -> dict[str, Any]:
    """Read what a run has written, or, of an older version's run, describe its data; `root` moves them."""
    path = directory / PREPROCESSING
    if root is None and path.exists():
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"export: {path} is damaged: {error}; remove it, and it is made from the data") from error
    moved = dataclasses.replace(config.data, root=root or config.data.root)
    return describe(load(moved, config.seed, config.task))


def header(described: dict[str, Any]) -> dict[str, str]:
    """Return the texts that go into the header of a safetensors or ONNX file."""
    return {"format": "pt", "preprocessing": json.dumps(described, ensure_ascii=False)}


def as_json(described: dict[str, Any]) -> str:
    return json.dumps(described, indent=1, ensure_ascii=False) + "\n"

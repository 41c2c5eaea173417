"""Translate a model to ONNX by torch.onnx, which needs the packages onnx and onnxscript (extra `onnx`)."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from flare_dist.errors import not_installed, reason_in_code

NEEDED = ("onnx", "onnxscript")


def check_onnx() -> None:
    """Raise ValueError that names --format if a package is missing."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ValueError(str(not_installed("--format", name, "'flare_dist[onnx]'")))


def save_onnx(path: Path, model: nn.Module, blank: Tensor, metadata: dict[str, str]) -> None:
    """Write `model` in evaluation mode: from `input`, like `blank` with any number of examples, to `output`.

    Weights of more than 2 GB lie in a file beside it. Raises ValueError with the reason if the model cannot be
    translated.
    """
    model.eval()
    two = torch.cat([blank, blank])  # of one example the tracer takes the number for a constant
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own operations
            exported = torch.onnx.export(
                model,
                (two,),
                dynamo=True,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:  # whatever the exporter, or the user's model under it, may raise
        raise ValueError(f"--format: torch.onnx cannot translate the model: {_first_line(error)}") from error
    program = cast(torch.onnx.ONNXProgram, exported)  # None if dynamo=False
    program.model.metadata_props.update(metadata)
    program.save(str(path))


def _first_line(error: Exception) -> str:
    """Give the first line of the innermost error: the outer ones wrap it in reports of many lines."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return reason_in_code(error).strip().partition("\n")[0]

"""The saved model of a run in formats that others load: plain PyTorch, safetensors, ONNX, Hugging Face.

A new format is one function and one line in FORMATS.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flare_dist.config.config import Config
from flare_dist.config.load import load_config
from flare_dist.data.datasets import load
from flare_dist.disk import explained
from flare_dist.engines.onnx_export import check_onnx, save_onnx
from flare_dist.fixed import load_trained
from flare_dist.layout import separate_buffers
from flare_dist.models.trial import blank_of
from flare_dist.progress import Steps
from flare_dist.records.files import load_model, save_model, save_state, write_text
from flare_dist.records.rundir import CONFIG, PREPROCESSING, RUN_FILES, find_model
from flare_dist.rounds.build_run import build_for, construct
from flare_dist.run.preprocessing import as_json, header, of_run
from flare_dist.tasks.config import find_task
from flare_dist.tasks.task import Task
from flare_dist.units import show_bytes
from flare_dist.vocabulary import Vocabulary

log = logging.getLogger(__name__)

KEY = "--to"
SUFFIXES = {"safetensors": (".safetensors",), "pt": (".pt", ".pth"), "onnx": (".onnx",)}  # hf is a folder


@dataclass(frozen=True)
class Saved:
    """The saved model of a run: its configuration, its weights and buffers by name, and what it expects."""

    config: Config
    state: dict[str, Tensor]  # without the base, if there is one
    preprocessing: dict[str, Any]
    source: Path
    base: str | None = None  # the digest of the frozen weights that go with the state

    @cached_property
    def model(self) -> nn.Module:
        """Build the model, and load the weights; inputs without a shape in common are read from the data for it."""
        config = self.config
        if not self.has_blank:
            model = build_for(config, load(config.data, config.seed, config.task))
        else:
            blank = torch.zeros(1, *self.shape, dtype=self.dtype)
            vocabulary = Vocabulary(**known) if (known := self.preprocessing.get("vocabulary")) else None
            model = construct(config, self.shape, self.preprocessing["num_classes"], self.task, blank, vocabulary)
        separate_buffers(model)
        load_trained("export", str(self.source), model, self.state, self.base)
        return model.eval()

    @property
    def whole_state(self) -> dict[str, Tensor]:
        return self.state if self.base is None else self.model.state_dict()

    @property
    def has_blank(self) -> bool:
        """Tell whether shape and type of an input are known, so that the model can be built without the data."""
        return None not in (self.preprocessing["input_shape"], self.preprocessing["input_dtype"])

    @property
    def task(self) -> Task:
        return find_task(self.config.task.name, self.config.task.options)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.preprocessing["input_shape"])

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.preprocessing["input_dtype"])
        return dtype


def to_safetensors(saved: Saved, path: Path) -> None:
    """Write the state_dict, with the preprocessing in the file's metadata."""
    save_model(path, saved.whole_state, header(saved.preprocessing), KEY)


def to_pt(saved: Saved, path: Path) -> None:
    """Write the state_dict by torch.save, to be loaded with weights_only=True."""
    save_state(path, saved.whole_state, KEY)


def to_onnx(saved: Saved, path: Path) -> None:
    """Write the graph of the model in evaluation mode, for any number of examples."""
    if not saved.has_blank:
        raise ValueError("--format: onnx needs inputs that are one tensor of one shape; choose safetensors or pt")
    check_onnx()
    model = saved.model
    with explained(KEY, path):
        save_onnx(path, model, blank_of(saved.shape, saved.dtype), header(saved.preprocessing))


def to_hf(saved: Saved, path: Path) -> None:
    """Write a folder by the model's own save_pretrained, as models of transformers and PEFT have it."""
    save = getattr(saved.model, "save_pretrained", None)
    if save is None:
        name = saved.config.model.name
        raise ValueError(
            f"--format: hf is for models with save_pretrained, as transformers and PEFT have it, got {name}; choose "
            "safetensors, pt or onnx"
        )
    with explained(KEY, path):
        path.mkdir(parents=True, exist_ok=True)
        save(str(path))


def export_run(directory: Path, which: str, format_: str, to: Path, root: str | None = None) -> list[Path]:
    """Write the final or the best model of a run to `to`, and what it expects of its inputs beside it as JSON.

    `root` moves the data, which only runs of older versions need, and those of a Dataset whose inputs have no shape and
    type in common. Returns the paths written; ValueError names the
    option that is wrong.
    """
    source = find_model(directory, which, "export")
    _check_target(directory, format_, to)
    with Steps(f"export to {format_}", 3, at_once=True) as shown:
        saved = read_saved(directory, source, root)
        shown.advance(1, source.stat().st_size)
        with explained(KEY, to):
            to.parent.mkdir(parents=True, exist_ok=True)
        FORMATS[format_](saved, to)
        shown.advance()
        beside = to / PREPROCESSING if format_ == "hf" else to.with_name(f"{_stem(to)}.{PREPROCESSING}")
        write_text(beside, as_json(saved.preprocessing), KEY)
        shown.advance()
    written = sum(file.stat().st_size for file in (to.rglob("*") if to.is_dir() else [to]))
    log.info("%s: %s", to, show_bytes(written))
    return [to, beside]


def read_saved(directory: Path, source: Path, root: str | None = None) -> Saved:
    """Read one of a run's models, the file `source`, and what it expects; `root` moves the data."""
    config = load_config(directory / CONFIG)
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, root=root or config.data.root))
    state, base = load_model(source)
    return Saved(moved, state, of_run(directory, config, root), source, base)


def _check_target(directory: Path, format_: str, to: Path) -> None:
    """Raise ValueError that names --to if the path is of another kind than the format, or is the run's own."""
    if format_ == "hf":
        if to.exists() and not to.is_dir():
            raise ValueError(f"{KEY}: hf writes a folder, got the file {to}; name a folder")
        if to.resolve() == directory.resolve():
            raise ValueError(f"{KEY}: {to} is the run directory; name another folder")
        return
    if to.is_dir():
        raise ValueError(f"{KEY}: {to} is a directory; name a file in it, e.g. {to / 'model'}{SUFFIXES[format_][0]}")
    other = next((name for name, suffixes in SUFFIXES.items() if name != format_ and to.suffix in suffixes), None)
    if other:
        raise ValueError(f"{KEY}: {to} ends as format {other} does, got --format {format_}; choose one of them")
    if to.parent.resolve() == directory.resolve() and to.name in RUN_FILES:
        raise ValueError(f"{KEY}: {to} is a file of the run; choose another name")


def _stem(path: Path) -> str:
    known = [suffix for suffixes in SUFFIXES.values() for suffix in suffixes]
    return path.stem if path.suffix in known else path.name


FORMATS: dict[str, Callable[[Saved, Path], None]] = {
    "safetensors": to_safetensors,
    "pt": to_pt,
    "onnx": to_onnx,
    "hf": to_hf,
}

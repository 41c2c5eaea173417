"""The run directory: which run is in it, and whether this one may go on from there."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from flare_dist.run.checkpoint import complete_rounds
from flare_dist.run.config import Config, as_dict, differing_keys, to_yaml, with_threads
from flare_dist.run.files import write_text

CONFIG = "config.yaml"
SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
MODEL = "model.safetensors"
BEST = "best.safetensors"

# Keys that may change between the parts of one run, because no parameter depends on them.
FREE_KEYS = {
    "output_dir",
    "data.root",
    "data.download",
    "engine.timeout_seconds",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.resume",
}


def settle(config: Config, default_threads: int) -> tuple[Config, Path | None]:
    """The resolved configuration, and the run directory whose checkpoint it continues, if any.

    Checks everything that can be checked without the other ranks. Raises ValueError naming the dotted key where the
    output directory cannot be written, where there is nothing to resume, or where the configuration has changed.
    """
    directory = Path(config.output_dir)
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=existing):
            pass
    except OSError as error:
        raise ValueError(f"output_dir: cannot write to {directory}: {error.strerror}") from error
    source = _resume_from(config, directory)
    if source is None:
        return with_threads(config, config.engine.threads or default_threads), None
    saved = yaml.safe_load((source / CONFIG).read_text(encoding="utf-8"))
    threads = config.engine.threads or saved["engine"]["threads"]
    config = with_threads(config, threads)
    if source == directory:
        changed = [key for key in differing_keys(saved, as_dict(config)) if key not in FREE_KEYS]
        if changed:
            raise ValueError(
                f"{changed[0]}: {directory} holds a run with another configuration (different: {', '.join(changed)}); "
                "choose another output_dir, or start over with checkpoint.resume=never"
            )
    return config, source


def _resume_from(config: Config, directory: Path) -> Path | None:
    wanted = config.checkpoint.resume
    if wanted == "never":
        return None
    if wanted == "auto":
        return directory if _holds_run(directory) else None
    source = Path(wanted)
    if not _holds_run(source):
        raise ValueError(f"checkpoint.resume: {source} holds no complete checkpoint of a run")
    if source.resolve() == directory.resolve():
        return directory
    if _holds_run(directory):
        raise ValueError(
            f"checkpoint.resume: {directory} already holds a run; continue it with auto, or choose another"
        )
    return source


def _holds_run(directory: Path) -> bool:
    return (directory / CONFIG).exists() and bool(complete_rounds(directory / CHECKPOINTS))


def clear(directory: Path) -> None:
    """Remove what an earlier run left in `directory`, and nothing else."""
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    for name in (CONFIG, SUMMARY, MODEL, BEST, "metrics.jsonl"):
        (directory / name).unlink(missing_ok=True)


def write_config(directory: Path, config: Config) -> None:
    write_text(directory / CONFIG, to_yaml(config))


def read_summary(directory: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None."""
    path = directory / SUMMARY
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def is_best(row: dict[str, Any], earlier: list[dict[str, Any]]) -> bool:
    """True where `row` beats every earlier evaluation of the run."""
    return selection_accuracy(row) > max((selection_accuracy(r) for r in earlier if "test_accuracy" in r), default=-1.0)


def selection_accuracy(row: dict[str, Any]) -> float:
    """What the best model is chosen by: validation accuracy where part of the training set is held out."""
    return row.get("validation_accuracy", row["test_accuracy"])


def summarise(rows: list[dict[str, Any]], seconds: float, hardware: dict[str, Any]) -> dict[str, Any]:
    """summary.json: final and best accuracy, total bytes each way, wall-clock seconds, versions and hardware."""
    evaluated = [row for row in rows if "test_accuracy" in row]
    best = max(evaluated, key=selection_accuracy)
    sums = ("uplink_bytes", "downlink_bytes", "buffer_bytes", "dense_bytes", "wire_bytes", "kept", "total")
    packages = ("flare_dist", "torch", "torchvision", "accelerate", "deepspeed", "numpy")
    on_gpu = hardware["device"] == "cuda"
    processor = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return {
        "rounds": rows[-1]["round"],
        "test_accuracy": evaluated[-1]["test_accuracy"],
        "test_loss": evaluated[-1]["test_loss"],
        "best_accuracy": best["test_accuracy"],
        "best_round": best["round"],
        **{key: sum(row.get(key, 0) for row in rows) for key in (*sums, "rejected_clients")},
        "seconds": seconds,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": {**hardware, "processor": processor},
    }

"""The run directory: its files, its lock, and the configuration and summary in it."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from flare_dist.config.config import Config
from flare_dist.config.saved import to_yaml, with_defaults
from flare_dist.disk import existing
from flare_dist.errors import check_choice
from flare_dist.locks import HeldError, Lock, take
from flare_dist.records.checkpoint import complete_rounds
from flare_dist.records.clients_log import CLIENTS
from flare_dist.records.files import write_text

CONFIG = "config.yaml"
SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
MODEL = "model.safetensors"
BEST = "best.safetensors"
MASKS_SUFFIX = ".masks.safetensors"  # instead of .safetensors, beside a model that is sparse
LOCK = ".lock"
PREPROCESSING = "preprocessing.json"  # what the model expects
TRACKED = ("wandb.run", "mlflow.run")  # the run's names at these trackers
_MASKS = tuple(Path(name).with_suffix(MASKS_SUFFIX).name for name in (MODEL, BEST))
RUN_FILES = (CONFIG, SUMMARY, METRICS, CLIENTS, MODEL, BEST, PREPROCESSING, *_MASKS, *TRACKED)


def check_writable(key: str, directory: Path) -> None:
    """Raise ValueError that begins with `key` if a directory cannot be written to, or cannot be made."""
    try:
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=existing(directory)):
            pass
    except OSError as error:
        raise ValueError(f"{key}: cannot write to {directory}: {error.strerror}; choose another directory") from error


def absolute_path(path: str) -> Path:
    """Make a path absolute, so that it does not depend on the working directory; symbolic links stay as they are."""
    return Path(path).expanduser().absolute()


def holds_run(directory: Path) -> bool:
    """Tell whether a directory holds a run; a finished one may have lost its checkpoints and still counts."""
    holds_state = (directory / SUMMARY).exists() or bool(complete_rounds(directory / CHECKPOINTS))
    return (directory / CONFIG).exists() and holds_state


WHICH = {"final": MODEL, "best": BEST}


def find_model(directory: Path, which: str, command: str) -> Path:
    """Find the final or the best model of the run in `directory`; ValueError begins with `command` if it has none."""
    check_choice("which", which, WHICH)
    path = directory / WHICH[which]
    for needed in (directory / CONFIG, path):
        if not needed.exists():
            raise ValueError(
                f"{command}: {needed} does not exist; is {directory} the directory of a run? "
                "(before its end there is only --which best)"
            )
    return path


def read_config(directory: Path) -> dict[str, Any]:
    """Read the configuration of the run in `directory`, with what older versions did not save at its default.

    Raises ValueError if there is none.
    """
    path = directory / CONFIG
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        saved["engine"]["threads"], saved["engine"]["device"]
        saved["clients"].setdefault("together", "never")  # versions before this key trained one client after another
        if saved["model"].get("norm") == "batch":
            saved["model"]["norm"] = "keep"
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"checkpoint.resume: {path} is not the configuration of a run: {error!r}; name a run directory"
        ) from error
    return with_defaults(saved)


def claim(directory: Path, held: bool | None = None) -> Lock:
    """Take the directory for this process until it ends.

    `held` tells whether the directory held a run before; None if that does not matter. Raises ValueError if another run
    is writing to it, or has come and gone since.
    """
    lock = take_lock("output_dir", directory / LOCK)
    if held is not None and holds_run(directory) != held:
        lock.release()
        raise ValueError(
            f"output_dir: another run has written to {directory} while this one was starting; choose another directory"
        )
    return lock


def take_lock(key: str, path: Path) -> Lock:
    """Hold the lock `path` of a directory that two runs must not share; ValueError begins with `key`."""
    try:
        return take(path)
    except HeldError as error:
        raise ValueError(f"{key}: another run is writing to {path.parent}; {error}") from error
    except OSError as error:
        raise ValueError(f"{key}: cannot lock {path}: {error.strerror or error}; check its permissions") from error


def clear(directory: Path) -> None:
    """Remove the files of an earlier run from `directory`, and nothing else."""
    for folder in (directory / CHECKPOINTS).glob("round-*"):
        shutil.rmtree(folder)
    for name in RUN_FILES:
        (directory / name).unlink(missing_ok=True)


def write_config(directory: Path, config: Config) -> None:
    """Save the resolved configuration of a run."""
    write_text(directory / CONFIG, to_yaml(config))


def read_summary(directory: Path) -> dict[str, Any] | None:
    """Read the summary of a finished run; None if the run is not finished, or is none. A metric of null is NaN."""
    path = directory / SUMMARY
    try:
        summary = dict(json.loads(path.read_text(encoding="utf-8")))
        return {key: math.nan if value is None else value for key, value in summary.items()}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(f"output_dir: {path} is damaged: {error}; remove it, and the run goes on") from error

"""The run directory: which run is in it, and whether this one may go on from there."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from flare_dist.config.config import (
    Config,
    as_dict,
    differing_keys,
    to_yaml,
    with_defaults,
    with_machine,
    with_smallest_batch,
    with_task,
    with_together,
)
from flare_dist.disk import existing
from flare_dist.engines.config import default_threads, resolve_device
from flare_dist.engines.deepspeed_config import deepspeed_settings
from flare_dist.locks import HeldError, Lock, take
from flare_dist.records.checkpoint import complete_rounds
from flare_dist.records.files import write_text
from flare_dist.tasks.config import AUTO

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
MODEL = "model.safetensors"
BEST = "best.safetensors"
MASKS_SUFFIX = ".masks.safetensors"  # instead of .safetensors, beside a model that is sparse
LOCK = ".lock"

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


def settle(config: Config, local_ranks: int) -> tuple[Config, Path | None]:
    """The resolved configuration, and the run directory whose checkpoint it continues, if any.

    Checks everything that can be checked without the other ranks, and changes nothing. Raises ValueError naming the
    dotted key where the machine or the output directory cannot do what is asked for, where there is nothing to resume,
    or where the configuration has changed.
    """
    directory = Path(config.output_dir)
    check_writable("output_dir", directory)
    config = _with_deepspeed(_with_whole_root(config))
    source = _resume_from(config, directory)
    if source is None:
        return with_machine(
            config, config.engine.threads or default_threads(local_ranks), resolve_device(config.engine)
        ), None
    saved = _read_config(source / CONFIG)
    threads = config.engine.threads or saved["engine"]["threads"]
    device = config.engine.device if config.engine.device != "auto" else saved["engine"]["device"]
    config = with_machine(config, threads, device)
    resolve_device(config.engine)
    if source == directory and config.clients.together == "auto":
        config = with_together(config, saved["clients"]["together"])
    if source == directory and config.task.name == AUTO:
        config = with_task(config, saved["task"]["name"])
    if source == directory and config.clients.smallest_batch is None:
        config = with_smallest_batch(config, saved["clients"]["smallest_batch"])
    if config.model.norm == "keep" and saved["model"]["norm"] == "group":  # the default of the run's version, or typed
        log.info("model.norm: group, as in the run in %s; only another run may keep the model's own layers", source)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, norm="group"))
    free = FREE_KEYS
    if config.clients.state_dir and saved["clients"]["state_dir"]:
        free = free | {"clients.state_dir"}  # it may have been moved, see statedir.py
    changed = [key for key in differing_keys(saved, as_dict(config)) if key not in free]
    if source == directory and changed:
        raise ValueError(
            f"{changed[0]}: {directory} holds a run with another configuration (different: {', '.join(changed)}); "
            f"choose another output_dir (--checkpoint.resume {directory} goes on from it there), or remove it and "
            "start over with --checkpoint.resume never"
        )
    return config, source


def check_writable(key: str, directory: Path) -> None:
    """Raise ValueError that names `key` where nothing can be written to a directory, or where it is to be."""
    try:
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=existing(directory)):
            pass
    except OSError as error:
        raise ValueError(f"{key}: cannot write to {directory}: {error.strerror}") from error


def whole_path(path: str) -> Path:
    """An absolute path, which another directory of work does not change; symbolic links stay as they are."""
    return Path(path).expanduser().absolute()


def _with_whole_root(config: Config) -> Config:
    """The configuration with the data's path as it is to be found from anywhere."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(whole_path(config.data.root))))


def state_dir_of(directory: Path) -> Path | None:
    """Where the clients of the run in `directory` have their memory, if not in its checkpoints."""
    state_dir = _read_config(directory / CONFIG)["clients"]["state_dir"]
    return None if state_dir is None else Path(state_dir)


def _with_deepspeed(config: Config) -> Config:
    """The configuration with DeepSpeed's settings in it, on which the bits of a run depend, instead of their file."""
    engine, clients = config.engine, config.clients
    if engine.name != "deepspeed":
        return config
    settings = deepspeed_settings(engine, clients.batch_size, clients.gradient_clipping, config.mode)
    return dataclasses.replace(config, engine=dataclasses.replace(engine, deepspeed_config=settings))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        saved["engine"]["threads"], saved["engine"]["device"]
        saved["clients"].setdefault("together", "never")  # versions that did not know it
        if saved["model"].get("norm") == "batch":
            saved["model"]["norm"] = "keep"
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint.resume: {path} is not the configuration of a run: {error!r}") from error
    return with_defaults(saved)


def _resume_from(config: Config, directory: Path) -> Path | None:
    wanted = config.checkpoint.resume
    if wanted == "never":
        return None
    held = holds_run(directory)
    if held and wanted in ("auto", _read_config(directory / CONFIG)["checkpoint"]["resume"]):
        return directory  # under a path: the same command, repeated
    foreign = [name for name in (CONFIG, CHECKPOINTS, MODEL, SUMMARY) if (directory / name).exists()]
    ours = (directory / METRICS).exists() or (directory / LOCK).exists()  # killed before its first round
    if foreign and not ours and not held:
        raise ValueError(
            f"output_dir: {directory} holds {', '.join(foreign)} of something that is not a run; choose another "
            "directory, or start over with checkpoint.resume=never"
        )
    if wanted == "auto":
        return None
    source = Path(wanted)
    if not (source / CONFIG).exists() or not complete_rounds(source / CHECKPOINTS):
        raise ValueError(f"checkpoint.resume: {source} holds no complete checkpoint of a run")
    if source.resolve() == directory.resolve():
        return directory
    if held:
        raise ValueError(
            f"checkpoint.resume: {directory} already holds a run; continue it with auto, or choose another"
        )
    return source


def holds_run(directory: Path) -> bool:
    """A finished run may have lost its checkpoints, and is still not to be overwritten."""
    holds_state = (directory / SUMMARY).exists() or bool(complete_rounds(directory / CHECKPOINTS))
    return (directory / CONFIG).exists() and holds_state


def claim(directory: Path, held: bool | None = None) -> Lock:
    """Take the directory for this process until it ends.

    Raises ValueError if another run is writing to it, or has come and gone since it was looked at: `held` is whether
    there was a run in it, if that matters.
    """
    lock = take_lock("output_dir", directory / LOCK)
    if held is not None and holds_run(directory) != held:
        lock.release()
        raise ValueError(f"output_dir: another run has written to {directory} while this one was starting")
    return lock


def take_lock(key: str, path: Path) -> Lock:
    """Hold the lock `path` of a directory that two runs must not share; raises ValueError that names its `key`."""
    try:
        return take(path)
    except HeldError as error:
        raise ValueError(f"{key}: another run is writing to {path.parent}; {error}") from error
    except OSError as error:
        raise ValueError(f"{key}: cannot lock {path}: {error.strerror or error}") from error


def clear(directory: Path) -> None:
    """Remove what an earlier run left in `directory`, and nothing else."""
    for folder in (directory / CHECKPOINTS).glob("round-*"):
        shutil.rmtree(folder)
    masks = [Path(name).with_suffix(MASKS_SUFFIX).name for name in (MODEL, BEST)]
    for name in (CONFIG, SUMMARY, METRICS, MODEL, BEST, *masks):
        (directory / name).unlink(missing_ok=True)


def write_config(directory: Path, config: Config) -> None:
    write_text(directory / CONFIG, to_yaml(config))


def read_summary(directory: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None."""
    path = directory / SUMMARY
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(f"output_dir: {path} is damaged: {error}") from error

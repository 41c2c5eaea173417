"""Which run a command continues, and whether its configuration may continue it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from flare_dist.config.config import Config, with_values
from flare_dist.config.saved import as_dict, differing_keys
from flare_dist.data.tokenizer import located
from flare_dist.engines.config import default_threads, resolve_device
from flare_dist.engines.deepspeed_config import deepspeed_settings
from flare_dist.records.checkpoint import complete_rounds
from flare_dist.records.rundir import (
    CHECKPOINTS,
    CONFIG,
    LOCK,
    METRICS,
    MODEL,
    SUMMARY,
    absolute_path,
    check_writable,
    holds_run,
    read_config,
)
from flare_dist.tasks.config import AUTO

log = logging.getLogger(__name__)

# Keys that may change between the parts of one run, because no parameter depends on them.
FREE_KEYS = {
    "output_dir",
    "code_dirs",
    "tracking",
    "log_every",
    "data.root",
    "data.download",
    "data.workers",
    "data.on_error",  # a run that an example has ended goes on without it
    "engine.timeout_seconds",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.resume",
}


def resolve(config: Config, local_ranks: int) -> tuple[Config, Path | None]:
    """Return the resolved configuration, and the run directory whose checkpoint it continues, if any.

    Checks everything that can be checked without the other ranks, and changes nothing. ValueError begins with the
    dotted key if the machine or the output directory cannot do what is asked for, if there is nothing to resume, or if
    the configuration of the run that is continued has changed.
    """
    directory = Path(config.output_dir)
    check_writable("output_dir", directory)
    places = {"data.root": str(absolute_path(config.data.root)), "data.tokenizer": located(config.data.tokenizer)}
    config = _with_deepspeed(with_values(config, places))
    source = _resume_from(config, directory)
    if source is None:
        threads = config.engine.threads or default_threads(local_ranks)
        return with_values(config, {"engine.threads": threads, "engine.device": resolve_device(config.engine)}), None
    saved = read_config(source)
    config = with_values(config, _engine_of(config, saved))
    resolve_device(config.engine)
    if source == directory:
        config = with_values(config, _resolved_before(config, saved))
    if config.model.norm == "keep" and saved["model"]["norm"] == "group":  # the default of the run's version, or typed
        log.info("model.norm: group, as in the run in %s; only another run may keep the model's own layers", source)
        config = with_values(config, {"model.norm": "group"})
    if source == directory:
        _check_unchanged(config, saved)
    return config, source


def _with_deepspeed(config: Config) -> Config:
    """Put DeepSpeed's settings into the configuration in place of their file: the bits of a run depend on them."""
    engine = config.engine
    clients = config.clients
    if engine.name != "deepspeed":
        return config
    settings = deepspeed_settings(engine, clients.batch_size, clients.gradient_clipping, config.mode)
    return with_values(config, {"engine.deepspeed_config": settings})


def _engine_of(config: Config, saved: dict[str, Any]) -> dict[str, Any]:
    """Take over the threads and the device of the run, unless the command sets them: its bits depend on them."""
    engine = saved["engine"]
    device = config.engine.device if config.engine.device != "auto" else engine["device"]
    return {"engine.threads": config.engine.threads or engine["threads"], "engine.device": device}


def _resolved_before(config: Config, saved: dict[str, Any]) -> dict[str, Any]:
    """Take over what the run has resolved by itself, unless the command sets it."""
    values: dict[str, Any] = {}
    if config.clients.together == "auto":
        values["clients.together"] = saved["clients"]["together"]
    if config.task.name == AUTO:
        values["task.name"] = saved["task"]["name"]
    if config.task.best in (AUTO, saved["task"]["best"].partition(":")[0]):  # saved with its direction
        values["task.best"] = saved["task"]["best"]
    if config.clients.num == AUTO:
        values["clients.num"] = saved["clients"]["num"]
    if config.clients.smallest_batch is None:
        values["clients.smallest_batch"] = saved["clients"]["smallest_batch"]
    return values


def _check_unchanged(config: Config, saved: dict[str, Any]) -> None:
    """Raise ValueError if a key differs on which the parameters of the run in output_dir depend."""
    free = FREE_KEYS
    if config.clients.state_dir and saved["clients"]["state_dir"]:
        free = free | {"clients.state_dir"}  # it may have been moved, see statedir.py
    changed = [key for key in differing_keys(saved, as_dict(config)) if key not in free]
    if changed:
        directory = config.output_dir
        raise ValueError(
            f"{changed[0]}: {directory} holds a run with another configuration (different: {', '.join(changed)}); "
            f"choose another output_dir (--checkpoint.resume {directory} goes on from it there), or remove it and "
            "start over with --checkpoint.resume never"
        )


def _resume_from(config: Config, directory: Path) -> Path | None:
    """Find the run directory whose checkpoint is continued; None if a new run begins."""
    resume = config.checkpoint.resume
    if resume == "never":
        return None
    held = holds_run(directory)
    if held and resume in ("auto", read_config(directory)["checkpoint"]["resume"]):
        return directory  # under a path: the same command, repeated
    if not held:
        _check_free(directory)
    return None if resume == "auto" else _other_run(Path(resume), directory, held)


def _check_free(directory: Path) -> None:
    """Raise ValueError if a directory without a run holds files that a run would overwrite."""
    foreign = [name for name in (CONFIG, CHECKPOINTS, MODEL, SUMMARY) if (directory / name).exists()]
    ours = (directory / METRICS).exists() or (directory / LOCK).exists()  # killed before its first round
    if foreign and not ours:
        raise ValueError(
            f"output_dir: {directory} holds {', '.join(foreign)} of something that is not a run; choose another "
            "directory, or start over with checkpoint.resume=never"
        )


def _other_run(source: Path, directory: Path, held: bool) -> Path:
    """Check that checkpoint.resume names a run that `directory` can continue; `held` tells if it holds a run itself."""
    if not (source / CONFIG).exists() or not complete_rounds(source / CHECKPOINTS):
        raise ValueError(
            f"checkpoint.resume: {source} holds no complete checkpoint of a run; name a run directory, auto or never"
        )
    if source.resolve() == directory.resolve():
        return directory
    if held:
        raise ValueError(
            f"checkpoint.resume: {directory} already holds a run, got {source}; continue it with auto, or choose "
            "another output_dir"
        )
    return source

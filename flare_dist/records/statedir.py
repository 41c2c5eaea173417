"""The directory in which a run keeps its clients' memory (`clients.state_dir`), and the run that owns it.

STATE_DIR/run.txt      the run directory that owns it, as long as there is a run
          00012/...    the clients' memory, see clients/version_files.py
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from flare_dist.clients.version_files import remove_versions, versions_in
from flare_dist.config.config import Config, with_values
from flare_dist.records import rundir
from flare_dist.records.files import write_text

OWNER = "run.txt"
LOCK = ".states.lock"  # not the name of the run directory's own, which may be the same directory


def resolve(config: Config, source: Path | None, is_finished: bool) -> Config:
    """Return the configuration with the absolute path of the directory, as the run that goes on finds it now.

    A relative path belongs to the directory in which the command was first started. From elsewhere it stands for the
    same place if that place ends with it. A directory that was moved is found at the path that the command names.
    Raises ValueError if the memory of the clients of `source` is not there, and as `check` does.
    """
    directory = Path(config.output_dir)
    if source and source != directory:
        _check_source(source)
    if config.clients.state_dir is None:
        return config
    state_dir = rundir.absolute_path(config.clients.state_dir)
    saved = state_dir_of(directory) if source == directory else None
    if saved:
        state_dir = saved.absolute() if is_finished else _find(config.clients.state_dir, saved, directory)
    config = with_values(config, {"clients.state_dir": str(state_dir)})
    check(config, source)
    return config


def state_dir_of(directory: Path) -> Path | None:
    """Read the path of the clients' memory of the run in `directory`; None if it is in the checkpoints."""
    state_dir = rundir.read_config(directory)["clients"]["state_dir"]
    return None if state_dir is None else Path(state_dir)


def of_source(config: Config, source: Path) -> Path | None:
    """Find the clients' memory of the run that this one goes on from; None if it is in the checkpoints."""
    if source == Path(config.output_dir) and config.clients.state_dir:
        return Path(config.clients.state_dir)
    return state_dir_of(source)


def _find(given: str, saved: Path, directory: Path) -> Path:
    """Find the clients' memory of the run in `directory`, which had it in `saved`; the command names `given`."""
    places = [rundir.absolute_path(given)]
    parts = Path(os.path.normpath(given)).parts
    if not Path(given).is_absolute() and saved.parts[-len(parts) :] == tuple(part for part in parts if part != ".."):
        places.append(saved.absolute())
    ours = [place for place in places if _owner(place) == directory.resolve()]
    moved = [place for place in places if any(versions_in(place)) and not _is_run(_owner(place))]
    if ours or moved:
        return (ours or moved)[0]
    started = "" if saved.is_absolute() else ", relative to the start of its command: start it there, or"
    raise ValueError(
        f"clients.state_dir: the memory of the clients of {directory} is not in {places[0]}, the run had it in {saved}"
        f"{started or ';'} give its absolute path"
    )


def _check_source(source: Path) -> None:
    """Raise ValueError if the clients' memory of `source` is not at the path in its configuration."""
    theirs = state_dir_of(source)
    if theirs is None:
        return
    owner = _owner(theirs)
    if not theirs.is_dir() or (owner != source.resolve() and _is_run(owner)):
        start_there = "" if theirs.is_absolute() else "start from the directory of its command, or "
        raise ValueError(
            f"checkpoint.resume: the memory of the clients of {source} is not in {theirs}; {start_there}write the "
            f"absolute path to it into {source / rundir.CONFIG} (clients.state_dir)"
        )


def _is_run(owner: Path | None) -> bool:
    return owner is not None and (owner / rundir.CONFIG).exists()


def check(config: Config, source: Path | None = None) -> None:
    """Raise ValueError if the directory cannot be written to, or holds the memory of another run's clients.

    `source` is the run that this one goes on from.
    """
    if config.clients.state_dir is None:
        return
    state_dir = Path(config.clients.state_dir)
    rundir.check_writable("clients.state_dir", state_dir)
    if source and source.resolve() != Path(config.output_dir).resolve():
        theirs = state_dir_of(source)
        if theirs and theirs.resolve() == state_dir.resolve():
            raise ValueError(
                f"clients.state_dir: {state_dir} holds the memory of the clients of {source}, which stays as it is; "
                "choose another directory"
            )
    owner = _owner(state_dir)
    if owner != Path(config.output_dir).resolve() and _is_run(owner):
        raise ValueError(
            f"clients.state_dir: {state_dir} holds the memory of the clients of {owner}; choose another directory"
        )
    if owner != Path(config.output_dir).resolve() and any(versions_in(state_dir)) and not _goes_on(config, state_dir):
        whose = f"of {owner}, which is not there any more" if owner else "of a run that left no name"
        raise ValueError(
            f"clients.state_dir: {state_dir} holds the memory of the clients {whose}; remove it, or choose another "
            "directory"
        )


def claim(config: Config) -> AbstractContextManager[object]:
    """Take the directory for this process until it ends; raises ValueError if another run holds it."""
    if config.clients.state_dir is None:
        return nullcontext()
    state_dir = Path(config.clients.state_dir)
    lock = rundir.take_lock("clients.state_dir", state_dir / LOCK)
    try:
        check(config)  # once more: a run may have come and gone
    except ValueError:
        lock.release()
        raise
    return lock


def mark(config: Config) -> None:
    """Write the owner into the directory; for one rank, once the run directory has its configuration."""
    if config.clients.state_dir is not None:
        owner = Path(config.clients.state_dir) / OWNER
        write_text(owner, f"{Path(config.output_dir).resolve()}\n", "clients.state_dir")


def clear(directory: Path) -> None:
    """Remove the clients' memory of the run in `directory`; for one rank, before the run itself is removed."""
    try:
        state_dir = state_dir_of(directory)
    except ValueError:  # there is no run, or none whose configuration can be read
        return
    if state_dir and _owner(state_dir) == directory.resolve():
        remove_versions(state_dir, lambda client: True)
        (state_dir / OWNER).unlink()


def _goes_on(config: Config, state_dir: Path) -> bool:
    """Tell whether the run directory holds a run whose clients' memory is `state_dir`; either may have been moved."""
    try:
        own = state_dir_of(Path(config.output_dir))
    except ValueError:  # it holds none
        return False
    return own is not None and (own.resolve() == state_dir.resolve() or not own.exists())


def _owner(state_dir: Path) -> Path | None:
    """Read the run directory that owns a state directory; None if no run does."""
    try:
        return Path((state_dir / OWNER).read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"clients.state_dir: {state_dir / OWNER} cannot be read: {error}") from error

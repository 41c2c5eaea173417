"""The directory in which a run keeps what its clients remember (`clients.state_dir`), and whose it is.

STATE_DIR/run.txt      the run directory that it belongs to, as long as there is a run
          00012/...    the clients' memory, see clients/slots.py
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from flare_dist.clients.slots import remove_versions, versions_in
from flare_dist.run import rundir
from flare_dist.run.config import Config
from flare_dist.run.files import write_text

OWNER = "run.txt"
LOCK = ".states.lock"  # not the name of the run directory's own, which may be the same directory


def check(config: Config, source: Path | None = None) -> None:
    """Raise ValueError where the directory cannot be written to, or holds what another run's clients remember.

    `source` is the run that this one goes on from.
    """
    if config.clients.state_dir is None:
        return
    state_dir = Path(config.clients.state_dir)
    rundir.check_writable("clients.state_dir", state_dir)
    if source and source.resolve() != Path(config.output_dir).resolve():
        theirs = rundir.state_dir_of(source)
        if theirs and theirs.resolve() == state_dir.resolve():
            raise ValueError(
                f"clients.state_dir: {state_dir} holds what the clients of {source} remember, which stays as it is; "
                "choose another directory"
            )
    owner = _owner(state_dir)
    if owner and owner != Path(config.output_dir).resolve() and (owner / rundir.CONFIG).exists():
        raise ValueError(
            f"clients.state_dir: {state_dir} holds what the clients of {owner} remember; choose another directory"
        )
    if owner != Path(config.output_dir).resolve() and any(versions_in(state_dir)) and not _goes_on(config, state_dir):
        whose = f"of {owner}, which is not there any more," if owner else "of a run that left no name"
        raise ValueError(
            f"clients.state_dir: {state_dir} holds what the clients {whose} remember; remove it or choose another"
        )


def claim(config: Config) -> AbstractContextManager[object]:
    """Take the directory for this process until it ends; raises ValueError where another run has it."""
    if config.clients.state_dir is None:
        return nullcontext()
    state_dir = Path(config.clients.state_dir)
    state_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state_dir / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(f"clients.state_dir: another run is writing to {state_dir}") from error
    try:
        check(config)  # once more: a run may have come and gone
    except ValueError:
        lock.release()
        raise
    return lock


def mark(config: Config) -> None:
    """Write down whose the directory is; for one rank, once the run directory has its configuration."""
    if config.clients.state_dir is not None:
        write_text(Path(config.clients.state_dir) / OWNER, f"{Path(config.output_dir).resolve()}\n")


def clear(directory: Path) -> None:
    """Remove what the clients of the run in `directory` remember; for one rank, before the run itself is removed."""
    try:
        state_dir = rundir.state_dir_of(directory)
    except ValueError:  # there is no run, or none whose configuration can be read
        return
    if state_dir and _owner(state_dir) == directory.resolve():
        remove_versions(state_dir, lambda client: True)
        (state_dir / OWNER).unlink()


def _goes_on(config: Config, state_dir: Path) -> bool:
    """Whether the run directory, which may have been moved, holds a run with its clients' memory there."""
    try:
        own = rundir.state_dir_of(Path(config.output_dir))
    except ValueError:  # it holds none
        return False
    return own is not None and own.resolve() == state_dir.resolve()


def _owner(state_dir: Path) -> Path | None:
    """The run directory to which it belongs, if it is anybody's."""
    try:
        return Path((state_dir / OWNER).read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"clients.state_dir: {state_dir / OWNER} cannot be read: {error}") from error

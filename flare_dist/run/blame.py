"""Errors of the user's own code in the middle of a run: which key's callable failed, in which round, on which rank."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from types import FrameType
from typing import Any, NamedTuple

from flare_dist.config.config import NAMED, Config
from flare_dist.errors import ReportedError, is_theirs, reason_in_code
from flare_dist.given import FROM_PYTHON, given_again
from flare_dist.named import WrongResultError
from flare_dist.rounds.diverged import DivergedError
from flare_dist.run.objects import home


class Own(NamedTuple):
    """A choice of the user's own, and where its code is."""

    key: str
    name: str
    module: str
    qualified: str  # its name in the module


@contextmanager
def blamed(config: Config, round_: int, rank: int) -> Iterator[None]:
    """Name the key whose callable raised an error in the block, in a RuntimeError, if it is the user's code.

    The error itself is its cause, so that a traceback leads to the line. Errors that name their key pass as they are.
    """
    try:
        yield
    except (WrongResultError, ReportedError, DivergedError):
        raise
    except Exception as error:  # whatever somebody's code may raise
        owners = _owners(config, error)
        if not owners or (isinstance(error, ValueError) and str(error).startswith(NAMED)):
            raise
        names = " or ".join(f"{own.key}: {own.name}" for own in owners)
        raise RuntimeError(f"{names} fails in round {round_} on rank {rank}: {reason_in_code(error)}") from error


def _owners(config: Config, error: Exception) -> list[Own]:
    """Find whose code raised the error: the innermost frame decides; all of its package if it tells no one of them."""
    choices = [own for key in NAMED for own in _own(key, attrgetter(key)(config))]
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if is_theirs(frame.f_code.co_filename)]
    for frame in reversed(frames):
        if near := [own for own in choices if _package(own.module) == _package(_module(frame))]:
            return [own for own in near if _is_of(own, frame)] or near
    return []


def _own(key: str, choice: Any) -> Iterator[Own]:
    """Yield what is the user's own of a choice, which may be several."""
    for name in choice if isinstance(choice, tuple) else (choice,):
        if str(name).startswith(FROM_PYTHON):
            yield Own(key, name, *home(given_again(key, name)))
        elif ":" in str(name):
            module, _, qualified = name.partition(":")
            yield Own(key, name, module, qualified)


def _is_of(own: Own, frame: FrameType) -> bool:
    """Tell whether a frame is of the callable itself, or of a function in it."""
    qualified = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)  # Python 3.10 has the name alone
    return _module(frame) == own.module and f"{qualified}.".startswith(f"{own.qualified}.")


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _package(module: str) -> str:
    return module.partition(".")[0]

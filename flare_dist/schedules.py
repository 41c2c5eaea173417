"""Learning-rate schedules over rounds, for clients and for the server.

A schedule is written as a word, followed by a colon and its parameters if it has any:
    constant            1
    linear              1 -> 0
    cosine              1 -> 0 along half a cosine
    exponential:F       1 -> F by the same factor each round, e.g. exponential:0.01
    exponential:F@N     the same over N rounds, however many are played
    step:F@r1,r2        times F from round r1 on, again from r2 on, e.g. step:0.1@20,30
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from flare_dist.errors import unknown_choice
from flare_dist.named import FORM, Options, WrongResultError, bind, call, find, is_own, name_of, options_key

Schedule = Callable[[int, int], float]  # (round, rounds) -> factor on the learning rate, for rounds 1 to rounds
FACTOR = "lr_factor"


def parse_schedule(text: Any, key: str, options: Options | None = None) -> Schedule:
    """Parse the schedule `text` into a function (round, rounds) -> factor, for rounds 1 … rounds.

    Raises ValueError that begins with the dotted `key` if the text is no schedule.

    >>> halved = parse_schedule("step:0.5@2", "clients.lr_schedule")
    >>> [halved(round_, 3) for round_ in (1, 2, 3)]
    [1.0, 0.5, 0.5]
    """
    name, _, arguments = str(text).partition(":")
    if name not in SCHEDULES and is_own(text, SCHEDULES):
        return _users(key, text, bind(key, text, find(key, text, {}), options or {}, ["round", "rounds"]))
    if name not in SCHEDULES:
        raise unknown_choice(key, text, [*SCHEDULES, FORM])
    if options:
        raise ValueError(f"{options_key(key)}.{next(iter(options))}: {name} takes no options; leave it out")
    try:
        return SCHEDULES[name](arguments)
    except ValueError as error:
        raise ValueError(f"{key}: cannot read the schedule, got {text!r}; write {FORMS[name]}") from error


def _users(key: str, name: Any, users: Callable[..., Any]) -> Schedule:
    """Check what the user's schedule returns."""

    def schedule(round_: int, rounds: int) -> float:
        factor = call(key, name, users, round_, rounds)
        if not isinstance(factor, (int, float)) or not 0 <= factor < math.inf:
            raise WrongResultError(
                f"{key}: {name_of(name)} must return a number of at least 0, got {factor!r} in round {round_} of "
                f"{rounds}; for example 1 - (round - 1) / rounds"
            )
        return float(factor)

    return schedule


def check_schedule(text: Any, key: str, options: Options, rounds: int) -> None:
    """Raise ValueError that begins with `key` if the user's schedule fails in a round of the run."""
    if is_own(text, SCHEDULES) and str(text).partition(":")[0] not in SCHEDULES:
        schedule = parse_schedule(text, key, options)
        for round_ in range(1, rounds + 1):
            schedule(round_, rounds)


def remember_factors(optimizer: Optimizer, lr: float) -> None:
    """Note in each group of parameters how many times `lr` its learning rate is, as it stays in all rounds."""
    for group in optimizer.param_groups:
        group[FACTOR] = group.get("lr", lr) / lr


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give each group of parameters the learning rate `lr`, times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(FACTOR, 1)


def _plain(factor: Callable[[float], float]) -> Callable[[str], Callable[[int, int], float]]:
    """Make a schedule without parameters from a function of the progress in [0, 1)."""

    def parse(arguments: str) -> Callable[[int, int], float]:
        if arguments:
            raise ValueError(arguments)
        return lambda round_, rounds: factor((round_ - 1) / rounds)  # 0 in the first round, 1 after the last

    return parse


def _exponential(arguments: str) -> Callable[[int, int], float]:
    final_text, at, length_text = arguments.partition("@")
    final = float(final_text)
    length = int(length_text) if at else None
    if not 0 < final <= 1000 or (length is not None and length < 1):
        raise ValueError(arguments)
    if length is not None:
        return lambda round_, rounds: final ** ((round_ - 1) / length)
    # Reaches `final` in the last round itself, as published schedules from one rate to another do.
    return lambda round_, rounds: final ** ((round_ - 1) / max(1, rounds - 1))


def _step(arguments: str) -> Callable[[int, int], float]:
    factor, _, rounds_text = arguments.partition("@")
    decay = float(factor)
    milestones = [int(milestone) for milestone in rounds_text.split(",")]
    if not 0 <= decay <= 1:
        raise ValueError(arguments)
    return lambda round_, rounds: decay ** sum(round_ >= milestone for milestone in milestones)


SCHEDULES: dict[str, Callable[[str], Callable[[int, int], float]]] = {
    "constant": _plain(lambda progress: 1.0),
    "linear": _plain(lambda progress: 1 - progress),
    "cosine": _plain(lambda progress: (1 + math.cos(math.pi * progress)) / 2),
    "exponential": _exponential,
    "step": _step,
}
FORMS = {  # how each is written
    "constant": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "exponential": "exponential:FINAL or exponential:FINAL@ROUNDS with FINAL in (0, 1000], e.g. exponential:0.01",
    "step": "step:FACTOR@ROUND,ROUND with FACTOR in [0, 1], e.g. step:0.1@20,30",
}

"""A callable is given what its parameters name, and nothing else."""

from __future__ import annotations

import functools
from typing import Any

from flare_dist.signatures import accepted, required_arguments


def test_what_a_parameter_names_is_given() -> None:
    def takes(shape: int, *, vocabulary: int = 0) -> int:
        return vocabulary

    assert accepted(takes, vocabulary=3, task="x") == {"vocabulary": 3}
    assert accepted(functools.partial(takes, 1), vocabulary=3) == {"vocabulary": 3}


def test_others_are_called_as_they_are() -> None:
    def takes(shape: int, **options: Any) -> None: ...

    assert accepted(takes, vocabulary=3) == {}
    assert accepted(type, vocabulary=3) == {}  # of code in C, which has no signature


def test_arguments_with_a_default_are_not_required() -> None:
    def takes(shape: int, count: int = 1, *rest: int, name: str, **options: Any) -> None: ...

    assert required_arguments(takes) == ["shape", "name"]
    assert required_arguments(functools.partial(takes, 1, name="x")) == []
    assert required_arguments(type) == []  # of code in C

"""Names of classes and sites: which may be meant, and how many a message lists."""

from __future__ import annotations

import pytest

from flare_dist.data.names import alike, alike_pairs, near, some


def test_names_are_alike_but_for_case_and_composition() -> None:
    assert alike("Ant", ["ant", "Ant", "ants"]) == ["ant"]
    assert alike("caf\u00e9", ["cafe\u0301", "cafe"]) == ["cafe\u0301"]


def test_pairs_of_alike_names_come_once() -> None:
    assert list(alike_pairs(["ANT", "Ant", "ant", "bee"])) == [("ANT", "Ant"), ("ANT", "ant"), ("Ant", "ant")]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Bee", "; did you mean bee"),
        ("beee", "; did you mean bee"),
        ("cafe\u0301", "; did you mean caf\u00e9 (the same letters, composed otherwise)"),
        ("zebra", ""),
    ],
)
def test_a_hint_names_what_is_near(name: str, hint: str) -> None:
    assert near(name, ["ant", "bee", "caf\u00e9"]) == hint


def test_a_message_lists_five_names() -> None:
    assert some("abcde") == "a, b, c, d, e"
    assert some("abcdef") == "a, b, c, d, e, …"
    assert some([]) == "nothing"

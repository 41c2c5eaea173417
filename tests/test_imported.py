"""The user's modules are found in their order, and what is missing is told with what may be meant."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flare_dist.imported import directory_of, imported, look_in


def test_directories_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, folder in enumerate(("first", "here", "last")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own_of_imported.py").write_text(f"def f():\n    return {number}\n")
    (tmp_path / "last" / "own_beside.py").write_text("def f():\n    return 9\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    look_in([str(tmp_path / "first")], [str(tmp_path / "last")])
    found: Callable[[], int] = imported("a.name", "own_of_imported:f")
    assert found() == 0
    assert imported("a.name", "own_beside:f")() == 9
    assert directory_of("own_of_imported:f") == str(tmp_path / "first")
    assert directory_of("own_beside:f") == str(tmp_path / "last")
    assert directory_of("never_imported:f") is None
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such:f", "there is no module 'no_such' in "),
        ("tests.test_importd:f", "tests has no module 'test_importd'; did you mean tests.test_imported?"),
        ("tests.zzz.more:f", "tests has no module 'zzz'"),
        ("tests.test_imported:test_what", "tests.test_imported has no 'test_what'; did you mean "),
    ],
)
def test_what_is_missing_is_told(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"a.name: cannot import {name!r}: {problem}")):
        imported("a.name", name)

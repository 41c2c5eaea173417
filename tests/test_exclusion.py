"""Rows of exclusions: which apply, and the line that they write."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from flare_dist.exclusion import Exclusion, refuse


def test_rows_about_what_is_not_given_are_passed_over() -> None:
    row = Exclusion(("a.x", "b.y"), "x with y", lambda c: c.a.x and c.b.y, "not so", "do this", ("fact",))
    both = {"a": SimpleNamespace(x=True), "b": SimpleNamespace(y=(1, None))}
    refuse([row], **both)
    refuse([row], a=both["a"], fact=True)
    with pytest.raises(ValueError, match=r"^a\.x: not so, got true with b\.y=\[1, null\]; do this$"):
        refuse([row], **both, fact=False)

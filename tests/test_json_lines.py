"""A log is read past a line that a kill cut short."""

from __future__ import annotations

import pytest

from flare_dist.json_lines import decoded


@pytest.mark.parametrize("line", ['{"round": 6, "test_acc', "", "[1]", "5", "[" * 100_000, '{"round": \ufffd'])
def test_what_is_no_object_is_none(line: str) -> None:
    assert decoded(line) is None
    assert decoded('{"round": 1, "groups": {"a": {"loss": 0.5}}}\n') == {"round": 1, "groups": {"a": {"loss": 0.5}}}

"""A log is read past a line that a kill cut short."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from flare_dist.json_lines import decoded, encoded, with_nan


@pytest.mark.parametrize("line", ['{"round": 6, "test_acc', "", "[1]", "5", "[" * 100_000, '{"round": \ufffd'])
def test_what_is_no_object_is_none(line: str) -> None:
    assert decoded(line) is None
    assert decoded('{"round": 1, "groups": {"a": {"loss": 0.5}}}\n') == {"round": 1, "groups": {"a": {"loss": 0.5}}}


@pytest.mark.parametrize("indent", [None, 1])
def test_what_is_not_finite_is_null_at_every_depth_and_read_as_nan(indent: int | None) -> None:
    row = {"a": math.nan, "groups": {"x": {"auroc": math.inf, "examples": 3}}, "list": [1.5, -math.inf], "name": "n"}
    text = encoded(row, indent)

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    found = json.loads(text, parse_constant=refuse)
    assert found == {"a": None, "groups": {"x": {"auroc": None, "examples": 3}}, "list": [1.5, None], "name": "n"}
    again = with_nan(found)
    assert math.isnan(again["a"])
    assert math.isnan(again["groups"]["x"]["auroc"])
    assert math.isnan(again["list"][1])
    assert encoded({"a": 0.1}) == json.dumps({"a": 0.1})

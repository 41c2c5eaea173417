"""Payloads: positions travel as int32."""

from __future__ import annotations

import pytest

from flare_dist.compression.payload import MOST_ENTRIES, check_positions


def test_positions_that_int32_cannot_hold_are_refused_by_name() -> None:
    check_positions(MOST_ENTRIES, "one vector")
    with pytest.raises(ValueError, match=r"^compression\.sparsifier: .*, got 2,147,483,648 in one vector; use dense"):
        check_positions(MOST_ENTRIES + 1, "one vector")

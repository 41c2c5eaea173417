"""Keys that change nothing unless others are set: the patterns in the table name keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flare_dist.cautions import NEEDS
from flare_dist.config.load import config_parser

KEYS = set(config_parser().hints)


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.pattern)
def test_keys_that_need_others_exist(need: Any) -> None:
    assert any(Path(key).match(need.pattern) for key in KEYS)

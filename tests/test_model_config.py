"""Settings of the model."""

from __future__ import annotations

import pytest

from flare_dist.models.config import ModelConfig


def test_norms_are_kept_unless_asked_otherwise() -> None:
    assert ModelConfig().norm == "keep"
    assert ModelConfig(norm="batch") == ModelConfig()


def test_unknown_norms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.norm: unknown choice, got 'layer'; choose from keep, group$"):
        ModelConfig(norm="layer")

"""Dense models, in place of the masks of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class NoMasks:
    """Nothing to begin, to save or to export."""

    have_begun = True

    def by_name(self) -> dict[str, Tensor]:
        """Return no masks."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing to save."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Ignore the masks of a sparse run that a dense one goes on from."""

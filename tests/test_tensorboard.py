"""The event file of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from flare_dist.records.tensorboard import EventWriter
from tests.helpers.disks import no_file_longer_than


def test_an_event_file_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    events = EventWriter(tmp_path)
    for step in range(100):
        events.add_scalar("loss/train", 1.0, step, 0.0)
    for end in (events.flush, events.close):
        with no_file_longer_than(100), pytest.raises(OSError, match="File too large"):
            end()

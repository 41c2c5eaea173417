"""The table that a run ends with."""

from __future__ import annotations

import io

from rich.console import Console

from flare_dist.records.summary import summary_table


def test_bytes_of_buffers_count_in_the_table() -> None:
    summary = dict.fromkeys(("test_accuracy", "best_accuracy", "seconds", "rounds"), 1)
    summary |= {"uplink_bytes": 10**9, "buffer_bytes": 4 * 10**7, "dense_bytes": 8 * 10**9, "downlink_bytes": 10**12}
    console = Console(file=io.StringIO(), width=200)
    console.print(summary_table(summary))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("1,040,000,000 (1.04 GB)", "40,000,000 (40 MB)", "7.7 x", "(1 TB)"):
        assert words in shown


def test_the_summary_of_a_run_that_sent_nothing_says_so() -> None:
    summary = dict.fromkeys(("test_accuracy", "best_accuracy", "seconds"), 0.5) | dict.fromkeys(
        ("uplink_bytes", "dense_bytes", "downlink_bytes", "rounds"), 0
    )
    console = Console(file=io.StringIO())
    console.print(summary_table(summary))
    assert "nothing was sent" in console.file.getvalue()  # type: ignore[attr-defined]

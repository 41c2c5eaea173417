"""Long work shows a bar on a terminal and lines elsewhere, and nothing if it is short or quiet."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flare_dist import progress
from flare_dist.progress import Steps, shown_on


def terminal(quiet: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, quiet=quiet)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def work(console: Console | None, at_once: bool = True) -> None:
    with shown_on(console), Steps("decoding", 4, at_once=at_once) as steps:
        for _ in range(3):
            steps.advance(1, 1_000_000)


def test_a_terminal_has_a_bar_with_steps_bytes_and_eta() -> None:
    console = terminal()
    work(console)
    said = shown(console)
    for words in ("decoding", "3/4", "3 MB", "ETA"):
        assert words in said


def test_short_work_and_quiet_work_show_nothing() -> None:
    for console in (terminal(), terminal(quiet=True)):
        work(console, at_once=console.quiet)
        assert shown(console) == ""
    work(None)  # as from Python


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 3), (60.0, 0)])
def test_without_a_terminal_there_are_lines_that_are_far_apart(
    seconds: float, lines: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", seconds)
    console = Console(file=io.StringIO())
    with caplog.at_level("INFO", logger="flare_dist"):
        work(console)
        assert len(caplog.messages) == lines
        assert not lines or caplog.messages[-1].startswith("decoding 3/4  3 MB  ETA ")
        caplog.clear()
        with Steps("runs", 2, console, has_lines=False) as steps:
            steps.advance()
        assert not caplog.messages
    assert shown(console) == ""


def test_a_console_that_is_given_wins() -> None:
    own = terminal()
    with shown_on(terminal(quiet=True)), Steps("stage 1", 2, own, at_once=True) as steps:
        steps.advance()
    assert "stage 1" in shown(own)

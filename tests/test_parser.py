"""A command that is mistyped is refused in one line, which suggests what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from flare_dist import cli


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that is refused, and return its one line."""
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["partition", "--clients.l", "1"],
            "--clients.l: there is no such option; did you mean --clients.l",
        ),
        (["compare", "--lr", "1"], "--lr: there is no such option; did you mean --clients.lr or --server.lr?"),
        (["bandwidth", "run", "--out", "x"], "--out: there is no such option; did you mean --output_dir?"),
        (["bandwidth", "run", "--ranks", "x"], "--ranks: expected a whole number, got x"),
        (["train", "--conf", "my.yaml"], "--conf: there is no such option; did you mean --config?"),
        (["train", "--config", "{tmp}"], "config: {tmp}: is a directory"),
        (["sweep", "--config", "{tmp}/none.yaml"], "config: {tmp}/none.yaml: there is no such file"),
        (["evaluate", "~/none"], "{tmp}/none/config.yaml does not exist"),
        (["partition", "--output_dir", "{tmp}/my.yaml/x"], "output_dir: cannot write to {tmp}/my.yaml/x"),
        (["partition", "--config", "{tmp}/my.yaml"], "clients.num: {tmp}/my.yaml:1: must be in"),
        (
            ["sweep", "--config", "{tmp}/my.yaml", "--grid", "clients.num=-1"],
            "clients.num: out of range, got -1; choose at least 1",
        ),
    ],
)
def test_commands_refuse_in_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("clients: {num: 5000}\n")
    message = failed(capsys, *[argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    assert said.replace("{tmp}", str(tmp_path)) in message

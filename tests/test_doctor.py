"""flare-dist doctor reports versions and settings without secrets, and its checks name what is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from flare_dist import cli
from flare_dist.cli import doctor
from flare_dist.comm.launch import Launch
from flare_dist.comm.probe import _exchange
from flare_dist.comm.world import World
from tests.ranks import run_ranks


def test_the_report_leaves_out_tokens_and_all_checks_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    monkeypatch.setenv("SLURM_JWT", "secret")
    assert cli.main(["doctor", "--output_dir", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr().out
    known = ("torch  ", "flare_dist  ", "numpy  ", "cpu capability", "eth7", " bytes are free", "flock")
    for expected in known:
        assert expected in output
    assert "exchange on cpu          ok: gloo between two processes of this machine" in output
    assert output.splitlines()[-1] == "all checks passed"
    assert "secret" not in output
    assert not list(tmp_path.iterdir())


def test_failed_checks_are_named_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(kind: str, seconds: float) -> str:
        raise TimeoutError

    monkeypatch.setattr(doctor, "try_two", hang)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor", "--output_dir", str(tmp_path / "file" / "run"), "--timeout_seconds", "3"])
    assert stopped.value.code == 1
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith(f"FAILED disk: output_dir: cannot write to {tmp_path / 'file' / 'run'}")
    assert second == "FAILED exchange on cpu: no answer within 3 s"


def exchange_of_a_launch(world: World) -> str:
    """Run the check of a launched rank in the process group that the test's rank already has; returns its result."""

    def exchange(launch: Launch, kind: str, seconds: float) -> str:
        _exchange(world)
        return world.backend

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "try_all", exchange)
        return doctor._exchange(Launch(world.rank, world.size), "cpu", 30.0)


def test_a_launch_checks_its_own_ranks() -> None:
    assert run_ranks(exchange_of_a_launch, 3) == ["gloo between the 3 ranks of this launch"] * 3

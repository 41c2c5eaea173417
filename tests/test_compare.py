"""`flare-dist compare` trains techniques with the same settings and sets them side by side."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from flare_dist.cli import main
from flare_dist.config.load import load_config
from tests.helpers.extras import needs
from tests.helpers.published import ROOT


@pytest.mark.usefixtures("forked_runs")
@needs("plots")
def test_each_technique_is_trained_with_the_same_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "--config", str(ROOT / "configs" / "quickstart_gradient.yaml"), "--rounds", "2"]
    command += ["--output_dir", str(tmp_path / "out"), "--ranks", "2"]
    command += ["--techniques", "full_precision,fp16,topk", "--link", "100Mbps/shared", "--target", "0.2"]
    command += ["--x", "projected:100Mbps", "--latex"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    for word in ("full_precision", "fp16", "topk", "bytes up", "seconds computing", "100Mbps/shared"):
        assert word in shown
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = {row["technique"]: row for row in csv.DictReader(file)}
    sent = {name: float(row["uplink_bytes"]) for name, row in rows.items()}
    assert sent["full_precision"] == 2 * sent["fp16"]
    assert sent["topk"] < sent["fp16"] / 20
    runs = {name: load_config(Path(row["directory"]) / "config.yaml") for name, row in rows.items()}
    same = {(r.clients, r.data, r.model, r.engine, r.eval_every, r.rounds, r.seed) for r in runs.values()}
    assert len(same) == 1
    names = ("bandwidth.csv", "report.html", "means.csv", "means.tex", "accuracy_against_projected_100Mbps.png")
    assert all((tmp_path / "out" / name).exists() for name in names)
    for name, column in (("means.csv", "setting"), ("bandwidth.csv", "run")):
        with (tmp_path / "out" / name).open() as file:
            assert [row[column] for row in csv.DictReader(file)] == ["full_precision", "fp16", "topk"]
    assert main(command) == 0  # finished runs are not repeated


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--techniques", "topk,zip"], "--techniques: unknown choice, got 'zip'; choose from full_precision, fp16,"),
        (["--techniques", "topk,topk"], "--techniques: the same technique twice"),
        (["--mode", "federated"], "mode: compare needs mode=gradient, got federated"),
        (["--techniques", "topk,fp16_training"], "engine.mixed_precision: fp16 needs a GPU"),
        (
            ["--tune", "compression.value_codec=fp16,int8"],
            "--tune: compression.value_codec tells techniques apart, so it cannot be tuned",
        ),
        (["--techniques", "fp16,topk", "--tune", "clients.lr=0.1,-1"], "clients.lr: out of range, got -1"),
        (["--target", "2"], "--target: out of range for accuracy, got 2.0; choose a number in (0, 1]"),
        (
            ["--gradients.hook", "fp32"],
            "gradients.hook: unknown choice, got 'fp32'; choose from sparse, fp16, bf16, powersgd",
        ),
        (["--format", "jpg"], "--format: unknown choice, got 'jpg'; choose from png, svg, pdf"),
        (["--x", "bytes"], "--x: unknown choice, got 'bytes'; choose from uplink, total, rounds"),
        (["--gradients.powersgd_rank", "0"], "gradients.powersgd_rank: out of range, got 0; choose at least 1"),
        (["--gradients.powersgd_start", "1"], "gradients.powersgd_start: out of range, got 1; choose at least 2"),
        (
            ["--engine.name", "deepspeed", "--techniques", "fp16"],
            "gradients.hook: needs engine.name=accelerate, whose DDP has it, got fp16 with engine.name=deepspeed",
        ),
    ],
)
def test_settings_that_cannot_be_compared_are_refused_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--config", str(ROOT / "configs" / "quickstart_gradient.yaml")]
    assert main([*command, "--output_dir", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("forked_runs")
def test_a_comparison_in_which_every_technique_diverges_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--config", str(ROOT / "configs" / "quickstart_gradient.yaml"), "--rounds", "2"]
    command += ["--output_dir", str(tmp_path / "out"), "--ranks", "1", "--techniques", "full_precision,topk"]
    command += ["--clients.momentum", "0", "--tune", "clients.lr=1e30"]
    assert main(command) == 1
    assert "compare: every technique diverged" in " ".join(capsys.readouterr().err.split())

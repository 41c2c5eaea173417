"""Wrong input on the command line is refused in one line that names the key, before any process group starts."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

from flare_dist import cli
from flare_dist.run import trainer
from tests.helpers.extras import needs


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    output = capsys.readouterr()
    return status, output.out, output.err


SMOKE = ("train", "--config", "configs/smoke.yaml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clients.lrr", "1"], "--clients.lrr"),
        (["--compression.density", "0"], "compression.density: out of range, got 0.0; choose a number in (0, 1]"),
        (["--compression.density", "1.5"], "compression.density: out of range, got 1.5; choose a number in (0, 1]"),
        (["--compression.density", "few"], "compression.density"),
        (
            ["--clients.per_round", "9"],
            "clients.per_round: more clients per round than there are, got 9 with clients.num=4;",
        ),
        (["--clients.num", "241"], "clients.num: "),
        (["--data.name", "mnist", "--data.root", "{tmp}"], "data.download=true"),
        (["--data.name", "image_folder", "--data.root", "{tmp}"], "data.root: "),
        (["--output_dir", "{tmp}/file/run"], "output_dir: cannot write to "),
        (["--checkpoint.resume", "{tmp}"], "checkpoint.resume: {tmp} holds no complete checkpoint"),
        (["--model.name", "transformer"], "model.name: unknown choice, got 'transformer'"),
        (["--model.name", "torchvision:nothing"], "model.name: torchvision has no classifier 'nothing'"),
        (["--model.name", "torchvision:resnet81"], "no classifier 'resnet81'; did you mean resnet18 or "),
        (["--model.name", "torchvision:resnet18"], "it takes images of 3 channels, got inputs of"),
        (["--model.name", "no_such_package:net"], "start the command where it lies, or install it"),
        (["--clients.objective", "flare", "--compression.error_feedback", "none"], "clients.objective: flare pulls"),
        (
            ["--clients.flare.percentile", "100"],
            "clients.flare.percentile: out of range, got 100.0; choose a number in [0, 100)",
        ),
        (["--clients.flare.decay", "0.9"], "clients.flare.decay: out of range, got 0.9; choose at least 1"),
        (["--clients.flare.tau", "-1"], "clients.flare.tau: out of range, got -1"),
        (
            ["--clients.objective", "flare", "--clients.flare.exclude", "[emb.*]"],
            "clients.flare.exclude: 'emb.*' matches",
        ),
        (["--server.optimizer", "magic"], "server.optimizer: unknown choice, got 'magic'"),
        (["--mode", "gossip"], "mode: unknown choice, got 'gossip'; choose from federated, gradient, centralised"),
        (["--rounds", "0"], "rounds: out of range, got 0; choose at least 1"),
        (["--checkpoint.keep", "1"], "checkpoint.keep: out of range, got 1; choose at least 2"),
        (
            ["--clients.lr_schedule", "step:x"],
            "clients.lr_schedule: cannot read the schedule, got 'step:x'; write step",
        ),
        (["--config", "{tmp}/nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_wrong_input_is_one_line_naming_the_key(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_process_group(*arguments: object, **settings: object) -> None:
        raise AssertionError("a process group was started")

    monkeypatch.setattr(trainer, "open_world", no_process_group)
    (tmp_path / "file").touch()
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    directory = [] if "--output_dir" in arguments else ["--output_dir", str(tmp_path / "out")]
    status, _, error = run(capsys, *SMOKE, *directory, *arguments)
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said.replace("{tmp}", str(tmp_path)) in error
    assert not (tmp_path / "out").exists()


def test_unknown_key_in_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("clients: {learning_rate: 1}\n")
    status, _, error = run(capsys, "train", "--config", str(path))
    assert status == 2
    assert "clients.learning_rate" in error


def test_help_describes_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for described in ("--compression.density", "smaller = more compression", "--clients.per_round", "drawn afresh"):
        assert described in text


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_help_names_types_without_their_python_repr(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert "<function" not in text
    assert "<class '" not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "error: a command is missing; flare-dist --help lists them\n"),
        (["trian"], "error: trian: there is no such command; did you mean train?\n"),
        (["xyz"], "error: xyz: there is no such command; choose from "),
    ],
)
def test_an_unknown_command_is_refused_with_suggestions(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = run(capsys, *arguments)
    assert status == 2
    assert error.startswith(said)


def test_a_file_is_not_blamed_for_a_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "mine.yaml"
    settings.write_text(f"engine: {{name: deepspeed}}\noutput_dir: {tmp_path}/run\ndata: {{name: mnist}}\n")
    status, _, error = run(capsys, "train", "--config", str(settings), "--data.root", str(tmp_path))
    assert status == 2
    assert "data.root" in error
    assert "configured by" not in error  # the command line has said it
    status, _, error = run(capsys, "train", "--config", str(settings))
    assert error.startswith("error: data.root: ")
    assert error.endswith(f"(configured by {settings}, which leaves this key at its default)\n")


def test_diverged_training_ends_with_the_round_and_the_clients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = run(
        capsys, *SMOKE, "--output_dir", str(tmp_path), "--clients.lr", "1e37", "--engine.threads", "1"
    )
    assert status == 1
    assert "error: diverged: round 1: the losses or deltas of all clients (" in error


@needs("plots")
def test_train_evaluate_and_partition_print_their_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, error = run(capsys, *SMOKE, "--output_dir", str(tmp_path), "--engine.threads", "1")
    assert status == 0, error
    assert "compression against dense" in output
    assert f"run directory: {tmp_path}" in output
    status, output, _ = run(capsys, "evaluate", str(tmp_path))
    assert status == 0
    assert output.startswith("test accuracy 0.")
    status, output, _ = run(capsys, "partition", "--config", "configs/smoke.yaml", "--output_dir", str(tmp_path))
    assert status == 0
    first = next(line for line in output.splitlines() if line.startswith("│ 0"))
    assert first.split()[-2] == "60"  # 240 examples over 4 clients
    assert (tmp_path / "partition.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "partition.csv").read_text().startswith("client,group,examples,0,1,")


def test_the_compression_shown_counts_batchnorm_bytes_on_both_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model.name", "resnet8", "--model.norm", "batch", "--compression.density", "0.01", "--rounds", "1"]
    status, output, error = run(capsys, *SMOKE, *model, "--output_dir", str(tmp_path), "--engine.threads", "1")
    assert status == 0, error
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    up, dense, buffers = row["uplink_bytes"], row["dense_bytes"], row["buffer_bytes"]
    assert buffers > 0.1 * up
    expected = f"{(dense + buffers) / (up + buffers):.1f} x"
    assert expected != f"{dense / up:.1f} x"
    assert expected in output
    assert f"{up + buffers:,} (" in output
    status, output, error = run(capsys, "bandwidth", str(tmp_path), "--output_dir", str(tmp_path / "report"))
    assert status == 0, error
    assert expected in output


def test_evaluate_of_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = run(capsys, "evaluate", str(tmp_path))
    assert status == 2
    assert "config.yaml does not exist" in error


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.usefixtures("forked_runs")
@needs("plots")
def test_sweep_trains_and_prints_where_the_results_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ("sweep", "--config", "configs/smoke.yaml", "--output_dir", str(tmp_path))
    status, output, _ = run(capsys, *sweep, "--grid", "clients.objective=none,flare", "--clients.lr", "0.1")
    assert status == 0
    assert "objective=flare" in output
    assert f"results: {tmp_path / 'results.csv'}" in output
    assert (tmp_path / "accuracy_against_uplink.png").read_bytes().startswith(b"\x89PNG")
    assert "lr: 0.1" in (tmp_path / "base.yaml").read_text()
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3


def test_without_matplotlib_tables_are_still_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command, words in (("sweep", "results: "), ("partition", "examples")):
        status, output, _ = run(capsys, command, "--config", "configs/smoke.yaml", "--output_dir", str(tmp_path))
        assert status == 0
        assert words in output
        assert "no plot: plots need matplotlib: pip install 'flare_dist[plots]'" in output
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--grid", "clients.lrr=1"), "clients.lrr"),
        (("--grid", "clients.lr=-1"), "clients.lr: out of range, got -1"),
        (("--grid", "lr"), "--grid: expected each KEY=VALUE"),
        (("--seeds", "a"), "--seeds: needs whole numbers"),
    ],
)
def test_a_wrong_sweep_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str], message: str
) -> None:
    status, _, errors = run(
        capsys, "sweep", "--config", "configs/smoke.yaml", "--output_dir", str(tmp_path / "x"), *arguments
    )
    assert status == 2
    assert message in errors
    assert not (tmp_path / "x").exists()


def test_a_rank_leaves_it_to_rank_0_to_report_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    waited: list[float] = []
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    status, _, error = run(capsys, *SMOKE, "--compression.density", "2")
    assert status == 2
    assert waited == [cli.SECONDS_FOR_RANK_0]
    assert error.startswith("error: rank 1: compression.density: ")
    monkeypatch.setenv(cli.ERRORS, str(tmp_path / "errors"))
    status, _, error = run(capsys, *SMOKE, "--compression.density", "2")
    assert (status, error) == (2, "")
    assert (tmp_path / "errors").read_text().startswith("error: compression.density: ")


@pytest.mark.parametrize(("rank", "options", "shown"), [("0", [], 1), ("1", [], 0), ("1", ["default"], 1)])
def test_rank_0_alone_shows_warnings_of_libraries_unless_python_is_asked_for_them(
    rank: str, options: list[str], shown: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "warnoptions", options)
    monkeypatch.setattr(cli.time, "sleep", lambda seconds: None)
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("default")
        run(capsys, *SMOKE, "--compression.density", "2")
        warnings.warn("a library's", UserWarning, stacklevel=1)
    assert len([warning for warning in met if str(warning.message) == "a library's"]) == shown


def test_a_run_may_be_quiet_and_log_otherwise_when_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (*SMOKE, "--output_dir", str(tmp_path), "--engine.threads", "1")
    status, _, error = run(capsys, *command)
    assert status == 0
    assert "round 1/" in error
    (tmp_path / "summary.json").unlink()
    status, output, error = run(capsys, *command, "--log_every", "2", "--quiet")
    assert (status, error) == (0, "")
    assert "test accuracy" in output
    assert run(capsys, *command, "--log_every", "-1")[0] == 2

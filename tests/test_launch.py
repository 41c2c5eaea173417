"""Runs of two ranks under torchrun write what they promise, and survive kills, hangs and interrupts."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.forked import running, running_ranks
from tests.helpers.launching import ENVIRONMENT, finished, launched, noted_ranks, torchrun, training

pytestmark = pytest.mark.usefixtures("nothing_left_running")


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def has_checkpoint(directory: Path) -> bool:
    return bool(list(directory.glob("checkpoints/*/manifest.json")))


def two_train(directory: Path) -> bool:
    return has_checkpoint(directory) and len(running_ranks(noted_ranks(directory))) == 2


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("smoke")
    return directory, finished(launched(training(directory), ENVIRONMENT), 120)  # of fresh interpreters


def test_the_summary_is_printed_once(smoke: tuple[Path, str]) -> None:
    directory, output = smoke
    assert output.count("compression against dense") == 1
    assert output.count(f"run directory: {directory}") == 1


def test_tensorboard_has_the_values_of_metrics(smoke: tuple[Path, str]) -> None:
    directory, _ = smoke
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(directory)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"accuracy/test", "loss/test", "loss/train", "bytes/uplink", "bytes/wire", "seconds/round"} <= tags
    for tag, key in (
        ("accuracy/test", "test_accuracy"),
        ("bytes/uplink", "uplink_bytes"),
        ("loss/train", "train_loss"),
    ):
        expected = {row["round"]: row[key] for row in rows if key in row}
        read = {event.step: event.value for event in events.Scalars(tag)}
        assert read == pytest.approx(expected)
        assert len(events.Scalars(tag)) == len(expected) > 0


def test_every_row_of_metrics_has_its_keys(smoke: tuple[Path, str]) -> None:
    rows = [json.loads(line) for line in (smoke[0] / "metrics.jsonl").read_text().splitlines()]
    keys = {"round", "test_loss", "test_accuracy", "train_loss", "clients", "rejected_clients", "kept", "total"}
    keys |= {f"{name}_bytes" for name in ("uplink", "downlink", "buffer", "dense", "wire")}
    keys |= {f"{name}_seconds" for name in ("round", "compute", "select", "communication", "waiting")}
    assert keys <= set(rows[-1])
    assert rows[0]["round"] == 0
    assert 0 <= rows[-1]["test_accuracy"] <= 1
    last = rows[-1]
    assert last["round_seconds"] >= max(last["compute_seconds"], last["communication_seconds"])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_ends_at_once_and_continues_bitwise(
    smoke: tuple[Path, str], tmp_path: Path, how: signal.Signals
) -> None:
    long = ("--rounds", "2000", "--eval_every", "100")
    process = torchrun(tmp_path, *long)
    wait_until(lambda: two_train(tmp_path))
    ranks = running_ranks(noted_ranks(tmp_path))
    if how is signal.SIGKILL:
        os.kill(ranks[1], how)
    else:
        os.killpg(process.pid, how)  # Ctrl-C in a terminal goes to the whole foreground group
    _, error = process.communicate(timeout=30)  # half the time after which a rank counts as hung
    assert process.returncode != 0
    if how is signal.SIGKILL:
        assert f"(pid: {ranks[1]})" in error
        assert re.search(r"exitcode *: -9", error)  # in the first line, or in the table if both ended between two looks
    wait_until(lambda: not any(running(pid) for pid in ranks.values()), 5)

    if how is signal.SIGKILL:
        return  # torchrun itself continues such runs: see below

    reached = max(int(path.parent.name[-8:]) for path in tmp_path.glob("checkpoints/*/manifest.json"))
    more = ("--rounds", str(reached + 5), "--eval_every", "100")
    continued = torchrun(tmp_path / "more", *more, "--checkpoint.resume", str(tmp_path))
    straight = torchrun(tmp_path / "straight", *more)
    for run in (continued, straight):
        finished(run)
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("more", "straight")]
    assert models[0] == models[1]


def test_a_rank_that_hangs_is_named_and_ends_the_run(tmp_path: Path) -> None:
    process = torchrun(tmp_path, "--rounds", "2000", "--eval_every", "100", "--engine.timeout_seconds", "8")
    wait_until(lambda: two_train(tmp_path))
    ranks = running_ranks(noted_ranks(tmp_path))
    os.kill(ranks[1], signal.SIGSTOP)
    wait_until(lambda: not running(ranks[0]))
    os.kill(ranks[1], signal.SIGKILL)  # as torchrun does after 30 seconds
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "error: rank 1 has not answered rank 0 for 8 s" in error


def test_a_restarted_run_continues_from_its_checkpoint(smoke: tuple[Path, str], tmp_path: Path) -> None:
    """torchrun starts all ranks anew; the final model is that of an undisturbed run."""
    length = ("--rounds", "60", "--checkpoint.every", "2", "--eval_every", "100")
    process = torchrun(tmp_path / "killed", *length, options=("--max-restarts", "1"))
    noted = noted_ranks(tmp_path / "killed")
    wait_until(lambda: two_train(tmp_path / "killed"))
    first = running_ranks(noted)
    os.kill(first[1], signal.SIGKILL)
    wait_until(lambda: len({*running_ranks(noted).values()} - {*first.values()}) == 2)
    straight = torchrun(tmp_path / "straight", *length)
    for run in (process, straight):
        finished(run)
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "straight")]
    assert models[0] == models[1]
    rows = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(61))


def test_wrong_input_ends_every_rank_with_one_line(tmp_path: Path) -> None:
    process = torchrun(tmp_path / "out", "--compression.density", "2")
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert error.count("compression.density: out of range, got 2.0; choose a number in (0, 1]") == 1

"""The real thing: torchrun, two ranks, a run directory and its TensorBoard file; kills and interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


RUNNING: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """A test that fails leaves no launcher behind; those of a module's fixtures have ended by then."""
    yield
    for process in RUNNING:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    RUNNING.clear()


def launched(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    """A launcher in a session of its own, as from a terminal."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    RUNNING.append(process)
    return process


def torchrun(
    directory: Path, *arguments: str, options: tuple[str, ...] = (), config: str = "configs/smoke.yaml"
) -> subprocess.Popen[str]:
    """A small configuration on two ranks, in a session of its own as from a terminal."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *options]
    command += ["-m", "flare_dist", "train", "--config", config, "--output_dir", str(directory)]
    return launched([*command, *arguments], ENVIRONMENT)


def finished(process: subprocess.Popen[str], seconds: float = 240) -> str:
    """The output of a launcher that ends well and without a warning of Python's."""
    output, error = process.communicate(timeout=seconds)
    assert process.returncode == 0, error
    assert "Warning: " not in error, error
    return output


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def children(process: subprocess.Popen[str]) -> list[int]:
    """The ranks of a torchrun process."""
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in listed.split()]


def has_checkpoint(directory: Path) -> bool:
    return bool(list(directory.glob("checkpoints/*/manifest.json")))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("smoke")
    return directory, finished(torchrun(directory), 120)


def test_summary_is_printed_once(smoke: tuple[Path, str]) -> None:
    directory, output = smoke
    assert output.count("compression against dense") == 1
    assert output.count(f"run directory: {directory}") == 1


def test_tensorboard_carries_what_metrics_do(smoke: tuple[Path, str]) -> None:
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


def test_keys_of_metrics(smoke: tuple[Path, str]) -> None:
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
def test_interrupted_run_ends_at_once_and_continues_bitwise(
    smoke: tuple[Path, str], tmp_path: Path, how: signal.Signals
) -> None:
    long = ("--rounds", "2000", "--eval_every", "100")
    process = torchrun(tmp_path, *long)
    wait_until(lambda: has_checkpoint(tmp_path) and len(children(process)) == 2)
    ranks = children(process)
    if how is signal.SIGKILL:
        os.kill(ranks[1], how)
    else:
        os.killpg(process.pid, how)  # Ctrl-C in a terminal goes to the whole foreground group
    _, error = process.communicate(timeout=30)  # half the time after which a rank counts as hung
    assert process.returncode != 0
    if how is signal.SIGKILL:
        assert f"(pid: {ranks[1]})" in error
        assert "exitcode: -9" in error
    wait_until(lambda: not any(running(pid) for pid in ranks), 5)

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
    wait_until(lambda: has_checkpoint(tmp_path) and len(children(process)) == 2)
    ranks = children(process)
    environments = {pid: Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in ranks}
    (stopped,) = (pid for pid, environment in environments.items() if b"RANK=1" in environment)
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: not all(running(pid) for pid in ranks if pid != stopped))
    os.kill(stopped, signal.SIGKILL)  # as torchrun does after 30 seconds
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "error: rank 1 has not answered rank 0 for 8 s" in error


def test_a_restarted_run_goes_on_from_its_checkpoint(smoke: tuple[Path, str], tmp_path: Path) -> None:
    """torchrun starts all ranks anew; the end is that of an undisturbed run."""
    length = ("--rounds", "60", "--checkpoint.every", "2", "--eval_every", "100")
    process = torchrun(tmp_path / "killed", *length, options=("--max-restarts", "1"))
    wait_until(lambda: has_checkpoint(tmp_path / "killed") and len(children(process)) == 2)
    first = set(children(process))
    os.kill(max(first), signal.SIGKILL)
    wait_until(lambda: len(children(process)) == 2 and not first & set(children(process)))
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
    assert error.count("compression.density: the fraction kept must be in (0, 1], got 2.0") == 1

"""A rank that fails ends the job within ten seconds, with its traceback, under every launcher."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flare_dist.comm.leave import destroy_or_leave, leave, run_and_leave
from tests.helpers.failing import HOW, NOTES
from tests.helpers.forked import Forked, running
from tests.helpers.launching import ENVIRONMENT, forked, launched, torchrun

pytestmark = pytest.mark.usefixtures("nothing_left_running")

MODEL = ("--model.name", "tests.helpers.failing:model", "--rounds", "50", "--eval_every", "1000")
STEPS = ("--mode", "gradient", "--eval_every", "5")
OTHERS = {"accelerate": STEPS, "deepspeed": (*STEPS, "--engine.name", "deepspeed")}


def all_ranks_ended(notes: Path) -> float:
    """Wait until no rank is left of those that began; returns when."""
    end = time.monotonic() + 200
    while not (notes / "failed").exists() or any(running(int(path.read_text())) for path in notes.glob("pid-*")):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    assert len(list(notes.glob("pid-*"))) == 2
    return time.time()


def ended_with_its_traceback(process: subprocess.Popen[str] | Forked, notes: Path) -> str:
    """Check that the job ends soon after the failure that rank 1 has noted, and says where it was; returns it all."""
    ended = all_ranks_ended(notes)
    output, error = process.communicate(timeout=200)  # DeepSpeed's launcher takes its time to end on a busy machine
    assert process.returncode != 0
    assert "LookupError: rank 1 came to nothing" in output + error
    assert "in forward" in output + error  # where it was
    assert re.search(
        r"^error: rank 1 has failed: .*LookupError: rank 1 came", output + error, re.MULTILINE
    )  # says rank 0
    assert ended - float((notes / "failed").read_text()) < 10
    return output + error


def test_a_rank_that_raises_ends_a_job_of_torchrun_within_ten_seconds(tmp_path: Path) -> None:
    environment = {NOTES: str(tmp_path), HOW: "raise"}
    said = ended_with_its_traceback(torchrun(tmp_path / "run", *MODEL, environment=environment), tmp_path)
    assert "2 ranks on cpu with 1 thread each, over gloo" in said


def test_a_rank_that_raises_ends_a_script_of_one_s_own_within_ten_seconds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = ENVIRONMENT | {NOTES: str(tmp_path), HOW: "raise"}
    script = ["tests/scripts/train_failing.py", str(tmp_path / "run")]
    process = launched([*command, *script], environment)  # a fresh interpreter, whose end is what matters
    ended_with_its_traceback(process, tmp_path)


@pytest.mark.parametrize("launcher", list(OTHERS))
def test_a_rank_that_raises_ends_the_jobs_of_other_launchers_within_ten_seconds(launcher: str, tmp_path: Path) -> None:
    environment = {NOTES: str(tmp_path), HOW: "raise"}
    arguments = ["--config", "configs/smoke.yaml", *MODEL, *OTHERS[launcher], "--output_dir", str(tmp_path / "run")]
    ended_with_its_traceback(forked(launcher, *arguments, environment=environment), tmp_path)


def test_out_of_memory_in_a_step_is_named_on_all_ranks(tmp_path: Path) -> None:
    process = torchrun(tmp_path / "run", *MODEL, environment={NOTES: str(tmp_path), HOW: "exhaust"})
    _, error = process.communicate(timeout=200)
    assert process.returncode != 0
    problem = r"clients\.batch_size: out of memory in round \d+ on rank 1 \(cpu: .*\), got 16; lower it, or raise "
    assert re.search(rf"^\S*OutOfMemoryError: {problem}", error, re.MULTILINE)  # below the traceback of rank 1
    assert re.search(rf"^error: rank 1 has failed: OutOfMemoryError: {problem}", error, re.MULTILINE)  # said by rank 0
    assert "in _exhaust" in error


@pytest.mark.parametrize("mode", [(), STEPS], ids=["rounds", "steps"])
def test_a_rank_whose_steps_stop_is_named_and_shows_where_it_stands(mode: tuple[str, ...], tmp_path: Path) -> None:
    limit = ("--engine.step_timeout_seconds", "4")
    process = torchrun(tmp_path / "run", *MODEL, *limit, *mode, environment={NOTES: str(tmp_path), HOW: "stop"})
    ended = all_ranks_ended(tmp_path)
    _, error = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "error: rank 1 has not advanced for 4 s (engine.step_timeout_seconds), and the others wait for it" in error
    assert "rank 0 has not advanced" not in error
    assert ended - float((tmp_path / "failed").read_text()) < 4 + 10


def leave_with_a_worker(directory: Path) -> None:
    worker = multiprocessing.Process(target=time.sleep, args=(60,), daemon=True)
    worker.start()
    (directory / "worker").write_text(str(worker.pid))
    sys.stdout.write("said before")
    leave(3)


def test_who_leaves_ends_its_workers_and_says_all_it_had_to_say(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    process = multiprocessing.get_context("fork").Process(target=leave_with_a_worker, args=(tmp_path,))
    process.start()
    process.join(30)
    assert process.exitcode == 3
    end = time.monotonic() + 5
    while running(int((tmp_path / "worker").read_text())) and time.monotonic() < end:
        time.sleep(0.01)
    assert not running(int((tmp_path / "worker").read_text()))
    assert "said before" in capfd.readouterr().out


def leave_a_group_over() -> None:
    destroy_or_leave(lambda: time.sleep(600))


def test_a_program_that_is_not_ours_ends_though_its_group_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flare_dist.comm.leave.SECONDS_TO_DESTROY", 0.5)
    process = multiprocessing.get_context("fork").Process(target=leave_a_group_over)
    start = time.monotonic()
    process.start()
    process.join(30)
    assert process.exitcode == 1
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [(SystemExit(4), 4, ""), (SystemExit("no"), 1, ""), (LookupError("lost"), 1, "LookupError: lost"), (5, 5, "")],
)
def test_a_failure_leaves_only_if_there_is_a_group(
    end: BaseException | int,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left: list[int] = []
    monkeypatch.setattr("flare_dist.comm.leave.leave", left.append)

    def run() -> int:
        if isinstance(end, int):
            return end
        raise end

    run_and_leave(run, 1, lambda: True)
    assert left == [status]
    assert said in capsys.readouterr().err
    with contextlib.nullcontext() if isinstance(end, int) else pytest.raises(type(end)):
        assert run_and_leave(run, 1, lambda: False) == end
    assert left == [status]

"""Every logged byte counts, and each second once, also in the event files of other trainers."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from flare_dist import cli
from flare_dist.analysis.bandwidth import totals
from flare_dist.analysis.links import Link
from flare_dist.analysis.run_logs import read_run
from tests.helpers.event_files import START, TAGS, Event, amounts, numbers, read, sent, write


@pytest.mark.parametrize("other", ["loss/train", "accuracy/test", "seconds/compute"])
def test_a_tag_logged_more_often_than_bytes_takes_no_seconds_away(tmp_path: Path, other: str) -> None:
    often = [(other, step, 0.5, step + 0.1) for step in range(1, 101)]
    write(tmp_path, sorted(sent(range(10, 101, 10)) + often, key=lambda event: event[3]))
    assert amounts(tmp_path) == (10, 10, pytest.approx(100))
    if other == "seconds/compute":
        assert read(tmp_path)[1].amounts["compute_seconds"] == 50


def test_an_evaluation_between_steps_is_no_round_and_reaches_the_target(tmp_path: Path) -> None:
    between: list[Event] = [("accuracy/test", step, step / 100, step + 0.5) for step in range(15, 101, 10)]
    write(tmp_path, sorted(sent(range(10, 101, 10)) + between, key=lambda event: event[3]))
    assert amounts(tmp_path) == (10, 10, pytest.approx(100))
    _, found = read(tmp_path, target=0.3)
    assert found.target is not None
    assert {key: found.target[key] for key in ("round", "bytes_up", "round_seconds")} == {
        "round": 35,
        "bytes_up": 3000,
        "round_seconds": pytest.approx(30),
    }


@pytest.mark.parametrize("first", [7, 11])
def test_a_requeued_run_counts_what_it_sent_twice_but_not_the_pause(tmp_path: Path, first: int) -> None:
    write(tmp_path, sent(range(1, 11)))
    write(tmp_path, sent(range(first, 21), begin=28_800))
    assert amounts(tmp_path) == (31 - first, 31 - first, pytest.approx(31 - first))
    notes = read(tmp_path)[0].notes
    again = "steps 7 to 10 are logged again, 4 in all: after a return to a checkpoint, or by another run; each counts"
    assert notes == ([f"{tmp_path}: {again}"] if first == 7 else [])


def test_two_runs_in_one_directory_both_count_and_are_noted(tmp_path: Path) -> None:
    write(tmp_path, sent(range(1, 21)))
    write(tmp_path, sent(range(1, 16), begin=5000, each=2000, seconds=3))
    assert amounts(tmp_path) == (35, 50, pytest.approx(20 + 45))
    assert "steps 1 to 15 are logged again, 15 in all" in read(tmp_path)[0].notes[0]


def test_steps_that_begin_again_in_one_file_all_count(tmp_path: Path) -> None:
    write(tmp_path, sent(range(1, 6)) + sent(range(1, 6), begin=5))
    assert amounts(tmp_path) == (10, 10, pytest.approx(10))
    write(tmp_path / "no_step", [("comm/sent", 0, 1000, second) for second in range(1, 11)])
    assert amounts(tmp_path / "no_step") == (10, 10, pytest.approx(10))
    assert "step 0 is logged again, 9 in all" in read(tmp_path / "no_step")[0].notes[0]


def test_processes_side_by_side_send_together_in_the_same_seconds(tmp_path: Path) -> None:
    write(tmp_path, sent(range(1, 21)))
    write(tmp_path, sent(range(1, 21), begin=0.25))
    assert amounts(tmp_path) == (20, 40, pytest.approx(20))
    assert "several files log bytes of the same steps at one time: 20; they are added up" in read(tmp_path)[0].notes[0]


def test_an_evaluator_that_outlives_a_requeue_joins_no_sessions(tmp_path: Path) -> None:
    write(tmp_path, sent(range(1, 11)))
    write(tmp_path, sent(range(11, 21), begin=28_800))
    write(tmp_path, [("accuracy/test", 5, 0.2, 5.5), ("accuracy/test", 15, 0.6, 28_815.5)])
    assert amounts(tmp_path) == (20, 20, pytest.approx(20))
    log, found = read(tmp_path, target=0.5)
    assert found.target is not None
    assert (found.target["bytes_up"], found.value, log.notes) == (15_000, pytest.approx(0.6), [])


def test_bytes_of_a_single_step_have_no_time(tmp_path: Path) -> None:
    write(tmp_path, [*sent([1]), ("ranks/ranks", 1, 2, 1.0)])
    log, found = read(tmp_path)
    assert (found.rounds, found.amounts) == (1, {"uplink_bytes": 1000, "wire_bytes": 1000})
    assert log.notes == [f"{tmp_path}: rounds that stand alone in their file do not tell how long they took: 1"]
    write(tmp_path, sent(range(2, 7), begin=500, seconds=2))
    assert amounts(tmp_path) == (6, 6, pytest.approx(12))  # it is taken to be like the others


def test_values_that_are_not_finite_are_left_out_and_noted(tmp_path: Path) -> None:
    nan: list[Event] = [("comm/sent", 4, float("nan"), 4.0), ("loss/train", 4, float("nan"), 4.0)]
    write(tmp_path, sent(range(1, 4)) + nan + sent(range(5, 11)))
    assert amounts(tmp_path) == (9, 9, pytest.approx(10))
    assert f"{tmp_path}: values that are not finite are left out: 1" in read(tmp_path)[0].notes


def test_new_style_scalars_count_also_if_a_restart_purges_them(tmp_path: Path) -> None:
    write(tmp_path, sent(range(1, 11)), new_style=True)
    with SummaryWriter(str(tmp_path), purge_step=8, filename_suffix=f".{next(numbers)}") as writer:
        writer.add_hparams({"lr": 0.1}, {"hparam/accuracy": 0.5}, run_name=".")
        for step in range(8, 21):
            writer.add_scalar("comm/sent", 1000, step, walltime=START + 9000 + step)
    assert amounts(tmp_path) == (23, 23, pytest.approx(23))  # what TensorBoard no longer shows was sent all the same


def test_states_hold_until_they_change(tmp_path: Path) -> None:
    write(tmp_path, [("clients/clients", 1, 4, 0.5), ("ranks/ranks", 3, 2, 3.0), *sent(range(1, 6))])
    log = read_run(tmp_path, TAGS)
    assert [(row["clients"], row["ranks"]) for row in log.rows if "uplink_bytes" in row] == [(4, 2)] * 5
    assert totals(log, [Link("", 8e3)], "star", None).projected[""] == pytest.approx(5 * (1 + 1 / 4))


def test_the_command_names_the_run_that_lacks_a_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, sent([1]))
    command = ["bandwidth", str(tmp_path), "--tag", "wire_bytes=comm/sent", "--link", "1Mbps", "--output_dir"]
    assert cli.main([*command, str(tmp_path / "report"), "--ranks", "2"]) == 2
    assert f"error: bandwidth: {tmp_path}: round 1 has no round_seconds;" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "report"), "--tag", "wire_bytes=comm/other"]) == 2
    assert "--tag: wire_bytes has two tags, comm/sent and comm/other; name one" in capsys.readouterr().err

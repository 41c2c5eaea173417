"""The AdamW study tunes every way alike, continues where it was, and shows what its file of runs holds."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import adamw
import pytest
import torch
from adamw_plan import MOST_RATES, Plan, read_grid
from adamw_prototypes import ChosenByUpdate
from adamw_ranks import rate
from adamw_rows import Row, Run, Setting
from adamw_table import print_tables, results
from adamw_tasks import TASKS
from adamw_ways import WAYS, hook_settings
from csv_rows import append_row, read_rows
from torch import nn

from tests.ranks import rank_processes

GRIDS = sorted((Path(__file__).parent.parent / "configs" / "studies" / "adamw").glob("*.yaml"))
SETTING = Setting("char_gpt", "ec", density=0.01)
PLAN = Plan(SETTING, (0.002, 0.004), (0, 1, 2))


def row(run: Run, loss: float) -> Row:
    return Row(run, loss, accuracy=0.5, wire_bytes=1000.0, seconds=2.0, cpu_seconds=4.0, torch="2.8.0")


def play(plan: Plan, loss_at: Callable[[float], float]) -> list[Row]:
    """Run what the plan asks for, one run at a time, until nothing is missing."""
    rows: list[Row] = []
    while missing := plan.missing(rows):
        assert missing[0] not in [done.run for done in rows]
        rows.append(row(missing[0], loss_at(missing[0].lr)))
    return rows


@pytest.mark.parametrize("best", [0.00025, 0.002, 0.004, 0.032])
def test_rates_are_added_until_the_best_has_worse_ones_on_both_sides(best: float) -> None:
    rows = play(PLAN, lambda lr: abs(math.log2(lr / best)))
    tried = sorted(done.run.lr for done in rows if done.run.seed == 0)
    assert min(tried) < best < max(tried)
    assert tried == [tried[0] * 2**number for number in range(len(tried))]
    assert [(done.run.lr, done.run.seed) for done in rows[-2:]] == [(best, 1), (best, 2)]


def test_a_rate_that_diverges_is_an_edge_like_any_other() -> None:
    rows = play(PLAN, lambda lr: math.inf if lr > 0.001 else 1 / lr)
    assert [done.run.lr for done in rows] == [0.002, 0.004, 0.001, 0.0005, 0.001, 0.001]


def test_a_setting_that_always_diverges_or_always_improves_is_given_up() -> None:
    assert len(play(PLAN, lambda lr: math.inf)) == MOST_RATES
    assert len(play(PLAN, lambda lr: -lr)) == MOST_RATES + len(PLAN.seeds) - 1


def test_runs_of_another_setting_do_not_count() -> None:
    other = Setting("char_gpt", "ec", density=0.01, settings="update_clip=inf")
    rows = play(Plan(other, PLAN.rates, PLAN.seeds), lambda lr: lr)
    assert PLAN.missing(rows) == PLAN.missing([])


def test_the_next_run_is_the_most_important_that_is_neither_done_nor_running_nor_refused() -> None:
    second = Plan(Setting("char_gpt", "p"), (0.002,), (0,))
    runs = PLAN.missing([])
    assert adamw.next_run([PLAN, second], [], [], []) == runs[0]
    assert adamw.next_run([PLAN, second], [], [runs[0]], []) == runs[1]
    assert adamw.next_run([PLAN, second], [], runs, []) == second.missing([])[0]
    assert adamw.next_run([PLAN], [], [], [SETTING]) is None
    assert adamw.next_run([PLAN], play(PLAN, lambda lr: lr**2 - 0.003 * lr), [], []) is None


def test_the_file_gives_back_what_was_written_even_if_a_kill_broke_its_last_line(tmp_path: Path) -> None:
    file = tmp_path / "new" / "adamw.csv"
    assert read_rows(file, Row) == []
    rows = play(PLAN, lambda lr: math.inf if lr > 0.002 else 1 / 3 + lr)
    for done in rows[:2]:
        append_row(file, done)
    with file.open("a") as broken:
        broken.write("char_gpt,ec,2,0.0")
    assert read_rows(file, Row) == rows[:2]
    for done in rows[2:]:
        append_row(file, done)
    assert read_rows(file, Row) == rows
    assert file.read_text().count("\n") == 1 + len(rows)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda path: path.stem)
def test_grids_name_tasks_and_ways_that_there_are(grid: Path) -> None:
    for plan in read_grid(grid):
        assert plan.setting.task in TASKS
        assert plan.setting.way in WAYS
        assert len(plan.seeds) == 3
        assert "density" in hook_settings(plan.setting)


def test_lists_of_a_grid_stand_for_one_setting_each_and_other_keys_go_to_the_hook(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    head = "{task: char_gpt, steps: 3, rates: [0.1], seeds: [0], settings: "
    grid.write_text(head + "[{way: p, ranks: [2, 8], betas: [[0, 0.99], [0, 0.9]], update_clip: .inf, scope: global}]}")
    settings = [plan.setting for plan in read_grid(grid)]
    assert [(each.ranks, each.beta2) for each in settings] == [(2, 0.99), (2, 0.9), (8, 0.99), (8, 0.9)]
    more = {"density": 1.0, "value_codec": "fp32", "update_clip": math.inf, "scope": "global"}
    assert hook_settings(settings[0]) == more
    grid.write_text(head + "[{way: [p, ec]}, {way: ec}]}")
    with pytest.raises(ValueError, match="twice"):
        read_grid(grid)


def test_the_rate_rises_for_a_tenth_of_the_steps_and_falls_to_a_tenth() -> None:
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[0] == pytest.approx(1 / 101)
    assert rates[100] == 1
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-5)


def test_the_prototype_chooses_by_the_size_of_the_update_and_sends_gradients() -> None:
    model = nn.Linear(100, 1, bias=False)
    state = ChosenByUpdate(model, density=0.01)
    bucket = state.bucket_of([model.weight])
    gradient = torch.zeros(100)
    gradient[7], gradient[3] = 10.0, 0.1
    bucket.precondition(gradient)
    assert gradient[7] == 10  # only its square is remembered
    residual = torch.zeros(100)
    residual[7], residual[3] = 10.0, 0.2  # 3 has waited for a step
    assert bucket.selection.choose(residual, (0, 1, 0)).tolist() == [3]
    assert state.bucket_of([model.weight]) is bucket


def test_the_table_compares_means_over_seeds_with_dense(capsys: pytest.CaptureFixture[str]) -> None:
    dense = Setting("char_gpt", "dense")
    rows = [row(Run(SETTING, lr, 0), loss) for lr, loss in ((0.001, 2.2), (0.002, 2.0), (0.004, 2.4))]
    rows += [row(Run(SETTING, 0.002, seed), loss) for seed, loss in ((1, 2.1), (2, 2.2))]
    rows += [row(Run(dense, 0.002, 0), 1.5), row(Run(Setting("char_gpt", "s"), 0.002, 0), math.inf)]
    of_dense, of_ec, of_s = results(rows)
    assert of_dense[5:8] == ["0.002*", "1.500", "+0.000"]
    assert of_ec == [
        "ec",
        "2",
        "0.01",
        "fp32",
        "0.9 0.99",
        "0.002",
        "2.100 ± 0.100",
        "+0.600",
        "0.500 ± 0.000",
        "1.0",
        "3",
    ]
    assert of_s[6] == "diverged"
    print_tables(rows, ["char_gpt"])
    shown = capsys.readouterr().out
    assert "| ec, 2, 0.01, fp32, 0.9 0.99 | 2.200 | 2.000 | 2.400 |" in shown
    assert "7 runs" in shown
    print_tables(rows, ["bpe_gpt"])
    assert "ec" not in capsys.readouterr().out.split("runs")[0]


def test_a_study_trains_what_is_missing_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shakespeare").mkdir()
    roles = [{"group": "a/B", "text": "To be, or not to be: that is the question. " * 100}] * 3
    (tmp_path / "shakespeare" / "roles.jsonl").write_text("\n".join(map(json.dumps, roles)))
    grid, results_file = tmp_path / "grid.yaml", tmp_path / "rows.csv"
    ways = "[{way: dense, ranks: [1, 2], rates: [0.016]}, {way: p, scope: nonsense}, {way: [p, s], density: 0.01}]"
    grid.write_text(f"{{task: char_gpt, steps: 2, rates: [0.064], seeds: [0], betas: [0, 0.9], settings: {ways}}}")
    argv = ["adamw.py", str(grid), "--data", str(tmp_path), "--results", str(results_file), "--jobs", "2"]
    monkeypatch.setattr(sys, "argv", argv)
    with rank_processes(1) as pool:
        pool.submit(int).result()  # starts the forkserver, which all tests share, with what the other ones preload
    adamw.main()
    rows = read_rows(results_file, Row)
    losses = {(done.run.setting.way, done.run.setting.ranks, done.run.lr): done.loss for done in rows}
    assert {key[:2] for key in losses} == {("dense", 1), ("dense", 2), ("p", 2), ("s", 2)}
    assert losses["dense", 1, 0.016] == pytest.approx(losses["dense", 2, 0.016], abs=1e-3)  # the same examples
    sent = {done.run.setting.way: done.wire_bytes for done in rows if done.run.setting.ranks == 2}
    assert sent["p"] == sent["s"] < sent["dense"] / 20
    before = results_file.read_text()
    adamw.main()
    assert results_file.read_text() == before

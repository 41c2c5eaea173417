"""The study of outer steps tunes all methods by one search, goes on where it was, and its page is what its file has."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import outer_study
import pytest
import torch
from csv_rows import append_row, read_rows
from outer_study_page import POINTS, points, section
from outer_study_plan import MOST_TRIALS, Plan, Rates, best_rates, is_inside, next_run, read_grid, tuned
from outer_study_rows import Row, Run, Setting
from outer_study_table import part, results_of, results_table, to_come, verdicts
from outer_study_ways import METHODS, muon_and_adamw
from torch import nn

from tests.ranks import rank_processes

ROOT = Path(__file__).parent.parent
GRIDS = [
    ROOT / "configs" / "studies" / "outer" / f"{name}.yaml"
    for name in ("gpt_0.9m", "gpt_0.9m_why", "gpt_0.9m_muon", "gpt_5m")
]
PLANS = [plan for grid in GRIDS for plan in read_grid(grid)]
ROWS = read_rows(outer_study.RESULTS, Row)
DILOCO = Plan(Setting("diloco"), (0.004, 0.7), (0, 1, 2))
SPARSE = Plan(Setting("sparseloco"), (0.004, 1.0), (0, 1, 2))
DDP = Plan(Setting("ddp", every=1), (0.004, 0.0), (0, 1, 2))


def row(run: Run, loss: float, wire_bytes: int = 24_000_000) -> Row:
    return Row(run, 900_000, 4_000_000, loss, loss + 0.1, wire_bytes, 10, 400.0, 150.0, "2.14.1")


def play(plan: Plan, loss_at: Callable[[Rates], float], rows: list[Row] | None = None) -> list[Row]:
    """Run what the plan asks for, one run at a time, until nothing is missing."""
    rows = list(rows or [])
    while missing := plan.missing(rows):
        assert missing[0] not in [done.run for done in rows]
        rows.append(row(missing[0], loss_at((missing[0].lr, missing[0].outer_lr))))
    return rows


def bowl(inner: float, outer: float) -> Callable[[Rates], float]:
    """A loss whose least is at these rates, and whose best inner rate falls as the outer one rises."""

    def loss(rates: Rates) -> float:
        x, y = math.log2(rates[0] / inner), math.log2(rates[1] / outer)
        return x * x + y * y + x * y / 2

    return loss


@pytest.mark.parametrize(("inner", "outer"), [(0.004, 0.7), (0.001, 1.4), (0.016, 0.175)])
def test_the_search_ends_where_all_neighbours_of_both_rates_are_worse(inner: float, outer: float) -> None:
    rows = play(DILOCO, bowl(inner, outer))
    tried = tuned(rows, DILOCO.setting, 0)
    assert best_rates(tried) == pytest.approx((inner, outer))
    assert is_inside(tried)
    assert len(tried) <= MOST_TRIALS
    assert [(done.run.lr, done.run.seed) for done in rows[-2:]] == [(inner, 1), (inner, 2)]
    fewer = {rates: loss for rates, loss in tried.items() if rates[0] >= inner}
    assert not is_inside(fewer)


def test_without_an_outer_rate_the_search_is_of_one() -> None:
    rows = play(DDP, lambda rates: abs(math.log2(rates[0] / 0.008)))
    assert [done.run.lr for done in rows] == [0.004, 0.002, 0.008, 0.016, 0.008, 0.008]
    assert {done.run.outer_lr for done in rows} == {0.0}


def test_rates_that_diverge_are_left_behind_and_a_setting_that_always_does_is_given_up() -> None:
    rows = play(DDP, lambda rates: math.inf if rates[0] > 0.001 else 1 / rates[0])
    assert best_rates(tuned(rows, DDP.setting, 0)) == (0.001, 0)
    assert len(play(DILOCO, lambda rates: math.inf)) == MOST_TRIALS


@pytest.mark.parametrize(
    ("best", "halves", "chosen"),
    [(0.004, 1, 0.004), (0.00283, 2, 0.004), (0.002, 2, 0.002), (0.0001, 2, 0.001)],  # the second: as good at .002
)
def test_a_setting_that_follows_waits_for_the_other_and_tries_factors_of_its_rate(
    best: float, halves: int, chosen: float
) -> None:
    large = Plan(replace(DILOCO.setting, width=320), (0, 0), (0, 1), (1.0, 0.5, 0.25), DILOCO.setting)
    assert large.missing([]) == []
    assert to_come([], [large]) == ["DiLoCo at H = 30"]
    small = play(DILOCO, bowl(0.004, 0.7))
    runs = [done.run for done in play(large, bowl(best, 0.7), small)[len(small) :]]
    tried = [(run.lr, run.outer_lr) for run in runs if run.seed == 0]
    assert tried == [(0.004 / 2**half, 0.7) for half in range(halves + 1)]
    assert [run.lr for run in runs if run.seed == 1] == [chosen]


def test_plans_take_turns_in_the_order_of_the_grid() -> None:
    plans = [DDP, DILOCO]
    first = next_run(plans, [])
    assert first == DDP.missing([])[0]
    rows = [row(first, 2.0)]
    assert next_run(plans, rows) == DILOCO.missing(rows)[0]
    assert next_run(plans, rows, {DILOCO.setting}) == DDP.missing(rows)[0]
    assert next_run([DDP], play(DDP, lambda rates: (rates[0] - 0.004) ** 2)) is None


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    rows = play(DILOCO, lambda rates: math.inf if rates[0] > 0.004 else 1 / 3 + rates[0])
    for done in rows:
        append_row(tmp_path / "outer.csv", done)
    assert read_rows(tmp_path / "outer.csv", Row) == rows


def test_the_goal_is_reached_by_little_loss_and_few_bytes_at_once() -> None:
    dense = play(DILOCO, bowl(0.004, 0.7))
    for more, wire_bytes, said in ((0.01, 200_000, "is reached"), (0.03, 200_000, "not"), (0.01, 250_000, "not")):
        rows = [*dense, row(Run(SPARSE.setting, 0.004, 1.0, 0), more, wire_bytes)]
        (line,) = verdicts(results_of(rows, [DILOCO, SPARSE]))
        assert line.startswith(f"- H = 30, before the searches have ended: SparseLoCo is {more:.3f} nats behind")
        assert said in line
    sparse = play(SPARSE, lambda rates: bowl(0.004, 1.0)(rates) - 0.1)
    assert verdicts(results_of(dense + sparse, [DILOCO, SPARSE]))[0].startswith(
        "- H = 30: SparseLoCo is 0.100 nats ahead"
    )


def test_the_table_compares_with_ddp_and_projects_compute_and_wire() -> None:
    ddp, diloco = Run(DDP.setting, 0.004, 0.0, 0), Run(DILOCO.setting, 0.004, 0.7, 0)
    rows = [row(ddp, 2.0, 5_000_000_000), row(diloco, 2.25, 500_000_000)]
    of_ddp, of_diloco = results_table(results_of(rows, [DDP, DILOCO]))
    assert of_ddp[:5] == ["DDP", "", "0.004*", "", "2.000"]
    assert of_diloco[1:9] == ["30", "0.004*", "0.7", "2.250", "2.350", "+0.250", "500", "1/10"]
    # 100 s of compute on each replica; 1.25 GB through each link: 100 s; what overlaps takes the larger of both
    assert of_ddp[9:11] == ["1.67", "1.67"]
    assert of_diloco[9:11] == [f"{(100 + 10) / 60:.2f}", f"{(100 + 1) / 60:.2f}"]
    assert part(1.0) == "1"


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_has_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(5, 4), "norm": nn.LayerNorm(4), "wide": nn.Linear(4, 8)})
    muon, others = muon_and_adamw(model, 0.01)
    assert [weight.shape for group in muon.param_groups for weight in group["params"]] == [torch.Size([8, 4])]
    assert sum(weight.numel() for group in others.param_groups for weight in group["params"]) == 5 * 4 + 2 * 4 + 8


def test_a_study_trains_what_is_missing_and_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shakespeare").mkdir()
    roles = [{"group": "a/B", "text": "To be, or not to be: that is the question. " * 100}] * 3
    (tmp_path / "shakespeare" / "roles.jsonl").write_text("\n".join(map(json.dumps, roles)))
    grid, results_file = tmp_path / "grid.yaml", tmp_path / "rows.csv"
    head = "seeds: [0]\nlr: 0.01\nevery: 2\nsteps: 4\nreplicas: 2\n"
    ways = ["{method: ddp, every: 1}", "{method: diloco, outer_lr: 0.7}", "{method: sparseloco, outer_lr: 1}"]
    ways += ["{method: hook, every: 1}"]
    grid.write_text(f"{head}width: 8\nsettings: [{', '.join(ways)}]")
    follower = tmp_path / "follower.yaml"
    follower.write_text(f"{head}width: 16\nfactors: [1, 0.5]\nrates_of: {{width: 8}}\nsettings: [{{method: diloco}}]")
    refused = tmp_path / "refused.yaml"
    refused.write_text(f"{head}width: 8\nsettings: [{{method: hook, scope: nowhere}}]")
    argv = ["outer_study.py", str(grid), str(follower), "--data", str(tmp_path), "--results", str(results_file)]
    monkeypatch.setattr("outer_study_plan.MOST_TRIALS", 1)
    monkeypatch.setattr(sys, "argv", [argv[0], str(refused), *argv[1:]])
    with rank_processes(1) as pool:
        pool.submit(int).result()  # starts the forkserver, which all tests share, with what the other ones preload
    outer_study.main()
    *rows, large, half = read_rows(results_file, Row)
    by_method = {done.run.setting.method: done for done in rows}
    assert list(by_method) == ["ddp", "diloco", "sparseloco", "hook"]
    assert len(rows) == 4  # what is refused is missing, and the others go on
    assert all(4 < done.validation_loss < 5 and 4 < done.test_loss < 5 for done in rows)
    told = 3 * 2 * 8  # where each of two replicas is, in two windows and at the end
    assert (by_method["diloco"].wire_bytes - told) * 2 == by_method["ddp"].wire_bytes  # two windows, four steps
    assert by_method["sparseloco"].wire_bytes < by_method["diloco"].wire_bytes / 10
    assert [(done.run.setting.width, done.run.lr, done.run.outer_lr) for done in (large, half)] == [
        (16, 0.01, 0.7),
        (16, 0.005, 0.7),
    ]
    assert "compression.scope: unknown choice" in capsys.readouterr().err
    before = results_file.read_text()
    monkeypatch.setattr(sys, "argv", argv)
    outer_study.main()
    assert results_file.read_text() == before


def test_grids_have_methods_that_there_are_and_the_setting_of_every_run() -> None:
    assert {plan.setting.method for plan in PLANS} <= set(METHODS)
    assert {done.run.setting for done in ROWS} <= {plan.setting for plan in PLANS}
    settings = {plan.setting for plan in PLANS}
    assert {plan.follows for plan in PLANS if plan.follows} <= settings
    assert len(settings) == len(PLANS)


def test_the_page_and_its_figures_are_what_the_file_says() -> None:
    page = (ROOT / "docs" / "results" / "outer.md").read_text(encoding="utf-8")
    assert section(ROWS, PLANS) in page
    with (ROOT / "docs" / "figures" / "outer.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [list(POINTS), *points(ROWS, PLANS)]


def test_figures_have_no_method_at_the_rates_of_another() -> None:
    drawn = {(point[0], point[1]) for point in points(ROWS, PLANS)}
    assert ("DiLoCo", "10") in drawn  # those of DiLoCo at H = 30
    assert ("local SGD", "30") not in drawn

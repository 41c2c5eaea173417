"""The figures of docs/results/adamw.md are those that docs/adamw.csv gives, and a grid makes each of its runs."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from adamw import RESULTS
from adamw_plan import read_grid
from adamw_rows import Row
from adamw_table import at_best, by_setting, divided, is_inside, results, with_spread
from csv_rows import read_rows

from flare_dist.hook import advice

ROOT = Path(__file__).parent.parent
ROWS = read_rows(RESULTS, Row)
PAGE = (ROOT / "docs" / "guides" / "optimizers.md").read_text(encoding="utf-8")
STUDY = (ROOT / "docs" / "results" / "adamw.md").read_text(encoding="utf-8")
MEASURED = STUDY.partition("**Time.**")[0]
SETTINGS_ALONE = {"0.999", "0.004", "0.008", "0.002", "0.016"}  # betas and rates


def by_task() -> list[list[Row]]:
    """Divide the runs as the tables are."""
    keys = [(row.run.setting.task, row.run.setting.steps) for row in ROWS]
    return [[ROWS[number] for number in own] for own in divided(keys).values()]


def lines_with_a_rate() -> list[list[str]]:
    """Collect rate, loss, distance from dense and kB of the lines of all tables that name a rate."""
    lines = []
    has_rate = False
    for line in MEASURED.splitlines():
        cells = [cell.strip().replace("**", "").removesuffix(" (one seed)") for cell in line.split("|")[2:-1]]
        if not cells:
            has_rate = False
        elif cells[:2] == ["rate", "loss"]:
            has_rate = True
        elif has_rate and not cells[0].startswith("--"):
            lines.append(cells)
    return lines


def test_each_line_of_the_page_is_one_of_the_printed_table() -> None:
    printed = {tuple(line[5:8]): float(line[9]) for own in by_task() for line in results(own)}
    found = lines_with_a_rate()
    assert len(found) > 15
    for rate, loss, more, sent in found:
        kilobytes = float(sent.replace(",", ""))
        assert abs(printed[rate, loss, more or "+0.000"] - kilobytes) <= (0.5 if kilobytes == int(kilobytes) else 0.05)


def test_each_loss_of_the_page_is_one_of_the_file() -> None:
    known = set(SETTINGS_ALONE)
    for own in by_task():
        known |= {part.lstrip("+-") for line in results(own) for cell in line[6:9] for part in cell.split()}
        for rows in by_setting(own).values():
            runs = defaultdict(list)
            for row in rows:
                runs[row.run.lr].append(row.loss)
                known |= {f"{row.loss:.3f}", f"{row.accuracy:.3f}"}
            known |= {part for losses in runs.values() for part in with_spread(losses).split()}
    unknown = set(re.findall(r"(?<![\d.])\d\.\d{3}(?!\d)", MEASURED)) - known
    assert not unknown


def test_the_guide_has_figures_of_the_study() -> None:
    summary = PAGE.partition("## What it costs")[2].partition("## Why")[0]
    figures = re.findall(r"\d\.\d{3} ± \d\.\d{3}|one \d+th|1\.32 times", summary)
    assert len(figures) == 10
    assert not [figure for figure in figures if figure not in STUDY]


def test_beta1_by_density_is_that_of_the_runs() -> None:
    table = MEASURED.partition("| density | beta1 0 |")[2].partition("\n\n")[0].splitlines()[2:]
    runs = by_setting([row for row in ROWS if row.run.setting.task == "char_gpt" and row.run.setting.steps == 500])
    assert len(table) == 6
    for line in table:
        density, *losses = [cell.strip().replace("**", "").replace("\\", "") for cell in line.split("|")[1:-1]]
        for beta1, loss in zip((0.0, 0.9), losses, strict=True):
            (own,) = [rows for key, rows in runs.items() if (key.density, key.beta1) == (float(density), beta1)]
            edge = "" if is_inside(own) else "*"
            assert loss == with_spread([row.loss for row in at_best(own)]) + edge
            if float(density) in advice._BY_BETA1:  # what attach says of it
                assert loss.startswith(f"{advice._BY_BETA1[float(density)][beta1 > 0]:.3f}")


def test_the_best_rates_by_density_and_ranks_are_those_of_the_runs() -> None:
    table = PAGE.partition("| density | beta1 | rate, 2 ranks |")[2].partition("\n\n")[0].splitlines()[2:]
    settings = [
        {"way": "dense", "beta1": 0.9},
        {"way": "ec", "density": 0.01, "value_codec": "fp32", "settings": "clip_norm=0.5", "beta1": 0.0},
        {"way": "ec", "density": 0.002, "beta1": 0.0},
        {"way": "p", "density": 0.01, "beta1": 0.0},
    ]
    runs = by_setting([row for row in ROWS if row.run.setting.task == "char_gpt" and row.run.setting.steps == 1000])
    for line, wanted in zip(table, settings, strict=True):
        _, beta1, *rates = [cell.strip() for cell in line.split("|")[1:-1]]
        assert float(beta1) == wanted["beta1"]
        for ranks, rate in zip((2, 8), rates, strict=True):
            own = [rows for key, rows in runs.items() if (wanted | {"ranks": ranks}).items() <= vars(key).items()]
            assert [f"{at_best(rows)[0].run.lr:g}" for rows in own if is_inside(rows)] == [rate][: len(own)]
            assert own or rate == "the same"


def test_one_percent_is_the_part_of_dense_bytes_that_is_named() -> None:
    def sent(**wanted: object) -> float:
        """Return the bytes a step of the GPT's first run with these settings."""
        of_gpt = [row for row in ROWS if row.run.setting.task == "char_gpt" and row.run.setting.value_codec == "fp32"]
        return next(row.wire_bytes for row in of_gpt if wanted.items() <= vars(row.run.setting).items())

    assert "one 77th" in MEASURED
    assert round(sent(ranks=2, density=1.0) / sent(ranks=2, density=0.01)) == 77
    assert "one 19th" in MEASURED
    assert round(sent(ranks=8, density=1.0) / sent(ranks=8, density=0.01)) == 19


def test_a_grid_has_the_setting_of_every_run() -> None:
    grids = sorted((ROOT / "configs" / "studies" / "adamw").glob("*.yaml"))
    settings = {plan.setting for grid in grids for plan in read_grid(grid)}
    assert {row.run.setting for row in ROWS} <= settings

"""The federated LoRA study divides packages cleanly, tunes every way alike, and continues where it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import federated_lora
import pytest
from csv_rows import append_row, read_rows
from federated_lora_rows import MOST_RATES, SEEDS, Plan, Row, Run, Setting
from federated_lora_table import print_tables, results
from federated_lora_texts import PARTS, Package, described, packages, parted, write

from flare_dist.config.config import with_values
from tests.helpers.hugging_face import tiny_bert

DATA = "2 clients 3 classes 9/3/3 examples 0a1b2c3d"
SETTING = Setting("lora", "", DATA)
PLAN = Plan(SETTING, 0.1)
LISTS = """Package: libzip4
Source: libzip (1.7.3-1)
Maintainer: Ann <ann@example.org>
Section: contrib/libs
Description: library for zips
 Long: text that is left out
Tag: role::shared-lib

Package: bare
Maintainer: Ann <ann@example.org>

Package: zip
Maintainer: Ben <ben@example.org>
Section: utils
Description: Archiver

"""


def row(run: Run, accuracy: float, **more: float) -> Row:
    measured = {"test_accuracy": accuracy / 2, "uplink_bytes": 1000} | more
    others = {"test_balanced_accuracy": 0.25, "test_loss": 1.0, "rounds": 3, "parameters": 10, "seconds": 2.0}
    return Row(run, accuracy, **others | measured, cpu_seconds=1.0, torch="2.8.0")  # type: ignore[arg-type]


def play(plan: Plan, accuracy_at: Callable[[float], float]) -> list[Row]:
    """Run what the plan asks for, one run at a time, until nothing is missing."""
    rows: list[Row] = []
    while missing := plan.missing(rows):
        assert missing[0] not in [done.run for done in rows]
        rows.append(row(missing[0], accuracy_at(missing[0].lr)))
    return rows


def owned(client: str, sources: int, each: int = 2) -> list[Package]:
    """List packages of a client, so many of each source."""
    names = [(f"{client}{source}", number) for source in range(sources) for number in range(each)]
    return [Package(f"{name}-{n}", name, client, f"s{n}", f"The {name} of {client}, part {n}") for name, n in names]


def test_stanzas_are_parsed_and_those_without_what_is_needed_are_left_out() -> None:
    assert list(packages(LISTS)) == [
        Package("libzip4", "libzip", "Ann <ann@example.org>", "libs", "library for zips"),
        Package("zip", "zip", "Ben <ben@example.org>", "utils", "Archiver"),
    ]


def test_parts_share_no_text_and_no_source_and_are_fifths_of_each_client() -> None:
    copies = [Package(f"copy{n}", "copies", "ann", "s0", f"the ANN{n}  of ann, part 0") for n in range(50)]
    parts = parted([*owned("ann", 150), *owned("ben", 101), *owned("few", 99), *copies])
    assert all(set(clients) == {"ann", "ben"} for clients in parts.values())
    found = {part: [package for own in clients.values() for package in own] for part, clients in parts.items()}
    for field in ("source", "description"):
        seen = [{getattr(package, field).casefold() for package in found[part]} for part in PARTS]
        assert sum(map(len, seen)) == len(set().union(*seen))
    assert sum(map(len, found.values())) == 300 + 202
    assert [len(parts[part]["ann"]) for part in PARTS] == [192, 48, 60]


def test_what_is_written_is_a_sample_of_each_client_and_is_named_by_its_contents(tmp_path: Path) -> None:
    parts = parted([*owned("ann", 150), *owned("ben", 101)])
    write(parts, (20, 5, None), tmp_path / "few")
    counted = described(tmp_path / "few")
    assert counted.startswith("2 clients 2 classes 40/10/100 examples ")
    lines = [json.loads(line) for line in (tmp_path / "few" / "train.jsonl").read_text().splitlines()]
    assert [line["group"] for line in lines] == ["ann"] * 20 + ["ben"] * 20
    assert lines[0].keys() == {"text", "label", "group"}
    write(parts, (20, 5, None), tmp_path / "again")
    assert described(tmp_path / "again") == counted
    write(parts, (20, 5, 9), tmp_path / "other")
    assert described(tmp_path / "other") != counted


@pytest.mark.parametrize("highest", [0.0125, 0.1, 0.2, 1.6])
def test_rates_are_added_until_the_best_has_worse_ones_on_both_sides(highest: float) -> None:
    rows = play(PLAN, lambda lr: 1 / (1 + abs(math.log2(lr / highest))))
    tried = sorted(done.run.lr for done in rows if done.run.seed == 0)
    assert min(tried) < highest < max(tried)
    assert [(done.run.lr, done.run.seed) for done in rows[-2:]] == [(highest, 1), (highest, 2)]


def test_ways_that_diverge_go_down_and_ways_that_only_improve_are_given_up() -> None:
    down = play(PLAN, lambda lr: 0.5 if lr < 0.03 else 0.0)
    assert min(done.run.lr for done in down) < 0.03
    assert len(play(PLAN, lambda lr: lr)) == MOST_RATES + len(SEEDS) - 1
    assert len(play(PLAN, lambda lr: 0.0)) == MOST_RATES + len(SEEDS) - 1


def test_runs_on_other_data_do_not_count() -> None:
    rows = play(Plan(Setting("lora", "", "other"), 0.1), lambda lr: lr)
    assert PLAN.missing(rows) == PLAN.missing([])


def test_the_file_gives_back_what_was_written_even_if_a_kill_broke_its_last_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    rows = play(PLAN, lambda lr: 1 / (3 + lr))
    for done in rows[:2]:
        append_row(file, done)
    with file.open("a") as broken:
        broken.write("lora,,2 cl")
    assert read_rows(file, Row) == rows[:2]
    for done in rows[2:]:
        append_row(file, done)
    assert read_rows(file, Row) == rows


def test_the_table_compares_means_over_seeds_with_dense_lora(capsys: pytest.CaptureFixture[str]) -> None:
    sparse = Setting("sparse lora", "", DATA)
    rows = [row(Run(SETTING, lr, 0), accuracy) for lr, accuracy in ((0.1, 0.5), (0.2, 0.8), (0.4, 0.6))]
    rows += [row(Run(SETTING, 0.2, 1), 0.6), row(Run(sparse, 0.2, 0), 0.66, uplink_bytes=40)]
    rows += [row(Run(Setting("full", "", DATA), 0.2, 0), 0.1, uplink_bytes=5000)]
    dense, few, many = results(rows)
    assert many[7] == "5 x"
    assert dense[2:5] == ["0.2", "0.3500 ± 0.0707", "+0.0"]
    assert few[2:5] == ["0.2*", "0.3300", "-2.0"]
    assert few[7] == "1/25.0"
    print_tables(rows)
    shown = capsys.readouterr().out
    assert "| lora | 0.5000 | 0.8000 | 0.6000 |" in shown
    assert "6 runs" in shown


@pytest.mark.parametrize("way", federated_lora.WAYS)
@pytest.mark.parametrize("more", [[], ["full_length"]])
def test_ways_differ_in_model_and_uplink_alone(way: str, more: Sequence[str]) -> None:
    config = federated_lora.layered(way, more)
    assert ("lora" in config.model.options) is (way != "full")
    assert config.compression.is_dense is ("sparse" not in way)
    if "sparse" in way:
        assert (config.compression.density, config.compression.value_codec) == (0.05, "fp16")
    assert (config.compression.scope == "global") is ("global" in way)
    dense = federated_lora.layered("lora", more)
    assert (config.rounds, config.data, config.clients.per_round) == (dense.rounds, dense.data, dense.clients.per_round)


@pytest.mark.filterwarnings("default")  # of other people's code
@pytest.mark.parametrize("way", ["lora", "sparse lora"])
def test_a_run_is_measured(tmp_path: Path, way: str) -> None:
    pytest.importorskip("peft")
    write(parted([*owned("ann", 101), *owned("ben", 101)]), (20, 5, 5), tmp_path / "texts")
    config = with_values(
        federated_lora.layered(way, []),
        {"rounds": 2, "eval_every": 2, "clients.per_round": 2, "clients.batch_size": 4, "data.sequence_length": 8},
    )
    run = Run(Setting(way, "", described(tmp_path / "texts")), 0.01, 0)
    found = federated_lora.train(run, config, tmp_path / "texts", tiny_bert(tmp_path / "model"), tokenizer="bytes")
    assert found.run == run
    assert 0 <= found.test_accuracy <= 1
    assert found.parameters == 2 * 2 * 2 * 8 * 16 / 2 + 2 * 17
    assert found.rounds == 2
    dense = 4 * found.parameters * 2 * 2
    assert found.uplink_bytes == dense if way == "lora" else found.uplink_bytes < dense / 10
    assert found.cpu_seconds > 0

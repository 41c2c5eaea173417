"""The tables of the federated LoRA study, from the file of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from adamw_table import divided, print_cost, with_spread
from federated_lora_rows import Row, Setting, best, tuning
from timing import print_table

REFERENCE = "lora"  # the way whose accuracy and bytes the others are compared with
HEADER = ("way", "trained", "lr", "accuracy", "points", "balanced", "MB up", "of bytes", "seconds", "of a core", "runs")


def print_tables(rows: Sequence[Row]) -> None:
    """Print two tables for each data set: the test at the best rates, and the validation accuracies that chose them."""
    for (more, data), numbers in divided((row.run.setting.more, row.run.setting.data) for row in rows).items():
        own = [rows[number] for number in numbers]
        print(f"**{more or 'base'}**: {data}; {own[-1].rounds} rounds; means over seeds at the best rate:\n")
        print_table(HEADER, results(own))
        print_table(*rates(own))
    print_cost(rows)


def results(rows: Sequence[Row]) -> list[list[str]]:
    """Write a line for each way, compared with dense LoRA: points of accuracy, and the share of its bytes."""
    settings = by_setting(rows)
    dense = next((at_best(own) for setting, own in settings.items() if setting.way == REFERENCE), [])
    return [_in_words(setting, own, dense) for setting, own in settings.items()]


def _in_words(setting: Setting, rows: Sequence[Row], dense: Sequence[Row]) -> list[str]:
    chosen = at_best(rows)
    tried = tuning(rows)
    rate = f"{best(tried):g}{'' if min(tried) < best(tried) < max(tried) else '*'}"
    accuracies = [row.test_accuracy for row in chosen]
    points = f"{100 * (mean(accuracies) - mean(row.test_accuracy for row in dense)):+.1f}" if dense else "-"
    sent = mean(row.uplink_bytes for row in chosen)
    times = _times(sent / mean(row.uplink_bytes for row in dense)) if dense and sent else "-"
    return [
        setting.way,
        f"{chosen[0].parameters:,}",
        rate,
        with_spread(accuracies, digits=4),
        points,
        with_spread([row.test_balanced_accuracy for row in chosen], digits=4),
        f"{sent / 1e6:.2f}",
        times,
        f"{mean(row.seconds for row in chosen):.0f}",
        f"{mean(row.cpu_seconds for row in chosen):.0f}",
        str(len(chosen)),
    ]


def _times(share: float) -> str:
    return f"1/{1 / share:.1f}" if share <= 1 else f"{share:.0f} x"


def rates(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Write header and lines of the table of all rates: the validation accuracies of the first seed."""
    found = {setting: tuning(own) for setting, own in by_setting(rows).items()}
    tried = sorted({rate for own in found.values() for rate in own})
    lines = [
        [setting.way, *(f"{own[rate]:.4f}" if rate in own else "" for rate in tried)] for setting, own in found.items()
    ]
    return ["validation accuracy at lr", *(f"{rate:g}" for rate in tried)], lines


def by_setting(rows: Sequence[Row]) -> dict[Setting, list[Row]]:
    """Divide runs by setting, in the order in which these first come."""
    return {setting: [rows[number] for number in own] for setting, own in divided(r.run.setting for r in rows).items()}


def at_best(rows: Sequence[Row]) -> list[Row]:
    """Select the runs of one setting at its best rate."""
    chosen = best(tuning(rows))
    return [row for row in rows if row.run.lr == chosen]

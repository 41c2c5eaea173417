"""The plan of the study of outer steps: the settings of a grid, and the runs that each still needs.

All are tuned by one search, on the first seed and the validation text: from the same inner rate on, half and twice the
best inner rate are tried until it has both neighbours, then half and twice the outer rate at that inner rate, and so on
until all neighbours are worse. The other seeds train at the best rates. Plans take turns, so that a study that is
stopped has tried equally much of each. A run that is in the file is never asked for again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adamw_plan import combinations, known_and_more, plans_in
from outer_study_rows import Row, Run, Setting

MOST_TRIALS = 12  # of one setting, should its loss fall for ever
SEEDS_DIFFER = 0.01  # nats; a loss that is worse by less does not end a search
Rates = tuple[float, float]  # inner and outer


@dataclass(frozen=True)
class Plan:
    """One setting with the rates that are tried first and the seeds; the first seed tunes.

    A setting that `follows` another takes that one's best rates and tries these `factors` of the inner rate, until one
    is worse than the best by more than seeds differ.
    """

    setting: Setting
    start: Rates
    seeds: tuple[int, ...]
    factors: tuple[float, ...] = (1.0,)
    follows: Setting | None = None

    def missing(self, rows: Sequence[Row]) -> list[Run]:
        """List the runs that can be started now; none if all are done, or what it follows has not begun."""
        tried = tuned(rows, self.setting, self.seeds[0])
        wanted = self.wanted(rows, tried)
        if wanted:
            return [Run(self.setting, *rates, self.seeds[0]) for rates in wanted]
        best = best_rates(tried)
        if best is None:
            return []
        done = {row.run for row in rows}
        return [run for run in (Run(self.setting, *best, seed) for seed in self.seeds) if run not in done]

    def wanted(self, rows: Sequence[Row], tried: dict[Rates, float]) -> list[Rates]:
        """List the rates that are to be tried now."""
        if self.follows is not None:
            return self._factor_of(best_rates(tuned(rows, self.follows, self.seeds[0])), tried)
        if not tried:
            return [self.start]
        return [] if len(tried) >= MOST_TRIALS else [rates for rates in next_rates(tried) if rates not in tried]

    def _factor_of(self, start: Rates | None, tried: dict[Rates, float]) -> list[Rates]:
        if start is None:
            return []
        least = math.inf
        for factor in self.factors:
            rates = (factor * start[0], start[1])
            if rates not in tried:
                return [rates]
            if tried[rates] > least + SEEDS_DIFFER:
                break
            least = min(least, tried[rates])
        return []

    def done(self, rows: Sequence[Row]) -> int:
        """Count its runs."""
        return sum(row.run.setting == self.setting for row in rows)


def next_rates(tried: dict[Rates, float]) -> list[Rates]:
    """Return the neighbours of the best rates: those of the inner rate until both are known, then of the outer."""
    best = best_rates(tried)
    if best is None:
        inner, outer = min(tried)
        return [(inner / 2, outer)]
    inner, outer = best
    of_inner = [(inner / 2, outer), (inner * 2, outer)]
    return of_inner if any(rates not in tried for rates in of_inner) or not outer else _of_outer(inner, outer)


def _of_outer(inner: float, outer: float) -> list[Rates]:
    return [(inner, outer / 2), (inner, outer * 2)]


def tuned(rows: Sequence[Row], setting: Setting, seed: int) -> dict[Rates, float]:
    """Collect the validation loss of all rates that were tried on one seed."""
    mine = [row for row in rows if row.run.setting == setting and row.run.seed == seed]
    return {(row.run.lr, row.run.outer_lr): row.validation_loss for row in mine}


def best_rates(losses: dict[Rates, float]) -> Rates | None:
    """Return the rates of the least loss; None if all have diverged."""
    finite = {rates: loss for rates, loss in losses.items() if math.isfinite(loss)}
    return min(finite, key=finite.__getitem__) if finite else None


def is_inside(tried: dict[Rates, float]) -> bool:
    """Tell if the neighbours of the best rates were all tried."""
    best = best_rates(tried)
    if best is None:
        return False
    inner, outer = best
    around = [(inner / 2, outer), (inner * 2, outer), *(_of_outer(inner, outer) if outer else [])]
    return all(rates in tried for rates in around)


def next_run(plans: Sequence[Plan], rows: Sequence[Row], refused: Collection[Setting] = ()) -> Run | None:
    """Find the next run of a grid: of the plan with the fewest runs, the first one of the file among several."""
    open_plans = [plan for plan in plans if plan.setting not in refused and plan.missing(rows)]
    if not open_plans:
        return None
    return min(open_plans, key=lambda plan: plan.done(rows)).missing(rows)[0]


def read_grid(path: Path) -> list[Plan]:
    """Read a grid: settings in the order of their importance, a list of values standing for one setting each.

    `lr`, `outer_lr`, `seeds` and any key of a setting may stand at the top, for all that do not say otherwise. Keys
    that are none of a setting's go to the exchange. `rates_of` names what is different in the setting that is followed.
    """
    return plans_in(path, _plans)


def _plans(entry: dict[str, Any]) -> Iterator[Plan]:
    seeds = tuple(map(int, entry.pop("seeds")))
    factors = tuple(map(float, entry.pop("factors", [1])))
    rates_of = entry.pop("rates_of", None)
    start = (float(entry.pop("lr", 0)), float(entry.pop("outer_lr", 0)))
    for chosen in combinations(entry):
        setting = Setting(**known_and_more(Setting, chosen))
        follows = None if rates_of is None else replace(setting, **rates_of)
        yield Plan(setting, start, seeds, factors, follows)

"""The plan of the AdamW study: the settings of a grid, and the runs that each still needs.

The learning rate is tuned on the first seed: two rates are tried, and then half and twice the best, until the best has
both neighbours. The other seeds train at the best rate. A run that is in the file is never asked for again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_type_hints

import yaml
from adamw_rows import Row, Run, Setting

MOST_RATES = 12  # of one setting, should its loss fall for ever
USUAL_RATES = 4  # that a setting needs


class OfSetting(Protocol):
    """A plan of any study."""

    @property
    def setting(self) -> object: ...


P = TypeVar("P", bound=OfSetting)


@dataclass(frozen=True)
class Plan:
    """One setting with the rates that are tried first and the seeds; the first seed tunes."""

    setting: Setting
    rates: tuple[float, ...]
    seeds: tuple[int, ...]

    def missing(self, rows: Sequence[Row]) -> list[Run]:
        """List the runs that can be started now; none if all are done."""
        losses = self.tried(rows)
        wanted = [rate for rate in (*self.rates, *self._neighbours(losses)) if rate not in losses]
        if wanted and len(losses) < MOST_RATES:
            return [Run(self.setting, rate, self.seeds[0]) for rate in dict.fromkeys(wanted)]
        best = best_rate(losses)
        if best is None:
            return []
        done = {row.run for row in rows}
        return [run for run in (Run(self.setting, best, seed) for seed in self.seeds) if run not in done]

    def tried(self, rows: Sequence[Row]) -> dict[float, float]:
        """Collect the loss of each rate on the first seed."""
        mine = [row for row in rows if row.run.setting == self.setting and row.run.seed == self.seeds[0]]
        return {row.run.lr: row.loss for row in mine}

    def _neighbours(self, losses: dict[float, float]) -> list[float]:
        """Return half and twice the best rate; half the least if all have diverged."""
        if any(rate not in losses for rate in self.rates):
            return []
        best = best_rate(losses)
        return [min(losses) / 2] if best is None else [best / 2, best * 2]

    def left(self, rows: Sequence[Row]) -> int:
        """Estimate how many runs are left."""
        now = self.missing(rows)
        if not now or any(run.seed != self.seeds[0] for run in now):
            return len(now)
        return max(len(now), USUAL_RATES - len(self.tried(rows))) + len(self.seeds) - 1


def best_rate(losses: dict[float, float]) -> float | None:
    """Return the rate of the least loss; None if all have diverged."""
    finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    return min(finite, key=finite.__getitem__) if finite else None


def read_grid(path: Path) -> list[Plan]:
    """Read a grid: settings in the order of their importance, a list of values standing for one setting each.

    `rates`, `seeds` and any key of a setting may stand at the top, for all that do not say otherwise; betas are pairs.
    """
    return plans_in(path, _plans)


def plans_in(path: Path, plans_of: Callable[[dict[str, Any]], Iterable[P]]) -> list[P]:
    """Read a grid whose entries under `settings` say what is different from its top; a setting stands in it once."""
    grid = yaml.safe_load(path.read_text(encoding="utf-8"))
    common = {key: value for key, value in grid.items() if key != "settings"}
    plans = [plan for entry in grid["settings"] for plan in plans_of(common | entry)]
    if len({plan.setting for plan in plans}) < len(plans):
        raise ValueError(f"{path}: a setting stands in it twice; remove one")
    return plans


def _plans(entry: dict[str, Any]) -> Iterator[Plan]:
    rates = tuple(map(float, entry.pop("rates")))
    seeds = tuple(map(int, entry.pop("seeds")))
    betas = entry.pop("betas", [0.9, 0.99])
    for chosen in combinations(entry | {"betas": betas if isinstance(betas[0], list) else [betas]}):
        chosen["beta1"], chosen["beta2"] = chosen.pop("betas")
        yield Plan(Setting(**known_and_more(Setting, chosen)), rates, seeds)


def combinations(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield an entry of a grid once for each choice of one value from each of its lists."""
    choices = {key: value if isinstance(value, list) else [value] for key, value in entry.items()}
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values))


def known_and_more(kind: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Give a dataclass's fields the values chosen for them; all the others are written into its `settings`."""
    own = get_type_hints(kind)
    more = {key: value for key, value in chosen.items() if key not in own}
    known = {key: own[key](value) for key, value in chosen.items() if key in own}
    return known | {"settings": " ".join(f"{key}={value}" for key, value in sorted(more.items()))}

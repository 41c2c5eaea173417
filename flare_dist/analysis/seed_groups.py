"""Runs that differ in nothing but their seed are one group, named by the keys in which the groups differ."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from flare_dist.analysis.run_logs import RunLog
from flare_dist.analysis.x_axis import Point, XAxis
from flare_dist.config.saved import dotted, with_defaults


@dataclass(frozen=True)
class Group:
    """Hold the runs of one setting."""

    label: str
    runs: Sequence[RunLog]
    values: Mapping[str, str]  # of the keys in which the groups differ


@dataclass(frozen=True)
class Curve:
    """Hold the mean of a metric over the runs of a group, and its deviation; empty with one run."""

    rounds: list[int]
    x: list[float]
    mean: list[float]
    deviation: list[float]


def group_runs(runs: Sequence[RunLog], ignored: Collection[str]) -> list[Group]:
    """Group the runs whose configurations agree but for the seed and the `ignored` keys, in the order of the runs.

    A run without a configuration is a group of its own. So is a second run of the same seed: something else differs.
    """
    groups: dict[tuple[str, int], list[RunLog]] = {}
    settings: dict[tuple[str, int], dict[str, Any]] = {}
    repeats: Counter[tuple[str, Any]] = Counter()
    for run in runs:
        setting = _setting(run, ignored)
        own = json.dumps(setting, sort_keys=True, default=repr) if setting else run.name
        seed = run.config.get("seed")
        key = (own, repeats[own, seed])
        repeats[own, seed] += 1
        groups.setdefault(key, []).append(run)
        settings[key] = setting
    names = _without_common_path([run.name for run in runs])
    differing = _differing([settings[key] for key in groups])
    found = []
    for key, own_runs in groups.items():
        values = {name: as_word(settings[key].get(name)) for name in differing if settings[key]}
        label = label_of(values) if values and key[1] == 0 else names[own_runs[0].name]
        found.append(Group(label, own_runs, values))
    return found


def _without_common_path(names: Sequence[str]) -> dict[str, str]:
    """Shorten the directories of runs to what follows the one that holds them all."""
    try:
        common = os.path.commonpath(names)
    except ValueError:  # no runs, or some with and some without a root
        common = ""
    return {name: name if common in ("", name) else os.path.relpath(name, common) for name in names}


def _setting(run: RunLog, ignored: Collection[str]) -> dict[str, Any]:
    """Flatten the run's configuration, without its seed; {} if there is none."""
    flat = dotted(with_defaults(dict(run.config))) if run.config else {}
    return {key: value for key, value in flat.items() if key != "seed" and key not in ignored}


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the keys whose values differ between those settings that are known."""
    known = [setting for setting in settings if setting]
    keys = dict.fromkeys(key for setting in known for key in setting)
    return [key for key in keys if len({repr(setting.get(key)) for setting in known}) > 1]


def as_word(value: Any) -> str:
    """Write a value of a configuration as it stands in a label."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return f"{value:g}" if isinstance(value, float) else str(value)


def label_of(values: Mapping[str, str]) -> str:
    """Write the values of keys, each key by its last word if that is enough to tell it from the others."""
    last = Counter(key.rpartition(".")[2] for key in values)
    names = {key: tail if last[tail := key.rpartition(".")[2]] == 1 else key for key in values}
    return ", ".join(f"{names[key]}={value}" for key, value in values.items())


def mean_curve(runs: Sequence[RunLog], axis: XAxis) -> Curve:
    """Average over the runs what they measured after the same rounds; rounds that one of them lacks are left out."""
    by_round: list[dict[int, Point]] = [{point.round: point for point in axis.points(run)} for run in runs]
    shared = [round_ for round_ in by_round[0] if all(round_ in points for points in by_round)]
    rows = [[points[round_] for points in by_round] for round_ in shared]
    return Curve(
        rounds=shared,
        x=[fmean(point.x for point in row) for row in rows],
        mean=[fmean(point.value for point in row) for row in rows],
        deviation=[stdev(point.value for point in row) for row in rows] if len(runs) > 1 else [],
    )

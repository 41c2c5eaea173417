"""Prunable weights of a model: those of convolutions and linear layers, as the configuration has them."""

from __future__ import annotations

from fnmatch import fnmatch

from torch import nn

from flare_dist.layout import Entry, ParameterLayout
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.masks import budget, empty_layer


def prunable_entries(model: nn.Module, layout: ParameterLayout, config: SparseTrainingConfig) -> tuple[Entry, ...]:
    """Find the prunable weights of `model`, in the layout's order.

    Raises ValueError if there are none, or if a pattern of `exclude` matches no weight.
    """
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    linear = (nn.Linear,)
    modules = [(name, m) for name, m in model.named_modules() if isinstance(m, convolutions + linear)]
    wanted = convolutions if config.layers == "conv" else convolutions + linear
    places = range(len(modules))
    inner = places[1:-1] if config.exclude_ends else places
    names = {f"{modules[place][0]}.weight".lstrip(".") for place in inner if isinstance(modules[place][1], wanted)}
    for pattern in config.exclude:
        excluded = {name for name in names if fnmatch(name, pattern)}
        if not excluded:
            raise ValueError(f"sparse_training.exclude: {pattern!r} matches no prunable weight ({_list(names)})")
        names -= excluded
    entries = tuple(entry for entry in layout.entries if entry.name in names)
    if not entries:
        kind = "convolutions" if config.layers == "conv" else "convolutions or linear layers"
        raise ValueError(f"sparse_training.layers: the model has no prunable {kind} besides those that are excluded")
    for entry in entries:
        if entry.numel * config.density < 0.5:
            raise empty_layer(entry, config.density)
    least = min([1.0, *(factor for _, factor in config.hetero)])
    if budget(config, entries, least) < len(entries):
        raise empty_layer(min(entries, key=lambda entry: entry.numel), config.density * least)
    return entries


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")

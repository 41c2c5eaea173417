"""Checks of settings against the data and the model, which may make them wrong, meaningless or void."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

from torch import Tensor, nn

from flare_dist.cautions import CAUTIONS, NEEDS
from flare_dist.compatibility import EXCLUSIONS
from flare_dist.config.config import Config
from flare_dist.config.saved import as_dict, differing_keys
from flare_dist.exclusion import messages, refuse
from flare_dist.layout import parameter_layout
from flare_dist.records.files import is_storable
from flare_dist.sparse_training.prunable import prunable_entries

log = logging.getLogger(__name__)


def keys_without_effect(config: Config) -> dict[str, list[str]]:
    """Find the keys of `config` that differ from the defaults and change nothing, by what they need."""
    found: dict[str, list[str]] = {}
    for key in differing_keys(as_dict(Config()), as_dict(config)):
        needs = [need for pattern, counts, need in NEEDS if fnmatch(key, pattern) and not counts(config)]
        for need in needs[:1]:
            found.setdefault(need, []).append(key)
    return found


def check_run(config: Config, parts: Iterable[Tensor], model: nn.Module, ranks: int = 1) -> None:
    """Warn of settings that change nothing here, or mean something unexpected.

    ValueError if a pattern matches no parameter, nothing is left, or the model's layers talk to other ranks.
    """
    of_model: dict[str, Any] = {"sync_batch_norm": _sync_batch_norm(model), "weights": _precision(model)}
    refuse(EXCLUSIONS, ranks=ranks, **of_model, **vars(config))
    _check_dtypes(model)
    facts = {}
    if config.mode == "federated" and config.clients.objective == "flare":
        facts["local_steps"] = max(config.clients.steps_with(len(part)) for part in parts)
        _check_patterns(config.clients.flare.exclude, [entry.name for entry in parameter_layout(model).entries])
    if config.sparse_training.is_sparse:
        prunable_entries(model, parameter_layout(model), config.sparse_training)
    for message in messages(CAUTIONS, **facts, **vars(config)):
        log.warning("%s", message)
    for need, keys in keys_without_effect(config).items():
        log.warning("without effect here: %s (needs %s)", ", ".join(keys), need)


def _sync_batch_norm(model: nn.Module) -> str | None:
    """Return the name of a layer that waits for other ranks."""
    return next((name for name, part in model.named_modules() if isinstance(part, nn.SyncBatchNorm)), None)


def _precision(model: nn.Module) -> str:
    """Name the lowest precision of the weights that are trained."""
    trained = (parameter.dtype for parameter in model.parameters() if parameter.requires_grad)
    return str(min(trained, key=lambda dtype: dtype.itemsize)).removeprefix("torch.")


def _check_patterns(patterns: Iterable[str], names: list[str]) -> None:
    """Raise ValueError if one of the patterns of clients.flare.exclude matches no parameter."""
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            shown = ", ".join(names[:4])
            raise ValueError(f"clients.flare.exclude: {pattern!r} matches no parameter (they are {shown}, ...)")


def _check_dtypes(model: nn.Module) -> None:
    """Raise ValueError if the model's state is more than tensors of dtypes that a file can hold."""
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"model.name: {name} is a {type(value).__name__}, and model.safetensors holds tensors only"
            )
        if not is_storable(value.dtype):
            raise ValueError(
                f"model.name: {name} is {value.dtype}, which model.safetensors cannot hold; choose another dtype, or "
                "register it with persistent=False if it need not be saved"
            )

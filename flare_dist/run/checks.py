"""What the configuration alone cannot tell: settings that the data or the model make wrong, meaningless or void."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from fnmatch import fnmatch

from torch import Tensor, nn

from flare_dist.algorithms.methods import algorithm_of
from flare_dist.config.config import Config, as_dict, differing_keys
from flare_dist.layout import parameter_layout
from flare_dist.records.files import is_storable
from flare_dist.sparse_training.masks import prunable_entries
from flare_dist.sparse_training.methods import METHODS, Method
from flare_dist.sparse_training.pruning import CRITERIA

log = logging.getLogger(__name__)

DRAWN = ("dirichlet", "dirichlet_unbalanced", "quantity")  # partitions with a concentration


def _of_clients(config: Config) -> bool:
    return config.mode != "gradient"


def _is_sparse_exchange(config: Config) -> bool:
    return config.mode != "gradient" or config.gradients.hook == "sparse"


def _method(config: Config) -> Method:
    return METHODS[config.sparse_training.method]


def _moves_masks(config: Config) -> bool:
    method = _method(config)
    return method.has_stage_one or method.clients_move or method.server_moves


def _grows(config: Config) -> bool:
    return _method(config).has_stage_one or _method(config).clients_move


def _asks_clients(config: Config) -> bool:
    return _method(config).is_scored and CRITERIA[config.pruning.criterion].needs_data


def _masks_differ(config: Config) -> bool:
    return _method(config).clients_move or bool(config.sparse_training.hetero)


def _remembers(config: Config) -> bool:
    of_clients = config.exchanged.feedback.state_names or algorithm_of(config.clients).memory
    return config.mode == "federated" and bool(of_clients)


# (pattern of dotted keys, whether they count, when they would); the first that a key does not meet is named
RULES: list[tuple[str, Callable[[Config], bool], str]] = [
    ("clients.flare.*", lambda config: config.clients.objective == "flare", "clients.objective=flare"),
    ("clients.feddyn.*", lambda config: config.clients.objective == "feddyn", "clients.objective=feddyn"),
    ("clients.feddc.*", lambda config: config.clients.objective == "feddc", "clients.objective=feddc"),
    ("clients.fedprox.*", lambda config: config.clients.objective == "fedprox", "clients.objective=fedprox"),
    ("clients.state_dir", _remembers, "clients that remember something: error feedback, feddyn, scaffold or feddc"),
    ("compression.threshold", lambda config: config.compression.sparsifier == "threshold", "sparsifier=threshold"),
    ("compression.downlink_density", lambda config: config.compression.downlink == "topk", "downlink=topk"),
    ("data.alpha", lambda config: config.data.partition in DRAWN, f"data.partition={'|'.join(DRAWN)}"),
    ("sparse_training.*", lambda config: config.sparse_training.is_sparse, "a sparse_training.method"),
    ("sparse_training.init_*", lambda config: _method(config).has_stage_one, "sparse_training.method=spdst|jmwst"),
    ("sparse_training.prune_rate", _moves_masks, "a sparse_training.method that moves masks"),
    ("sparse_training.growth", _grows, "sparse_training.method=nst|spdst|jmwst|feddst"),
    ("sparse_training.r_int", lambda c: _method(c).server_moves, "sparse_training.method=jmwst|feddst|prunefl"),
    ("sparse_training.r_end", lambda config: _method(config).fades, "sparse_training.method=feddst|prunefl"),
    ("sparse_training.subsample", lambda c: c.sparse_training.method == "jmwst", "sparse_training.method=jmwst"),
    ("sparse_training.update_mode", _masks_differ, "masks that differ between clients"),
    ("sparse_training.counts", lambda config: not _method(config).is_scored, "masks that are drawn"),
    ("pruning.*", lambda config: _method(config).is_scored, "sparse_training.method=pruned|prunefl"),
    ("pruning.data", _asks_clients, "a pruning.criterion that looks at data"),
    ("pruning.frac", _asks_clients, "a pruning.criterion that looks at data"),
    ("pruning.batches", _asks_clients, "a pruning.criterion that looks at data"),
    ("pruning.threshold", lambda config: config.pruning.criterion == "threshold", "pruning.criterion=threshold"),
    ("compression.*", _is_sparse_exchange, "gradients.hook=sparse"),
    ("gradients.*", lambda config: config.mode == "gradient", "mode=gradient"),
    ("gradients.powersgd_*", lambda config: config.gradients.hook == "powersgd", "gradients.hook=powersgd"),
    ("server.*", _of_clients, "mode=federated"),
    ("clients.num", _of_clients, "mode=federated"),
    ("clients.per_round", _of_clients, "mode=federated"),
    ("clients.local_*", _of_clients, "mode=federated"),
    ("clients.weighting", _of_clients, "mode=federated"),
    ("data.partition", _of_clients, "mode=federated"),
]


def keys_without_effect(config: Config) -> dict[str, list[str]]:
    """The keys of `config` that differ from the defaults and change nothing, by what they would need."""
    found: dict[str, list[str]] = {}
    for key in differing_keys(as_dict(Config()), as_dict(config)):
        needs = [need for pattern, counts, need in RULES if fnmatch(key, pattern) and not counts(config)]
        for need in needs[:1]:
            found.setdefault(need, []).append(key)
    return found


def check_run(config: Config, parts: Iterable[Tensor], model: nn.Module, ranks: int = 1) -> None:
    """Warn of settings that change nothing here.

    ValueError if a pattern matches no parameter, nothing is left, or the model's layers talk to other ranks.
    """
    _check_norms(config, model, ranks)
    _check_dtypes(model)
    _check_objective(config, parts, model)
    _check_momentum(config)
    if config.sparse_training.is_sparse:
        prunable_entries(model, parameter_layout(model), config.sparse_training)
        if config.sparse_training.hetero and config.sparse_training.update_mode == "mean":
            log.warning("sparse_training.update_mode: under mean the weights that clients with a smaller budget lack "
                        "count as zeros; masked_mean leaves them out", )  # fmt: skip
    for need, keys in keys_without_effect(config).items():
        log.warning("without effect here: %s (needs %s)", ", ".join(keys), need)


def _check_norms(config: Config, model: nn.Module, ranks: int) -> None:
    """Raise ValueError if SyncBatchNorm would wait for ranks that do something else, or cannot run on the device."""
    names = [name for name, part in model.named_modules() if isinstance(part, nn.SyncBatchNorm)]
    alone = config.mode == "federated" or (config.mode == "centralised" and ranks > 1)
    if not names or not (alone or config.engine.device == "cpu"):
        return
    why = "averages over all ranks, but here each trains by itself" if alone else "works on GPUs only"
    raise ValueError(
        f"model.name: the layer {names[0]!r} of {config.model.name} is a SyncBatchNorm, which {why}; "
        "use BatchNorm in its place"
    )


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


def _check_momentum(config: Config) -> None:
    momentum = config.clients.momentum
    if "velocity" in config.exchanged.feedback.state_names and momentum and config.mode != "centralised":
        log.warning("clients.momentum: dgc has its own momentum and wants local momentum 0, not %g", momentum)


def _check_objective(config: Config, parts: Iterable[Tensor], model: nn.Module) -> None:
    clients, flare, names = config.clients, config.clients.flare, [e.name for e in parameter_layout(model).entries]
    if config.mode != "federated":
        if clients.objective != "none" or clients.step_ahead:
            log.warning(
                "mode: %s training has the loss alone; clients.objective and step_ahead do not count", config.mode
            )
        return
    if clients.objective == "flare":
        for pattern in flare.exclude:
            if not any(fnmatch(name, pattern) for name in names):
                shown = ", ".join(names[:4])
                raise ValueError(f"clients.flare.exclude: {pattern!r} matches no parameter (they are {shown}, ...)")
        most = max(clients.steps_with(len(part)) for part in parts)
        if flare.steps is not None and flare.steps > most:
            log.warning("clients.flare.steps: %d are more than the %d local steps of a round: all of them are "
                        "regularised", flare.steps, most)  # fmt: skip
    compression = config.compression
    if clients.objective in ("scaffold", "feddc") and not compression.is_dense and compression.rule == "none":
        log.warning(
            f"clients.objective: without error feedback {clients.objective}'s server never hears of what is not sent "
            "of a change; its control variate drifts from the mean of the clients'"
        )

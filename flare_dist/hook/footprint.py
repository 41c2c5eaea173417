"""How much memory the hook takes between steps."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping

from torch import Tensor

from flare_dist.comm.collectives import ProcessGroup, rank_and_size
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.preconditioners import Preconditioning
from flare_dist.units import show_bytes

log = logging.getLogger(__name__)


def report_memory(
    parameters: Iterable[Tensor],
    config: CompressionConfig,
    preconditioning: Preconditioning,
    process_group: ProcessGroup | None,
) -> None:
    """Say on rank 0 how much the hook keeps between steps of these parameters, beside their gradients.

    It is logged, and written to stderr in a script that has not set up logging, which shows no more than warnings.
    """
    numels = [(parameter.numel(), parameter.device.type) for parameter in parameters]
    kept = kept_bytes(config, preconditioning, numels[0][1] if numels else "cpu")
    if numels and kept and rank_and_size(process_group)[0] == 0:
        _say("the hook keeps", kept, sum(numel for numel, _ in numels))


def report_outer_memory(numel: int, device: str, config: CompressionConfig, pulls: bool = False) -> None:
    """Say how much outer steps keep of this rank's weights, as `report_memory` does of the hook."""
    kept = kept_bytes(config, Preconditioning(), device)
    pull = {"pull": 4} if pulls else {}
    _say("beside the outer optimizer, outer steps keep", {"global weights": 4} | kept | pull, numel)


def kept_bytes(config: CompressionConfig, preconditioning: Preconditioning, device: str) -> dict[str, int]:
    """Return the bytes a parameter by what they hold, in float32: a draft until the next step of all but the mean."""
    names = (*config.feedback.state_names, *preconditioning.record.vectors)
    means = {"mean": 4} if device == "cpu" and not config.is_dense else {}
    return dict.fromkeys(names, 8) | means


def _say(who: str, kept: Mapping[str, int], numel: int) -> None:
    each = sum(kept.values())
    line = f"{who} {each} bytes a parameter, {show_bytes(each * numel)} in all ({', '.join(kept)})"
    if log.hasHandlers():
        log.info(line)
    else:
        sys.stderr.write(f"{line}\n")

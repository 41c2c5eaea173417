"""How much memory the hook takes between steps."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

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
    names = (*config.feedback.state_names, *preconditioning.record.vectors)
    means = ("mean",) if numels and numels[0][1] == "cpu" and not config.is_dense else ()
    each = 8 * len(names) + 4 * len(means)  # float32, and a draft of everything but the mean until the next step
    total = show_bytes(each * sum(numel for numel, _ in numels))
    if numels and each and rank_and_size(process_group)[0] == 0:
        line = f"the hook keeps {each} bytes a parameter, {total} in all ({', '.join([*names, *means])})"
        if log.hasHandlers():
            log.info(line)
        else:
            sys.stderr.write(f"{line}\n")

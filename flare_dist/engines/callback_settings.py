"""Checks of what is given to the callbacks for other trainers: early, and against the trainer's own settings."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from flare_dist.engines.optimizers import handed_over
from flare_dist.hook.momentum import kind_of
from flare_dist.hook.state import SparseHookState

_OF_ATTACH = ("world_of_one", "adapt", "scaler", "process_group")  # the others are those of the state


class Advice(NamedTuple):
    """What to write so that a trainer steps by updates as they are."""

    optimizer: str
    clipping: str
    around: str = "{}"  # both


def check_settings(user: str, settings: dict[str, Any]) -> None:
    """Raise at once what `attach` would raise when training begins."""
    if "optimizer" in settings:
        raise ValueError(f"{user}: takes no optimizer, since it hands over the trainer's own; leave it out")
    SparseHookState(nn.Module(), **{key: value for key, value in settings.items() if key not in _OF_ATTACH})


def check_updates(
    user: str, settings: dict[str, Any], optimizer: Any, model: nn.Module, clips: float | None, advice: Advice
) -> None:
    """Raise ValueError if the trainer would scale or clip the updates of a preconditioner.

    `clips` is the norm to which it clips, None or 0 if it does not.
    """
    name = settings.get("preconditioner", "none")
    if name == "none":
        return
    scaling = [each.optimizer for each in handed_over(optimizer, model) if kind_of(each.optimizer) not in ("sgd", "")]
    problems = []
    write = []
    if scaling:
        problems.append(f"{type(scaling[0]).__name__} would scale once more")
        write.append(advice.optimizer)
    if clips:
        problems.append(f"clipping to norm {clips:g} would shrink, for the norm of updates grows with the model")
        write.append(advice.clipping)
    if problems:
        raise ValueError(
            f"{user}: preconditioner={name} returns updates, which {' and '.join(problems)}; write "
            f"{advice.around.format(', '.join(write))} (docs/optimizers.md)"
        )

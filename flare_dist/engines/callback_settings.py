"""Checks of what is given to the callbacks for other trainers: early, and against the trainer's own settings."""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

from torch import nn

from flare_dist.engines.attach_ddp import WorldOfOne
from flare_dist.engines.optimizers import handed_over
from flare_dist.errors import check_choice
from flare_dist.hook.momentum import kind_of
from flare_dist.hook.state import SparseHookState

_OF_ATTACH = ("world_of_one", "adapt")  # the others are those of the state
_OF_TRAINER = ("optimizer", "scaler", "process_group")


class Advice(NamedTuple):
    """The settings with which a trainer steps by updates as they are."""

    optimizer: str
    clipping: str
    around: str = "{}"  # both


def check_settings(user: str, settings: dict[str, Any]) -> None:
    """Raise at once what `attach` would raise when training begins."""
    for key in _OF_TRAINER:
        if key in settings:
            raise ValueError(
                f"{user}.{key}: the trainer's own is handed over, got {type(settings[key]).__name__}; leave it out"
            )
    if "world_of_one" in settings:
        check_choice(f"{user}.world_of_one", settings["world_of_one"], get_args(WorldOfOne))
    SparseHookState(nn.Module(), **{key: value for key, value in settings.items() if key not in _OF_ATTACH})


def check_trainer(
    user: str, settings: dict[str, Any], optimizer: Any, model: nn.Module, clips: float | None, advice: Advice
) -> None:
    """Raise ValueError if the trainer would scale or clip a preconditioner's updates, or clip what is clipped already.

    `clips` is the norm to which it clips, None or 0 if it does not.
    """
    clip_norm = settings.get("clip_norm")
    if clip_norm is not None and clips:
        raise ValueError(
            f"{user}.clip_norm: the trainer would clip once more, after the exchange, got {clip_norm:g} here and "
            f"{clips:g} there; write {advice.around.format(advice.clipping)} (docs/guides/optimizers.md)"
        )
    _check_updates(user, settings, optimizer, model, clips, advice)


def _check_updates(
    user: str, settings: dict[str, Any], optimizer: Any, model: nn.Module, clips: float | None, advice: Advice
) -> None:
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
            f"{advice.around.format(', '.join(write))} (docs/guides/optimizers.md)"
        )

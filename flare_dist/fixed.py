"""Parts of a model that training never changes: its base, which lies in files of its own, and constant buffers.

Neither travels. A base is as large as a pretrained model and the same for all runs of it, so that checkpoints and saved
models hold its digest alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

_ATTRIBUTE = "_flare_dist_fixed"


class Fixed(NamedTuple):
    """Name frozen parameters that anybody who builds the model has, and buffers that keep their first values."""

    base: frozenset[str] = frozenset()
    constants: frozenset[str] = frozenset()


def fixed_of(model: nn.Module) -> Fixed:
    """Return what has been found fixed in `model`."""
    return getattr(model, _ATTRIBUTE, Fixed())


def fix_base(model: nn.Module, names: Iterable[str]) -> None:
    """Keep the frozen parameters among `names` out of what is saved."""
    frozen = {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
    setattr(model, _ATTRIBUTE, fixed_of(model)._replace(base=frozenset(names) & frozen))


def fix_constants(model: nn.Module, names: Iterable[str]) -> None:
    """Keep the buffers `names` out of what travels."""
    setattr(model, _ATTRIBUTE, fixed_of(model)._replace(constants=frozenset(names)))


def base_digest(model: nn.Module) -> str | None:
    """Compute the SHA-256 of the names, shapes, types and values of the base; None if there is none."""
    base = fixed_of(model).base
    if not base:
        return None
    digest = hashlib.sha256()
    for name, value in sorted((name, value) for name, value in model.named_parameters() if name in base):
        digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def check_base(key: str, what: str, found: str | None, saved: str | None) -> None:
    """Raise ValueError that begins with `key` if `what` was made with another base than the one of digest `found`."""
    if found != saved:
        raise ValueError(
            f"{key}: {what} was trained on a base of SHA-256 {_short(saved)}, and model.name builds one of "
            f"{_short(found)}; put back the files that model.name named then"
        )


def load_trained(key: str, what: str, model: nn.Module, state: Mapping[str, Tensor], saved: str | None) -> None:
    """Load a saved model into one that has been built, which brings the base; ValueError if it is another base."""
    check_base(key, what, base_digest(model), saved)
    missing, unexpected = model.load_state_dict(state, strict=False)
    lacking = [name for name in missing if name not in fixed_of(model).base]
    if lacking or unexpected:
        raise ValueError(
            f"{key}: {what} holds another model than model.name builds ({(lacking + unexpected)[0]} is in one of them "
            "only); name the model of that run"
        )


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:16]

"""Checks of the settings, parameters and saved memories that are given to the hook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from flare_dist.compatibility import EXCLUSIONS
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.payload import check_positions
from flare_dist.compression.preconditioners import Preconditioning
from flare_dist.exclusion import refuse


def sparse_gradient_names(module: nn.Module) -> set[str]:
    """Name the trained parameters whose gradients DDP expects to be sparse tensors."""
    names = set()
    for prefix, layer in module.named_modules():
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.sparse and layer.weight.requires_grad:
            names.add(f"{prefix}.weight" if prefix else "weight")
    return names


def refuse_sparse_gradients(module: nn.Module) -> None:
    """Raise ValueError for an engine, which reduces dense gradients only."""
    names = sparse_gradient_names(module)
    if names:
        raise ValueError(f"attach: the gradients of {', '.join(sorted(names))} are sparse tensors; use sparse=False")


def check_compression(config: CompressionConfig, preconditioning: Preconditioning) -> None:
    """Raise ValueError for settings that do not go with an exchange in every step, or not with each other."""
    refuse(EXCLUSIONS, compression=config, gradients=preconditioning, by_hook=True)


def check_parameters(module: nn.Module, config: CompressionConfig, preconditioning: Preconditioning) -> None:
    """Raise ValueError for parameters that only a dense exchange can carry, if this one is not."""
    if preconditioning.clip_norm is not None:
        _refuse_sparse("gradients.clip_norm", "clipping", module)
        _refuse_complex("gradients.clip_norm", "clipping", module)
    if preconditioning.record.vectors:
        _check_preconditioned(module, preconditioning.preconditioner)
    if config.is_dense:
        return
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not parameter.is_floating_point():
            raise ValueError(f"the sparse hook cannot exchange {name}, which is {parameter.dtype}; use density 1")
        if parameter.requires_grad:
            check_positions(parameter.numel(), name)
    sparse = sparse_gradient_names(module)
    if sparse:
        raise ValueError(
            f"compression.density: the gradients of {', '.join(sorted(sparse))} are sparse tensors, which the hook "
            f"exchanges at density 1 only, got {config.density}; use density 1, or sparse=False in the embedding"
        )


def _check_preconditioned(module: nn.Module, preconditioner: str) -> None:
    """Raise ValueError for parameters whose gradients cannot become updates."""
    key = "gradients.preconditioner"
    _refuse_sparse(key, preconditioner, module)
    _refuse_complex(key, preconditioner, module)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.dtype == torch.float16:
            raise ValueError(
                f"{key}: updates times the loss scale are too large for float16, got it in {name}; use bfloat16, or "
                "float32 parameters under autocast"
            )


def _refuse_sparse(key: str, user: str, module: nn.Module) -> None:
    names = ", ".join(sorted(sparse_gradient_names(module)))
    if names:
        raise ValueError(f"{key}: {user} takes dense gradients, got sparse ones of {names}; use sparse=False")


def _refuse_complex(key: str, user: str, module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not parameter.is_floating_point():
            raise ValueError(f"{key}: {user} takes real gradients, got {parameter.dtype} in {name}; leave it out")


def rule_name(config: CompressionConfig, preconditioning: Preconditioning) -> str:
    """Return the rule of error feedback that applies, none if everything is sent, behind the preconditioner."""
    rule = "none" if config.is_dense else config.rule
    return f"{preconditioning.preconditioner} and {rule}" if preconditioning.applies else rule


def check_saved(
    saved: dict[str, Any], rule: str, state_names: Sequence[str], shapes: dict[str, tuple[int, ...]]
) -> None:
    """Raise ValueError if `saved` is the memory of another rule or model; fields that it lacks are not compared.

    Parameters that it lacks are no reason: they had not been trained before.
    """
    if saved.get("rule", rule) != rule:
        raise ValueError(
            f"error_feedback: the memory was saved under {saved['rule']}, and here the rule is {rule}"
            f"{' (at density 1 there is nothing to remember)' if 'none' in (rule, saved['rule']) else ''}; attach with "
            "the settings that saved it, or do not load it"
        )
    vectors = [(name, vector) for name, own in saved["memory"].items() for vector in own.values()]
    found = {name: vector.shape for name, vector in vectors if vector.dim()}  # some are one number a tensor
    found |= saved.get("shapes", {})
    unknown = sorted((set(saved["memory"]) | set(found)) - set(shapes))
    if unknown:
        raise ValueError(f"the saved memory holds parameters that the model has not: {', '.join(unknown)}")
    for name, shape in found.items():
        if tuple(shape) != shapes[name]:
            raise ValueError(f"the saved memory of {name} is {tuple(shape)}, not {shapes[name]}")
    for name, own in saved["memory"].items():
        if set(own) != set(state_names):
            raise ValueError(
                f"error_feedback: the saved memory of {name} holds {', '.join(sorted(own)) or 'nothing'}, and rule "
                f"{rule} keeps {', '.join(sorted(state_names)) or 'nothing'}; attach with the settings that saved it"
            )

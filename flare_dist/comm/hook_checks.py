"""Which settings and parameters the hook takes."""

from __future__ import annotations

from torch import nn

from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.payload import check_positions


def sparse_gradient_names(module: nn.Module) -> set[str]:
    """The trained parameters whose gradients DDP expects to be sparse tensors."""
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


def check_parameters(module: nn.Module, config: CompressionConfig) -> None:
    """Raise ValueError for what only a dense exchange can carry, if this one is not."""
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


def check_compression(config: CompressionConfig) -> None:
    """Raise ValueError for what a hook cannot do."""
    if config.scope == "global":
        raise ValueError("compression.scope: global would let DDP's bucket sizes decide what is sent; use tensor")
    if config.sparsifier == "threshold":
        raise ValueError(f"compression.sparsifier: {config.sparsifier} sends too little to know how much")
    if config.downlink != "dense":
        raise ValueError(
            f"compression.downlink: {config.downlink} needs a server, and here ranks take every step themselves"
        )
    if config.value_block:
        raise ValueError(
            "compression.value_block: here every tensor has a table of its own, so that unused ones send 0"
        )
    if config.rule == "ef21":
        raise ValueError("compression.error_feedback: ef21 needs a server that keeps the estimates; use ec or dgc")

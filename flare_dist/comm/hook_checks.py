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

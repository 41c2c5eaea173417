"""Readjustment by measured gradients: which weights are worth their time.

Yuang Jiang, Shiqiang Wang, Victor Valls, Bong Jun Ko, Wei-Han Lee, Kin K. Leung, Leandros Tassiulas, "Model Pruning
Enables Efficient Federated Learning on Edge Devices", TNNLS 2022, https://arxiv.org/abs/1909.12326

Every few rounds clients add up the squares of the gradients of all prunable weights, active or not, and send them. A
weight's importance is that sum over the time that it takes; the largest weights of each layer stay, and the places of
the others go to whatever is most important. The paper ends where importance over time no longer rises; here the density
is given, so that methods can be compared at the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flare_dist.layout import Entry
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.masks import largest_mask, layer_counts, layers_of
from flare_dist.sparse_training.pruning import highest


@torch.no_grad()
def uses_of(module: nn.Module, entries: Sequence[Entry], inputs: Tensor) -> list[float]:
    """Count how often one example uses a weight of each entry, to which its time is proportional.

    A weight of a convolution is used for each place of its output, one of a linear layer once. `inputs` is a batch.
    """
    outputs = {entry.name: entry.shape[0] for entry in entries}  # channels or units
    uses = dict.fromkeys(outputs, 0.0)

    def count(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(layer: nn.Module, arguments: object, output: Tensor) -> None:
            uses[name] += output[0].numel() / outputs[name]

        return hook

    layers = {f"{name}.weight".lstrip("."): layer for name, layer in module.named_modules()}
    hooks = [layers[name].register_forward_hook(count(name)) for name in uses]
    was_training = module.training
    module.eval()  # norms do not learn from a look
    try:
        module(inputs)
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return [uses[entry.name] or 1.0 for entry in entries]


def readjusted_mask(
    layers: Layers,
    weights: Tensor,
    mask: Tensor,
    squares: Tensor,
    uses: Sequence[float],
    rate: float,
    keep: int,
) -> Tensor:
    """Choose `keep` prunable weights: all but `rate` of each layer's active ones, the largest, then others.

    Those come by `squares` (float32 [total], sums of squared gradients) over `uses`, active or not.
    """
    actives = layer_counts(mask, layers)
    stays = largest_mask(weights, layers, [count - int(rate * count) for count in actives], mask)
    importance = squares.clone()
    for layer, times in zip(layers_of(importance, layers), uses):
        layer.div_(times)
    importance[stays] = torch.inf  # ahead of all others
    return highest(importance, layers, keep, torch.ones_like(mask), None)

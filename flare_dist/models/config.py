"""Which model is trained."""

from __future__ import annotations

from dataclasses import dataclass

from flare_dist.models.registry import check_name


@dataclass(frozen=True)
class ModelConfig:
    """Which model is trained.

    Args:
        name: 2nn, cnn, lenet, mnist_net, resnet8, resnet18, resnet34, vgg11, vgg16, vgg19, flare_fc, flare_cnn or
            gru (of text), a classifier of torchvision as torchvision:NAME (e.g. torchvision:resnet50), or your own as
            package.module:callable, which is called with (input_shape, num_classes).
        norm: group (GroupNorm, whose statistics stay in the example) or batch (BatchNorm, whose running statistics
            travel with every update), where the model has norms.
    """

    name: str = "2nn"
    norm: str = "group"

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.norm not in ("group", "batch"):
            raise ValueError(f"model.norm: must be group or batch, got {self.norm!r}")

"""ResNet-18 for 32x32 images, and GroupNorm in place of BatchNorm."""

from __future__ import annotations

from torch import nn


def resnet18(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 with a stem for small images (He et al. 2016), 3x3 stride 1, no pool: 11.17 M weights."""
    return _with_small_stem("resnet18", input_shape, num_classes)


def resnet34(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The same of ResNet-34: 21.28 M weights."""
    return _with_small_stem("resnet34", input_shape, num_classes)


def _with_small_stem(name: str, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    import torchvision  # seconds, which runs of other models save

    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    model.conv1 = nn.Conv2d(input_shape[0], 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def with_group_norm(model: nn.Module, max_groups: int = 32) -> nn.Module:
    """Replace every BatchNorm2d of `model` in place by a GroupNorm (Wu & He 2018) of the same weights and bias.

    The number of groups is the largest divisor of the channels up to `max_groups`.
    """
    for path, child in list(model.named_modules(remove_duplicate=False)):
        if isinstance(child, nn.BatchNorm2d) and path:
            groups = max(g for g in range(1, max_groups + 1) if child.num_features % g == 0)
            norm = nn.GroupNorm(groups, child.num_features, eps=child.eps, affine=child.affine)
            if child.affine:
                norm.weight, norm.bias = child.weight, child.bias
            model.set_submodule(path, norm)
    return model

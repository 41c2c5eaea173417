"""ResNets for small images, and GroupNorm in place of BatchNorm."""

from __future__ import annotations

from torch import nn


def resnet8(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build the thin ResNet of He et al. 2016 for CIFAR with three blocks, of 16, 32 and 64 channels: 78 k weights."""
    from torchvision.models.resnet import BasicBlock

    def block(before: int, after: int, stride: int) -> nn.Module:
        shortcut = None
        if stride > 1:
            shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        return BasicBlock(before, after, stride, shortcut)

    model = nn.Sequential(
        nn.Conv2d(input_shape[0], 16, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        block(16, 16, 1),
        block(16, 32, 2),
        block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def resnet18(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build ResNet-18 (He et al. 2016) with a stem for small images, 3x3 of stride 1, no pool: 11.17 M weights."""
    return _with_small_stem("resnet18", input_shape, num_classes)


def resnet34(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build ResNet-34 with such a stem: 21.28 M weights."""
    return _with_small_stem("resnet34", input_shape, num_classes)


def _with_small_stem(name: str, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a ResNet of torchvision and replace its first layers."""
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
                norm.weight = child.weight
                norm.bias = child.bias
            model.set_submodule(path, norm)
    return model

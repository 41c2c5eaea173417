"""VGG for 32x32 images as in FLARE's runs (Greidi & Cohen 2024): without BatchNorm, with a 4096-4096 head."""

from __future__ import annotations

from torch import nn


def vgg11(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build configuration A of Simonyan & Zisserman 2015: 28,144,010 weights on CIFAR-10."""
    return _vgg("A", input_shape, num_classes)


def vgg16(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build configuration D: 33,638,218 weights on CIFAR-10."""
    return _vgg("D", input_shape, num_classes)


def vgg19(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build configuration E: 38,947,914 weights on CIFAR-10."""
    return _vgg("E", input_shape, num_classes)


def _vgg(configuration: str, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build the convolutions of torchvision, pooled to 1x1, and a head of 4096-4096 with dropout 0.5.

    Images are of 32x32 or more. Weights are He normal: without normalisation the deep ones would not start from
    PyTorch's default.
    """
    from torchvision.models import vgg  # seconds, which runs of other models save

    features = vgg.make_layers(vgg.cfgs[configuration])
    features[0] = nn.Conv2d(input_shape[0], 64, 3, padding=1)
    model = nn.Sequential(
        features,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, num_classes),
    )
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model

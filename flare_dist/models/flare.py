"""The fully connected and the convolutional model of FLARE (Greidi & Cohen 2024), as the authors' code builds them.

Weights are Glorot normal, biases zero, as in the runs that they logged.
"""

from __future__ import annotations

import math

from torch import nn


def flare_fc(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build 784-4069-4069-4069-10 without activations: a deep linear model of 36,356,525 weights on MNIST."""
    return _glorot_normal(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(input_shape), 4069),
            nn.Linear(4069, 4069),
            nn.Linear(4069, 4069),
            nn.Linear(4069, num_classes),
        )
    )


def flare_cnn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build two 5x5 convolutions of 32 and 64 channels, each with a pool, and 512 units: 582,026 weights on MNIST.

    It ends in a softmax although the loss applies another: scores lie in [0, 1] and the loss cannot fall below
    log(e + 9) - 1 = 1.46 for ten classes, hence the large learning rate of its published runs.
    """
    channels, height, width = input_shape
    features = 64 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
    return _glorot_normal(
        nn.Sequential(
            nn.Conv2d(channels, 32, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(features, 512),
            nn.ReLU(),
            nn.Linear(512, num_classes),
            nn.Softmax(dim=1),
        )
    )


def _glorot_normal(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model

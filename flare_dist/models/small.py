"""Small models of the federated-learning papers, for images of any size and number of channels.

Pools stand before the ReLUs that the papers put first: the function is the same, on a quarter of the entries.
"""

from __future__ import annotations

import math

from torch import Tensor, nn


def two_nn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build the 2NN of McMahan et al. 2017, two layers of 200 ReLUs: 784-200-200-10 with 199,210 weights on MNIST."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), 200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, num_classes),
    )


def cnn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build 5x5 convolutions of 16 and 32 channels, each with a pool, and a linear layer: 28,938 weights on MNIST."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), num_classes),
    )


class OverlappingMaxPool(nn.MaxPool2d):
    """Pool as MaxPool2d in half the time on a CPU: its kernel is fast if channels are innermost. The bits are equal."""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.is_cuda:
            return super().forward(inputs)
        innermost = inputs.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return super().forward(innermost).contiguous()


def mnist_net(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build the MNISTNet of FLASH (Babakniya et al. 2023): 261,840 weights on MNIST.

    It has 5x5 convolutions of 10 and 20 channels, each with a 3x3 pool of stride 1, and 50 units. It ends in a softmax
    although the loss applies another, as published.
    """
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 10, 5),
        OverlappingMaxPool(3, stride=1),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        OverlappingMaxPool(3, stride=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20 * (height - 12) * (width - 12), 50),
        nn.ReLU(),
        nn.Linear(50, num_classes),
        nn.Softmax(dim=1),
    )


def lenet(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling: 61,706 weights on MNIST, 62,006 on CIFAR-10.

    Images of 28x28 are padded to the 32x32 that it was drawn for.
    """
    channels, height, width = input_shape
    padding = 2 if height < 32 else 0
    features = 16 * (((height + 2 * padding - 4) // 2 - 4) // 2) * (((width + 2 * padding - 4) // 2 - 4) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(6, 16, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )

"""Models of the AdamW study: a GPT as nanoGPT's, an encoder that classifies sequences, and LoRA on linear layers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

LAYERS = 4
HEADS = 4
WIDTH = 128


class Block(nn.Module):
    """Apply attention and two linear layers, each behind a norm and beside a residual connection; no biases."""

    def __init__(self, width: int, heads: int, is_causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.is_causal = is_causal
        self.norm_1 = nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width, bias=False)
        self.norm_2 = nn.LayerNorm(width, bias=False)
        self.wide = nn.Linear(width, 4 * width, bias=False)
        self.narrow = nn.Linear(4 * width, width, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        batch, length, width = inputs.shape
        parts = self.query_key_value(self.norm_1(inputs)).view(batch, length, 3, self.heads, -1)
        query, key, value = parts.transpose(1, 3).unbind(2)  # each (batch, heads, length, width of a head)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        hidden = inputs + self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return hidden + self.narrow(F.gelu(self.wide(self.norm_2(hidden))))


class GPT(nn.Module):
    """Predict the next token: nanoGPT's model for a CPU, whose output layer is the embedding of tokens."""

    def __init__(self, vocabulary: int, block: int, width: int = WIDTH) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(block, width)
        self.blocks = nn.Sequential(*(Block(width, HEADS, is_causal=True) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(width, bias=False)
        initialise(self)

    def forward(self, codes: Tensor) -> Tensor:
        hidden = self.tokens(codes) + self.positions.weight[: codes.shape[1]]
        return F.linear(self.norm(self.blocks(hidden)), self.tokens.weight)


class Encoder(nn.Module):
    """Classify a sequence of vectors by the mean of what the blocks make of them."""

    def __init__(self, features: int, length: int, classes: int, width: int = WIDTH) -> None:
        super().__init__()
        self.inputs = nn.Linear(features, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, HEADS, is_causal=False) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(width, bias=False)
        self.classes = nn.Linear(width, classes)
        initialise(self)

    def forward(self, vectors: Tensor) -> Tensor:
        hidden = self.blocks(self.inputs(vectors) + self.positions.weight)
        return self.classes(self.norm(hidden).mean(1))


def initialise(model: nn.Module) -> None:
    """Draw weights as GPT-2 does; the layers that end a residual branch begin smaller, by the number of branches."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        is_last = name.endswith(("projection.weight", "narrow.weight"))
        nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if is_last else 0.02)


class LowRank(nn.Module):
    """Add a product of two thin matrices to a weight (Hu et al. 2021, LoRA); zero at first, scaled by 2."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 2 * self.up @ self.down


def add_lora(model: nn.Module, rank: int = 8) -> nn.Module:
    """Freeze a model and add LoRA to each of its linear layers; returns the model."""
    model.requires_grad_(False)
    for layer in [module for module in model.modules() if isinstance(module, nn.Linear)]:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return model

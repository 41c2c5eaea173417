"""Writers with words of their own train one model of characters, judged by perplexity; each writer is a client.

python language_model.py
torchrun --nproc_per_node 2 language_model.py   # any number of ranks, with the same bits
"""

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import flare_dist

WRITERS = {"Anna": "sea boat wind", "Ben": "road wheel dust", "Cleo": "star night moon", "Dai": "leaf tree rain"}
CONFIG = {
    "engine": {"threads": 1},  # a rank: on it the bits depend
    "rounds": 12,
    "output_dir": "runs/language_model",
    "checkpoint": {"resume": "never"},  # each start begins anew, since what is here may have been edited
    "data": {"partition": "natural"},
    "clients": {"num": "auto", "batch_size": 8, "optimizer": "adam", "lr": 0.01},
    "compression": {"sparsifier": "topk", "density": 0.1, "value_codec": "fp16"},
    "evaluation": {"by_group": True},
}


def sentences(seed: int, each: int, length: int = 40) -> flare_dist.Part:
    """Write tokens int64 [n, length], the next one of each as its label, and whose they are."""
    draws = random.Random(seed)
    writers = [writer for writer in WRITERS for _ in range(each)]
    words = [WRITERS[writer].split() for writer in writers]
    said = ["".join(f"the {draws.choice(own)} meets another. " for _ in range(length)) for own in words]
    tokens = torch.tensor([list(text[: length + 1].encode()) for text in said])
    return flare_dist.Part(TensorDataset(tokens[:, :-1], tokens[:, 1:]), groups=writers)


class Reader(nn.Module):
    """Guess each character from those before it: scores [b, 128, T] of tokens [b, T]."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.memory(self.embedding(tokens))[0]).movedim(-1, 1)


def show(row: dict[str, Any]) -> None:
    print(f"round {row['round']:2}  perplexity {row['test_perplexity']:.2f}  worst writer {row['worst_group_name']}")


if __name__ == "__main__":
    torch.manual_seed(0)
    data = flare_dist.Source(sentences(1, 40), sentences(2, 10), classes=128, task="next_token")
    flare_dist.train(CONFIG, data=data, model=Reader(), on_round=show)

"""The tasks of the AdamW study: the model, the examples of a step and those held out.

All ranks draw the whole batch of a step and each takes its part, so that any number of ranks sees the same examples.
"""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from adamw_models import GPT, Encoder, add_lora
from adamw_texts import BPE_VOCABULARY, CHARACTERS, by_character, by_pairs, shakespeare, standard_library
from PIL import Image
from torch import Tensor, nn

from flare_dist.models.resnet import resnet8
from flare_dist.seeding import generator

BLOCK = 64  # tokens of a sequence
HELD_OUT = 1024  # sequences or images, at most


class Examples(NamedTuple):
    """The examples of a task: `draw` takes a generator and a number of them; all are pairs of inputs and labels."""

    draw: Callable[[torch.Generator, int], tuple[Tensor, Tensor]]
    held_out: tuple[Tensor, Tensor]


class Task(NamedTuple):
    """What is learnt: cross-entropy of what the model gives, by the labels of its examples."""

    model: Callable[[Path], nn.Module]
    examples: Callable[[Path], Examples]
    batch: int  # of all ranks together
    made: Callable[[Path], object] | None = None  # what takes long and is the same for all runs: made once, in a file


def texts(codes: Tensor, held_out: int = HELD_OUT) -> Examples:
    """Cut a text into sequences: any of the first nine tenths to train, evenly spaced ones of the rest held out."""
    train, rest = codes[: len(codes) * 9 // 10], codes[len(codes) * 9 // 10 :]

    def windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        sequences = text[starts[:, None] + torch.arange(BLOCK + 1)]
        return sequences[:, :-1], sequences[:, 1:]

    def draw(draws: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        return windows(train, torch.randint(len(train) - BLOCK, (count,), generator=draws))

    count = min(held_out, (len(rest) - 1) // BLOCK)
    return Examples(draw, windows(rest, torch.linspace(0, len(rest) - BLOCK - 1, count).long()))


def images(inputs: Tensor, labels: Tensor, held_out: tuple[Tensor, Tensor]) -> Examples:
    """Draw from labelled images; means and deviations of all that are trained on become 0 and 1."""
    mean, std = inputs.mean(), inputs.std()
    normal = (inputs - mean) / std

    def draw(draws: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(normal), (count,), generator=draws)
        return normal[chosen], labels[chosen]

    return Examples(draw, ((held_out[0] - mean) / std, held_out[1]))


def characters(directory: Path) -> Examples:
    return texts(by_character(shakespeare(directory)))


def source_code(directory: Path) -> Examples:
    return texts(by_character(standard_library()))


def byte_pairs(directory: Path) -> Examples:
    return texts(torch.load(made_of("bpe_gpt", directory)))


def encoded_plays(directory: Path) -> Tensor:
    """Encode the plays by byte pairs learnt from the part that is trained on."""
    text = shakespeare(directory)
    return by_pairs(text, text[: len(text) * 9 // 10])


def digits(directory: Path) -> Examples:
    """Read MNIST as sequences of rows."""

    def read(name: str) -> Tensor:
        plain = directory / "MNIST" / "raw" / name
        content = plain.read_bytes() if plain.exists() else gzip.decompress(plain.with_name(f"{name}.gz").read_bytes())
        dimensions = np.frombuffer(content, ">i4", content[3], 4)
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(dimensions).copy())

    train, train_labels = read("train-images-idx3-ubyte"), read("train-labels-idx1-ubyte")
    test, test_labels = read("t10k-images-idx3-ubyte"), read("t10k-labels-idx1-ubyte")
    held_out = test[:HELD_OUT].float(), test_labels[:HELD_OUT].long()
    return images(train.float(), train_labels.long(), held_out)


def pictures(directory: Path) -> Examples:
    """Read some of CIFAR-10 from folders of classes: 1,000 images of each class to train, 200 held out."""

    def read(part: str, count: int) -> tuple[Tensor, Tensor]:
        classes = sorted((directory / "cifar10_jpeg" / part).iterdir())
        files = [path for folder in classes for path in sorted(folder.iterdir())[:count]]
        pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files])
        labels = [number for number, folder in enumerate(classes) for _ in sorted(folder.iterdir())[:count]]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), torch.tensor(labels)

    return images(*read("train", 1000), read("test", 200))


def fine_tuned(directory: Path) -> nn.Module:
    """Take the GPT that was trained on source code, and add LoRA."""
    model = character_model(directory)
    model.load_state_dict(torch.load(made_of("plays_lora", directory)))
    return add_lora(model)


def trained_on_source_code(directory: Path, steps: int = 2000, lr: float = 4e-3) -> dict[str, Tensor]:
    """Train the GPT that LoRA starts from, in this process."""
    torch.manual_seed(0)
    model = character_model(directory)
    optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.99), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, cycle_momentum=False)
    examples = source_code(directory)
    for step in range(steps):
        inputs, labels = examples.draw(generator(0, "batch to begin with", step), 24)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
        schedule.step()
    return model.state_dict()


def character_model(directory: Path) -> nn.Module:
    return GPT(len(CHARACTERS), BLOCK)


TASKS = {
    "char_gpt": Task(character_model, characters, batch=24),
    "bpe_gpt": Task(lambda _: GPT(BPE_VOCABULARY, BLOCK), byte_pairs, batch=24, made=encoded_plays),
    "source_gpt": Task(character_model, source_code, batch=24),
    "digits_encoder": Task(lambda _: Encoder(28, 28, 10), digits, batch=48),
    "plays_lora": Task(fine_tuned, characters, batch=24, made=trained_on_source_code),
    "pictures_resnet": Task(lambda _: resnet8((3, 32, 32), 10), pictures, batch=64),
}


@functools.cache
def examples_of(task: str, directory: Path) -> Examples:
    """Read the examples of a task once in a process."""
    return TASKS[task].examples(directory)


def prepare(task: str, directory: Path) -> None:
    """Make the file that a task needs if it is missing; in one step, so that a kill leaves it whole or missing."""
    make, path = TASKS[task].made, made_of(task, directory)
    if make and not path.exists():
        path.parent.mkdir(exist_ok=True)
        torch.save(make(directory), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)


def made_of(task: str, directory: Path) -> Path:
    return directory / "adamw" / f"{task}.pt"

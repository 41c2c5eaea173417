"""The file of the AdamW study: a row for each run that is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """What is compared on a task, at any learning rate."""

    task: str
    way: str
    ranks: int = 2
    density: float = 1.0
    value_codec: str = "fp32"
    beta1: float = 0.9
    beta2: float = 0.99
    settings: str = ""  # more keys of the hook: "scope=global update_clip=inf"
    steps: int = 1000


@dataclass(frozen=True)
class Run:
    """One training run of a setting."""

    setting: Setting
    lr: float
    seed: int


@dataclass(frozen=True)
class Row:
    """A run and what it gave: loss and accuracy on the held-out examples after the last step."""

    run: Run
    loss: float  # inf if it diverged
    accuracy: float
    wire_bytes: float  # a step, over all ranks
    seconds: float
    cpu_seconds: float  # of all ranks together, whatever else the machine was doing
    torch: str

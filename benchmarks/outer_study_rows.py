"""The file of the study of outer steps: a row for each run that is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """What is compared, at any rates."""

    method: str
    every: int = 30  # steps of a window; 1 for what exchanges gradients
    width: int = 136  # of the GPT
    settings: str = ""  # more keys of the exchange: "density=0.0625 value_codec=fp32"
    replicas: int = 4
    steps: int = 2610


@dataclass(frozen=True)
class Run:
    """One training run of a setting."""

    setting: Setting
    lr: float  # the highest of the inner optimizer
    outer_lr: float  # 0 if there is no outer optimizer
    seed: int


@dataclass(frozen=True)
class Row:
    """A run and what it gave: losses on held-out text after the last step, and what it cost."""

    run: Run
    parameters: int
    tokens: int  # of all replicas together
    validation_loss: float  # which chooses rates; inf if it diverged
    test_loss: float
    wire_bytes: int  # of the run, over all replicas
    collectives: int
    cpu_seconds: float  # of training on all replicas together, whatever else the machine was doing
    seconds: float
    torch: str

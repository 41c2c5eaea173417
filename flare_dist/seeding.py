"""Randomness without state: every draw comes from a generator that is derived from its purpose.

A generator is a pure function of (seed, purpose, round, client), so nothing random needs saving, and a client draws the
same numbers whichever rank hosts it and however often the run was interrupted.

A user's model may draw from generators that everybody shares: torch's, numpy's and Python's `random`. All three are
seeded before it is built, trained or evaluated, and what the caller had in them is given back afterwards.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

CPU = torch.device("cpu")


def derive_seed(seed: int, purpose: str, round_: int = 0, client: int = 0) -> int:
    """Derive a 63-bit seed for one purpose, e.g. derive_seed(0, "shuffle", round_=3, client=17)."""
    key = f"{seed}/{purpose}/{round_}/{client}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed the generators that a model may draw from: torch's of the CPU and of `device`, numpy's and Python's.

    torch.manual_seed would seed all devices, but it records its caller's stack for each kind that was never used, which
    takes a fifth of the time of a local step of a small model.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # it takes no more bits at once
    random.seed(seed)


@contextmanager
def draws_kept(device: torch.device = CPU) -> Iterator[None]:
    """Restore the shared generators after the block, those of `device` among them, to their state before it."""
    gpus: list[torch.device | int] = [device] if device.type == "cuda" else []
    if torch.cuda.is_initialized():
        gpus = list(range(torch.cuda.device_count()))
    of_python = random.getstate()
    of_numpy = np.random.get_state()
    with torch.random.fork_rng(gpus):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Let a model draw from this seed within the block, on the CPU and on `device`; the caller's draws are kept."""
    with draws_kept(device):
        seed_draws(seed, device)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
        yield


def states_outside_torch() -> tuple[object, ...]:
    """Return the states of numpy's and Python's shared generators, to compare: torch itself tells if it draws."""
    name, key, *rest = np.random.get_state()
    return random.getstate(), name, np.asarray(key).tobytes(), *rest


def generator(seed: int, purpose: str, round_: int = 0, client: int = 0) -> torch.Generator:
    """Make a generator seeded by `derive_seed`; on the CPU, so that draws do not depend on the device."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, round_, client))

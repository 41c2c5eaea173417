"""Randomness without state: every draw comes from a generator derived from what it is for.

A generator is a pure function of (seed, purpose, round, client), so nothing random needs saving, and a client draws the
same numbers whichever rank hosts it and however often the run was interrupted.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, purpose: str, round_: int = 0, client: int = 0) -> int:
    """A 63-bit seed for one purpose, e.g. derive_seed(0, "shuffle", round_=3, client=17)."""
    key = f"{seed}/{purpose}/{round_}/{client}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed what a model draws on `device`, as torch.manual_seed does on all devices.

    For each kind of device that was never used torch writes its caller's stack down, a fifth of the time that a local
    step of a small model takes.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def generator(seed: int, purpose: str, round_: int = 0, client: int = 0) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`; CPU on purpose, so that draws do not depend on the device."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, round_, client))

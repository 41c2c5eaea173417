"""Agreement of all ranks on the model: they begin with rank 0's, and each checkpoint verifies that they hold it.

The seed alone does not give the same first weights everywhere: a model may draw them from a generator that nobody can
seed, or on another kind of processor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from flare_dist.comm.world import World
from flare_dist.fixed import base_digest, fixed_of
from flare_dist.units import show_numbered


def share_start(world: World, model: nn.Module) -> None:
    """Overwrite the parameters and buffers of `model` with rank 0's, constants and counters among them.

    A frozen base that is the same everywhere, by its digest, does not travel.

    All ranks call it together, before the first round, to which its bytes do not count. Raises ValueError on all of
    them if the tensors are not the same in number, name, shape or dtype.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    forms = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors]
    others = different_ranks(world, [repr(forms).encode()])
    if others:
        raise ValueError(
            f"model.name: {show_numbered('rank', others)} built parameters or buffers of other names, shapes or dtypes "
            "than rank 0; a model may depend on the data's shape alone"
        )
    base = fixed_of(model).base
    if base and not different_ranks(world, [str(base_digest(model)).encode()]):
        tensors = [(name, tensor) for name, tensor in tensors if name not in base]  # all have it already
    for _, tensor in tensors:
        own = _bytes_of(tensor)
        shared = world.broadcast_to_all_(own.clone())
        if not torch.equal(own, shared):
            tensor.detach().copy_(shared.view(tensor.dtype).view(tensor.shape))


def check_alike(round_: int, world: World, held: Sequence[Tensor]) -> None:
    """Raise ValueError on all ranks if one holds other vectors than rank 0; all ranks call it together."""
    if not held:
        return
    others = different_ranks(world, (_bytes_of(vector).cpu().numpy().data for vector in held), world.host.shards)
    if others:
        raise ValueError(
            f"checkpoint: after round {round_} {show_numbered('rank', others)} held other parameters or buffers than "
            "rank 0, so it is not written; if the machines have different processors or versions, give all ranks the "
            "same versions and ATEN_CPU_CAPABILITY=default (the same command goes on from the checkpoint before)"
        )


def different_ranks(world: World, parts: Iterable[bytes | memoryview], shards: int = 1) -> list[int]:
    """Find the ranks whose `parts` have other bytes than rank 0's, or than those of its host for the same of `shards`.

    By a hash of 62 bits, in a control message.
    """
    if world.size == 1:
        return []
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    halves = [0.0] * (2 * world.size)  # each rank's in its own place; a float64 holds them exactly
    own = int.from_bytes(digest.digest(), "little") >> 2
    halves[2 * world.rank : 2 * world.rank + 2] = [float(own >> 31), float(own & (2**31 - 1))]
    found = world.largest(halves)
    hashes = [found[2 * rank : 2 * rank + 2] for rank in range(world.size)]
    return [rank for rank, own_hash in enumerate(hashes) if own_hash != hashes[rank % shards]]


def _bytes_of(tensor: Tensor) -> Tensor:
    """View a tensor of any dtype as flat bytes, uint8; a copy if it does not lie in one piece."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)

"""The encoding of sparse payloads.

Some tensors are sent whole in every payload, so that only their values need to travel; of the others the chosen
positions travel as well:

    | chosen indices, by an index codec | values of the chosen and of the whole tensors, by a value codec |

How long that is follows from the number of entries alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flare_dist.compression.index_codecs import IndexCodec, check_indices, smallest
from flare_dist.compression.payload import WORD, Encoded, Sparse, check_positions
from flare_dist.compression.value_codecs import Groups, ValueCodec
from flare_dist.devices import moved_unwaited
from flare_dist.layout import Entry, ParameterLayout


class Encoding(Protocol):
    """A way to read the payloads of a sender."""

    def length(self, data: Tensor, kept: int) -> int:
        """Return the length of the payload of `kept` entries at the front of `data`, uint8."""

    def unpack(self, data: Tensor, kept: int) -> Encoded:
        """Decode that payload; its positions are not checked."""

    def unpack_checked(self, data: Tensor, kept: int) -> Encoded:
        """Decode that payload; raises ValueError if `data` holds none. Waits for a GPU."""


class Codecs(NamedTuple):
    """The codecs of a packing."""

    indices: tuple[IndexCodec, ...]  # of which the smallest is taken
    values: ValueCodec
    value_block: int  # values that share a table; 0 = those of a tensor


class HasCodecs(Protocol):
    """The part of the compression's configuration that a packing reads."""

    @property
    def codecs(self) -> Codecs: ...


@dataclass(frozen=True)
class Packing:
    """The encoding of payloads of one layout; `whole` are the positions (int64, ascending) that all of them hold."""

    codecs: Codecs
    total: int
    whole: Tensor
    ends: Tensor  # int64: where each tensor ends, for those value codecs that have a table for each

    @staticmethod
    def of(config: HasCodecs, layout: ParameterLayout, whole: Sequence[Entry], device: torch.device) -> Packing:
        """Make the packing of a layout whose tensors `whole` are always sent.

        Raises ValueError if positions in the layout do not fit into int32.
        """
        check_positions(layout.total, "one vector")
        positions = [torch.arange(entry.offset, entry.end) for entry in whole]
        always = torch.cat([torch.empty(0, dtype=torch.int64), *positions])
        ends = torch.tensor([entry.end for entry in layout.entries])
        return Packing(config.codecs, layout.total, moved_unwaited(always, device), moved_unwaited(ends, device))

    def sizes(self, kept: int) -> Sizes:
        """Size a payload of `kept` entries, those that are always sent included.

        Raises ValueError if a payload cannot have so many.
        """
        return sizes_of(self.codecs, self.ends.numel(), self.total, self.whole.numel(), kept)

    def length(self, data: Tensor, kept: int) -> int:
        """Return the length of the payload of `kept` entries at the front of `data`, which does not matter here."""
        return self.sizes(kept).nbytes

    def most_nbytes(self, kept: int) -> int:
        """Bound a payload of at most `kept` entries: fewer may take a byte or two more, being rounded."""
        return self.sizes(kept).nbytes + WORD

    def tensors_of(self, indices: Tensor) -> Tensor:
        """Return the number of the tensor that each index lies in, int64; one more than there are behind the end."""
        return torch.bucketize(indices, self.ends, right=True)

    def pack(self, indices: Tensor, values: Tensor, draws: Tensor | None = None) -> Sparse:
        """Encode `values` (float32 [kept]) at these `indices`: those chosen (ascending, none whole), then `whole`.

        Its values are those that a receiver decodes. With `draws`, uniform in [0, 1) for each of them, a value between
        two levels of a codec is rounded at random.
        """
        chosen = indices[: indices.numel() - self.whole.numel()]
        codec = self.codecs.values
        groups = self._grouped(indices)
        coded = codec.encode(values, groups, draws)
        parts = [coded]
        if chosen.numel():
            parts = [self.sizes(indices.numel()).index_codec.encode(chosen, self.total), coded]
        # To narrow them would be a launch on a GPU, and to widen them again another.
        return Sparse(indices if indices.is_cuda else indices.int(), codec.decode(coded, groups), torch.cat(parts))

    @property
    def looks_at_draws(self) -> bool:
        """Tell if `pack` makes anything of its draws."""
        return self.codecs.values.looks_at_draws

    def unpack(self, data: Tensor, kept: int) -> Sparse:
        """Decode the payload of `kept` entries in `data`, uint8 [nbytes]; its indices are not looked at."""
        chosen = kept - self.whole.numel()
        sizes = self.sizes(kept)
        coded, values = data.split([sizes.index_nbytes, data.numel() - sizes.index_nbytes])
        indices = self.whole
        if chosen:
            indices = torch.cat([sizes.index_codec.decode(coded, self.total, chosen), self.whole])
        decoded = self.codecs.values.decode(values, self._grouped(indices))
        return Sparse(indices.int(), decoded, data)

    def unpack_rows(self, data: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Decode payloads of `kept` entries, uint8 [rows, nbytes]: their positions, integers [rows, kept], and values.

        With codecs that take rows the number of operations does not depend on how many rows there are.
        """
        sizes = self.sizes(kept)
        codec = self.codecs.values
        if not (sizes.index_codec.takes_rows and codec.takes_rows):
            payloads = [self.unpack(row, kept) for row in data]
            positions = torch.stack([payload.indices for payload in payloads])
            return positions, torch.stack([payload.values for payload in payloads])
        chosen = kept - self.whole.numel()
        coded, values = data.split([sizes.index_nbytes, sizes.nbytes - sizes.index_nbytes], -1)
        indices = self.whole.expand(len(data), -1)
        if chosen:
            decoded = sizes.index_codec.decode(coded, self.total, chosen)
            indices = torch.cat([decoded, indices], -1) if self.whole.numel() else decoded
        return indices, codec.decode(values, self._grouped(indices))

    def unpack_checked(self, data: Tensor, kept: int) -> Sparse:
        """Decode data that may be broken; waits for a GPU. Raises ValueError if it holds no such payload."""
        nbytes = self.sizes(kept).nbytes
        if data.numel() != nbytes:
            raise ValueError(f"a payload of {kept} entries has {nbytes} bytes, not {data.numel()}")
        payload = self.unpack(data, kept)
        check_indices(payload.indices[: kept - self.whole.numel()], self.total)
        return payload

    def _grouped(self, indices: Tensor) -> Groups:
        """Return the group of each entry; nothing if the codec does not look at it."""
        kept = indices.shape[-1]
        if not self.codecs.values.looks_at_groups:
            return Groups(self.ends.new_empty(0), 0)
        if self.codecs.value_block:
            of = torch.arange(kept, device=indices.device).expand_as(indices) // self.codecs.value_block
        else:
            of = self.tensors_of(indices.long()).clamp_(max=self.ends.numel() - 1)  # those that came may be damaged
        return Groups(of, count_tables(self.codecs.value_block, self.ends.numel(), kept))


class Sizes(NamedTuple):
    """The parts of a payload with a given number of entries."""

    index_codec: IndexCodec
    index_nbytes: int
    nbytes: int  # of indices and values


@lru_cache(maxsize=256)  # of a run's few layouts and densities
def sizes_of(codecs: Codecs, tensors: int, total: int, whole: int, kept: int) -> Sizes:
    """Size a payload of `kept` entries, of which `whole` are always sent, of a vector of `total` in so many tensors.

    Raises ValueError if a payload cannot have so many.
    """
    chosen = kept - whole
    if not 0 <= chosen <= total:
        raise ValueError(f"{kept} of {total} entries make no payload ({whole} are always sent)")
    codec = smallest(codecs.indices, total, chosen)
    index_nbytes = codec.nbytes(total, chosen) if chosen else 0
    value_nbytes = codecs.values.nbytes(kept, count_tables(codecs.value_block, tensors, kept))
    return Sizes(codec, index_nbytes, index_nbytes + value_nbytes)


def count_tables(value_block: int, tensors: int, kept: int) -> int:
    """Count the tables of levels of a value codec: one for each block of values, or for each tensor."""
    return -(-kept // value_block) if value_block else tensors

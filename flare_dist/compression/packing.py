"""The encoding of sparse payloads.

Some tensors are sent whole in every payload, so that only their values need to travel; of the others the chosen
positions travel as well:

    | chosen indices, by an index codec | values of the chosen and of the whole tensors, by a value codec |

How long that is follows from the number of entries alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flare_dist.compression.index_codecs import IndexCodec, check_indices, index_codec
from flare_dist.compression.payload import WORD, Encoded, Sparse, check_positions
from flare_dist.compression.value_codecs import VALUE_CODECS, Groups
from flare_dist.layout import Entry, ParameterLayout


class Encoding(Protocol):
    """A way to read the payloads of a sender."""

    def length(self, data: Tensor, kept: int) -> int:
        """Return the length of the payload of `kept` entries at the front of `data`, uint8."""

    def unpack(self, data: Tensor, kept: int) -> Encoded:
        """Decode that payload; its positions are not checked."""

    def unpack_checked(self, data: Tensor, kept: int) -> Encoded:
        """Decode that payload; raises ValueError if `data` holds none. Waits for a GPU."""


class Codecs(Protocol):
    """The part of the compression's configuration that a packing reads."""

    @property
    def index_codec(self) -> str: ...

    @property
    def block(self) -> int: ...

    @property
    def value_codec(self) -> str: ...

    @property
    def value_block(self) -> int: ...


@dataclass(frozen=True)
class Packing:
    """The encoding of payloads of one layout; `whole` are the positions (int64, ascending) that all of them hold."""

    codecs: Codecs
    total: int
    whole: Tensor
    ends: Tensor  # int64: where each tensor ends, for those value codecs that have a table for each

    @staticmethod
    def of(codecs: Codecs, layout: ParameterLayout, whole: Sequence[Entry], device: torch.device) -> Packing:
        """Make the packing of a layout whose tensors `whole` are always sent.

        Raises ValueError if positions in the layout do not fit into int32.
        """
        check_positions(layout.total, "one vector")
        positions = [torch.arange(entry.offset, entry.end) for entry in whole]
        always = torch.cat([torch.empty(0, dtype=torch.int64), *positions])
        ends = torch.tensor([entry.end for entry in layout.entries])
        return Packing(codecs, layout.total, always.to(device), ends.to(device))

    def nbytes(self, kept: int) -> int:
        """Return the length of a payload of `kept` entries, those that are always sent included.

        Raises ValueError if a payload cannot have so many.
        """
        chosen = kept - self.whole.numel()
        if not 0 <= chosen <= self.total:
            raise ValueError(f"{kept} of {self.total} entries make no payload ({self.whole.numel()} are always sent)")
        return self._index_nbytes(chosen) + VALUE_CODECS[self.codecs.value_codec].nbytes(kept, self._groups(kept))

    def length(self, data: Tensor, kept: int) -> int:
        """Return the length of the payload of `kept` entries at the front of `data`, which does not matter here."""
        return self.nbytes(kept)

    def most_nbytes(self, kept: int) -> int:
        """Bound a payload of at most `kept` entries: fewer may take a byte or two more, being rounded."""
        return self.nbytes(kept) + WORD

    def indices(self, chosen: Tensor) -> Tensor:
        """Return the positions of a payload: those `chosen` (ascending, none of them in `whole`) and then `whole`."""
        return torch.cat([chosen, self.whole])

    def tensors_of(self, indices: Tensor) -> Tensor:
        """Return the number of the tensor that each index lies in, int64."""
        return torch.bucketize(indices, self.ends, right=True).clamp_(max=self.ends.numel() - 1)

    def pack(self, indices: Tensor, values: Tensor, draws: Tensor | None = None) -> Sparse:
        """Encode `values` (float32 [kept]) at these `indices`, as the method of that name gives them.

        Its values are those that a receiver decodes. With `draws`, uniform in [0, 1) for each of them, a value between
        two levels of a codec is rounded at random.
        """
        chosen = indices[: indices.numel() - self.whole.numel()]
        codec, groups = VALUE_CODECS[self.codecs.value_codec], self._grouped(indices)
        coded = codec.encode(values, groups, draws)
        parts = [coded]
        if chosen.numel():
            parts = [self._index_codec(chosen.numel()).encode(chosen, self.total), coded]
        return Sparse(indices.int(), codec.decode(coded, groups), torch.cat(parts))

    def unpack(self, data: Tensor, kept: int) -> Sparse:
        """Decode the payload of `kept` entries in `data`, uint8 [nbytes(kept)]; its indices are not looked at."""
        chosen = kept - self.whole.numel()
        index_nbytes = self._index_nbytes(chosen)
        coded, values = data.split([index_nbytes, data.numel() - index_nbytes])
        indices = self.whole
        if chosen:
            indices = self.indices(self._index_codec(chosen).decode(coded, self.total, chosen))
        decoded = VALUE_CODECS[self.codecs.value_codec].decode(values, self._grouped(indices))
        return Sparse(indices.int(), decoded, data)

    def unpack_checked(self, data: Tensor, kept: int) -> Sparse:
        """Decode data that may be broken; waits for a GPU. Raises ValueError if it holds no such payload."""
        if data.numel() != self.nbytes(kept):
            raise ValueError(f"a payload of {kept} entries has {self.nbytes(kept)} bytes, not {data.numel()}")
        payload = self.unpack(data, kept)
        check_indices(payload.indices[: kept - self.whole.numel()], self.total)
        return payload

    def _index_codec(self, chosen: int) -> IndexCodec:
        return index_codec(self.codecs.index_codec, self.total, chosen, self.codecs.block)

    def _index_nbytes(self, chosen: int) -> int:
        return self._index_codec(chosen).nbytes(self.total, chosen) if chosen else 0

    def _groups(self, kept: int) -> int:
        """Count the tables."""
        return -(-kept // self.codecs.value_block) if self.codecs.value_block else self.ends.numel()

    def _grouped(self, indices: Tensor) -> Groups:
        """Return the table of each entry; nothing if the codec has none."""
        kept = indices.numel()
        if not VALUE_CODECS[self.codecs.value_codec].table:
            return Groups(self.ends.new_empty(0), 0)
        if self.codecs.value_block:
            of = torch.arange(kept, device=indices.device) // self.codecs.value_block
        else:
            of = self.tensors_of(indices)
        return Groups(of, self._groups(kept))

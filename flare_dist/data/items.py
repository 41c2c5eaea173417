"""A Dataset that is read example by example, and what is known of its examples without reading them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from torch import Tensor

from flare_dist.data.source import Collate, Name, Readable
from flare_dist.errors import printable


@dataclass(frozen=True)
class Items:
    """Hold n examples that are read when they are needed."""

    data: Readable
    where: str  # begins errors, e.g. "data: train"
    collate: Collate
    groups: Tensor | None = None  # int64 [n], the natural client of each example
    group_names: tuple[Name, ...] = ()  # of the groups 0, 1, …
    strata: Tensor | None = None  # integers [n], the classes by which partitions divide
    chosen: Tensor | None = None  # int64 [n], the indices in `data`; None = all of them, in order
    _n: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Count the examples once: partitions, groups and labels are of so many, whatever `data` says later."""
        object.__setattr__(self, "_n", len(self.data) if self.chosen is None else len(self.chosen))

    def __len__(self) -> int:
        return self._n

    def index(self, number: int) -> int:
        """Return the index in `data` of example `number`."""
        return number if self.chosen is None else int(self.chosen[number])

    def name(self, number: int) -> str:
        """Name an example by its index, and its group if it has one, for logs and errors."""
        group = "" if self.groups is None else f" (group {printable(str(self.group_names[int(self.groups[number])]))})"
        return f"example {self.index(number)}{group}"

    def subset(self, indices: Tensor) -> Items:
        """Choose the examples at `indices`, int64 [m], in that order."""
        return dataclasses.replace(
            self,
            groups=None if self.groups is None else self.groups[indices],
            strata=None if self.strata is None else self.strata[indices],
            chosen=indices if self.chosen is None else self.chosen[indices],
        )

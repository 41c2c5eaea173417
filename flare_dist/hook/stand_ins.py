"""Stand-ins for weights that lie elsewhere: the exchange learns their names, shapes and device from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn


class StandIns(nn.Module):
    """Parameters under their names in a model, of which they may be one rank's shards; they take no memory.

    By rows however the weights lie in memory, as what is sent of them is.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], device: torch.device) -> None:
        super().__init__()
        one = torch.empty((), device=device)
        self.by_name = {name: nn.Parameter(one.expand(torch.Size(shape))) for name, shape in shapes.items()}

    def named_parameters(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the names as they are in the model, with their dots."""
        yield from self.by_name.items()

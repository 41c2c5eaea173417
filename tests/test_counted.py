"""Counted batches are the batches themselves, and their bytes are those of their tensors."""

from __future__ import annotations

import io
from typing import Any

import torch
from rich.console import Console

from flare_dist.data.batches import BatchSource
from flare_dist.data.examples import Examples
from flare_dist.progress import Steps
from flare_dist.run.counted import Counted, bytes_of


def test_batches_are_those_of_the_source_and_are_counted() -> None:
    examples = Examples(torch.arange(10.0).view(10, 1), torch.zeros(10, dtype=torch.int64), as_is=True)
    source = BatchSource(examples, torch.empty(0), torch.empty(0), "cpu")
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Steps("batches", 3, console, at_once=True) as shown:
        counted = Counted(source, shown)
        assert len(counted) == 10
        found: list[Any] = list(counted.batches(None, 4, None))
    expected: list[Any] = list(source.batches(None, 4, None))
    assert [len(batch[1]) for batch in found] == [4, 4, 2]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(found, expected))
    assert isinstance(console.file, io.StringIO)
    assert "3/3" in console.file.getvalue()


def test_bytes_are_added_up_in_any_nesting() -> None:
    one = torch.zeros(5, dtype=torch.float32)
    assert bytes_of({"a": one, "b": [one, (one, "text")]}) == 60
    assert bytes_of(3) == 0

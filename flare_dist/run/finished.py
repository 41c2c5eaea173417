"""A finished run: its rows, its summary, its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from flare_dist.config.config import Config
from flare_dist.config.load import load_config
from flare_dist.errors import not_installed
from flare_dist.given import given
from flare_dist.records.clients_log import read_clients
from flare_dist.records.metrics import read_rows
from flare_dist.records.rundir import CONFIG, find_model, read_summary
from flare_dist.run.formats import read_saved


@dataclass(frozen=True)
class FinishedRun:
    """A run in its directory; `objects` are those that it was given from Python, by dotted key."""

    directory: Path
    objects: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Read the rows of metrics.jsonl, one a round."""
        return read_rows(self.directory)

    @property
    def clients(self) -> list[dict[str, Any]]:
        """Read the lines of clients.jsonl, one for each client of each round."""
        return read_clients(self.directory)

    @property
    def summary(self) -> dict[str, Any]:
        """Read summary.json; ValueError if the run is not finished."""
        summary = read_summary(self.directory)
        if summary is None:
            raise ValueError(f"run: {self.directory} is not finished; flare_dist.train(run) goes on with it")
        return summary

    @cached_property
    def config(self) -> Config:
        """Read the resolved configuration."""
        with given(self.objects):
            return load_config(self.directory / CONFIG)

    def frame(self) -> Any:
        """Return the rows as a pandas.DataFrame, a column for each key."""
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise not_installed("run.frame", "pandas", "pandas") from error
        return pandas.DataFrame(self.metrics)

    def model(self, which: str = "final") -> nn.Module:
        """Build the model with the weights that the run saved, `final` or `best`, on the CPU and in evaluation mode."""
        with given(self.objects):
            return read_saved(self.directory, find_model(self.directory, which, "run.model")).model

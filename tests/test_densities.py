"""Layer densities are read from metrics.jsonl, and damaged ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from flare_dist.analysis.densities import read_densities
from tests.helpers.run_logs import write_run


@pytest.mark.parametrize("damage", ['{"a": 1.0}', '{"a": 1.0, "b": "?"}', "[0.5]"])
def test_damaged_densities_are_refused_with_the_path(tmp_path: Path, damage: str) -> None:
    directory = write_run(tmp_path / "run", layer_densities={"a": 1.0, "b": 0.5})
    assert read_densities(directory).rounds[-1] == (3, [1.0, 0.5])
    path = directory / "metrics.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:3], rows[3].replace('{"a": 1.0, "b": 0.5}', damage)]) + "\n")
    with pytest.raises(ValueError, match=rf"^densities: {path} has a damaged line"):
        read_densities(directory)

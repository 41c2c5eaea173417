"""Layer densities are read from metrics.jsonl, logged and plotted, and damaged ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flare_dist.analysis.bandwidth import totals
from flare_dist.analysis.densities import read_densities
from flare_dist.analysis.run_logs import read_run
from flare_dist.cli import main
from tests.helpers.extras import needs
from tests.helpers.masks import BASE
from tests.helpers.run_logs import write_run
from tests.helpers.sparse_runs import checkpointed


@pytest.mark.parametrize("damage", ['{"a": 1.0}', '{"a": 1.0, "b": "?"}', "[0.5]"])
def test_damaged_densities_are_refused_with_the_path(tmp_path: Path, damage: str) -> None:
    directory = write_run(tmp_path / "run", layer_densities={"a": 1.0, "b": 0.5})
    assert read_densities(directory).rounds[-1] == (3, [1.0, 0.5])
    path = directory / "metrics.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:3], rows[3].replace('{"a": 1.0, "b": 0.5}', damage)]) + "\n")
    with pytest.raises(ValueError, match=rf"^densities: {path} has a damaged line"):
        read_densities(directory)


@needs("plots")
def test_logs_and_the_plot_show_the_density_of_every_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = checkpointed(tmp_path / "run", BASE)
    events = EventAccumulator(str(directory)).Reload()
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for layer in ("3.weight", "7.weight"):
        logged = [event.value for event in events.Scalars(f"density/{layer}")]
        assert logged == pytest.approx([row["layer_densities"][layer] for row in rows])
    assert [event.value for event in events.Scalars("masks/mask_mismatch")][1:] == pytest.approx(
        [row["mask_mismatch"] for row in rows[1:]]
    )
    assert [event.value for event in events.Scalars("bytes/mask")][1:] == [row["mask_bytes"] for row in rows[1:]]
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["uplink_bytes"] == sum(row["uplink_bytes"] for row in rows)  # stage 1 among them
    assert main(["densities", str(directory)]) == 0
    shown = capsys.readouterr().out
    assert "3.weight" in shown
    assert f"{rows[-1]['layer_densities']['7.weight']:.4f}" in shown
    assert (directory / "densities.png").stat().st_size > 10_000
    assert totals(read_run(directory, {}), [], "ranks", None).rounds == 3  # stage 1 is none
    assert main(["densities", str(tmp_path)]) == 2

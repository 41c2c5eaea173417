"""Which run a command continues, and which settings may change on the way."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from flare_dist.clients.config import ClientsConfig
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import CheckpointConfig
from flare_dist.config.load import load_config
from flare_dist.models.config import ModelConfig
from flare_dist.records import resume, rundir
from flare_dist.server.config import ServerConfig
from tests.helpers.masks import BASE, config
from tests.helpers.runs import assert_same_run, results, start, tiny
from tests.helpers.sparse_runs import checkpointed


def test_a_changed_configuration_is_refused_with_the_keys(straight: Path) -> None:
    changed = tiny(straight, clients=ClientsConfig(num=5, per_round=3, batch_size=8, lr=0.01, lr_schedule="cosine"))
    with pytest.raises(ValueError, match=r"clients\.lr: .* another configuration \(different: clients\.lr\)"):
        start(changed)


def test_keys_that_an_older_version_did_not_have_are_no_change(straight: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(straight, tmp_path / "copy")
    saved = yaml.safe_load((copy / "config.yaml").read_text())
    del saved["compression"]["dense_below"], saved["data"]["normalize"]
    (copy / "config.yaml").write_text(yaml.safe_dump(saved))
    resume.resolve(tiny(copy), 1)
    with pytest.raises(ValueError, match=r"different: compression\.dense_below"):
        resume.resolve(tiny(copy, compression=dataclasses.replace(tiny(copy).compression, dense_below=5)), 1)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("name", ["2nn", "tests.helpers.rounds:norm_net"])
def test_a_run_of_an_older_version_goes_on_with_its_norms(name: str, norm: str, tmp_path: Path) -> None:
    """Its configuration says group, the default of then, or batch; the command that continues it says nothing."""
    config = tiny(tmp_path / "run", model=ModelConfig(name, norm=norm))
    straight_through = dataclasses.replace(config, output_dir=str(tmp_path / "straight"))
    start(straight_through)
    start(config, kill_in_round=5)
    written = tmp_path / "run" / rundir.CONFIG
    saved = yaml.safe_load(written.read_text())
    saved["model"]["norm"] = norm
    del saved["clients"]["smallest_batch"]
    written.write_text(yaml.safe_dump(saved))
    start(dataclasses.replace(config, model=ModelConfig(name)))
    assert_same_run(tmp_path / "run", tmp_path / "straight")
    assert ("1.running_mean" in load_file(tmp_path / "run" / rundir.MODEL)) == (name != "2nn" and norm == "batch")


def test_repeating_the_command_that_continues_another_run_continues_it(straight: Path, tmp_path: Path) -> None:
    longer = tiny(tmp_path, rounds=9, checkpoint=CheckpointConfig(every=2, resume=str(straight)))
    start(longer, kill_in_round=9)
    start(longer)
    assert [row["round"] for row in results(tmp_path)[1]] == list(range(10))


def test_resume_from_a_path_continues_another_run_under_a_changed_configuration(straight: Path, tmp_path: Path) -> None:
    source = shutil.copytree(straight, tmp_path / "source")
    longer = tiny(tmp_path / "longer", rounds=8, checkpoint=CheckpointConfig(every=2, resume=str(source)))
    start(longer)
    _, rows = results(tmp_path / "longer")
    assert [row["round"] for row in rows] == list(range(9))
    assert rows[:7] == results(straight)[1]
    other = dataclasses.replace(longer, checkpoint=CheckpointConfig(every=2, resume=str(straight)))
    with pytest.raises(ValueError, match=r"checkpoint\.resume: .* already holds a run"):
        start(other)


def test_fewer_rounds_than_the_other_run_has_played_are_refused(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rounds: .* has played 6 rounds already"):
        start(tiny(tmp_path, rounds=6, checkpoint=CheckpointConfig(resume=str(straight))))


def test_settings_of_optimizers_come_from_the_configuration_not_from_the_checkpoint(
    straight: Path, tmp_path: Path
) -> None:
    def last_model(name: str, **server: Any) -> dict[str, torch.Tensor]:
        resume = CheckpointConfig(every=2, resume=str(straight))
        start(tiny(tmp_path / name, rounds=8, server=ServerConfig(**server), checkpoint=resume))
        return load_file(tmp_path / name / "model.safetensors")

    same, other = last_model("same", momentum=0.5), last_model("other", momentum=0.9)
    assert not torch.equal(same["1.weight"], other["1.weight"])
    with pytest.raises(ValueError, match=r"server\.optimizer: the checkpoint holds the state of sgd, not of adam"):
        last_model("adam", optimizer="adam", lr=0.01)


def test_error_feedback_can_be_switched_on_or_off_in_a_continued_run(straight: Path, tmp_path: Path) -> None:
    resume = CheckpointConfig(every=2, resume=str(straight))
    start(tiny(tmp_path / "off", rounds=8, compression=CompressionConfig(sparsifier="dense"), checkpoint=resume))
    resume = CheckpointConfig(every=2, resume=str(tmp_path / "off"))
    start(tiny(tmp_path / "on", rounds=10, compression=CompressionConfig(density=0.02), checkpoint=resume))
    assert len(results(tmp_path / "on")[1]) == 11


def test_an_interrupted_sparse_run_cannot_go_on_as_a_dense_one_in_its_place(tmp_path: Path) -> None:
    directory = checkpointed(tmp_path / "run", dataclasses.replace(BASE, rounds=1))
    with pytest.raises(ValueError, match=r"sparse_training\.method"):
        checkpointed(directory, config(dataclasses.replace(BASE, rounds=1), method="dense"))
    assert load_config(directory / "config.yaml").sparse_training == BASE.sparse_training

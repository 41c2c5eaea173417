"""clients.num: auto is the number of natural groups, one client each in the order of their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import TensorDataset

from flare_dist import Part, Source
from flare_dist.cli import main
from flare_dist.clients.config import ClientsConfig
from flare_dist.config.config import Config, with_values
from flare_dist.data.config import DataConfig
from flare_dist.rounds.build_run import load_parts
from tests.helpers.extras import needs

SITES = ["oslo", "bern", "rome", "oslo", "bern", "oslo"]
TABLE = TensorDataset(torch.arange(12.0).view(6, 2), torch.tensor([0, 1, 0, 1, 0, 1]))
NATURAL = Config(data=DataConfig(partition="natural"), clients=ClientsConfig(num="auto", per_round=2))
MODEL = {"model.name": "tests.test_num_clients:linear"}


def linear(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    return torch.nn.Linear(input_shape[0], num_classes)


def source(groups: list[str] | None) -> Source:
    return Source(Part(TABLE, groups=groups), TABLE)


@pytest.mark.parametrize("seed", range(4))
def test_client_i_is_the_ith_group_by_name_whatever_the_seed(seed: int) -> None:
    given = load_parts(with_values(NATURAL, {"seed": seed, **MODEL}), source(SITES))
    assert given.config.clients.count == 3
    assert [part.tolist() for part in given.parts] == [[1, 4], [0, 3, 5], [2]]  # bern, oslo, rome


def test_a_number_stays() -> None:
    config = with_values(NATURAL, {"clients.num": 2, **MODEL})
    assert load_parts(config, source(SITES)).config.clients.count == 2


def test_data_without_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^clients\.num: auto is the number of natural groups, got data\.name=digits"):
        load_parts(with_values(NATURAL, {"data.partition": "iid", **MODEL}), source(None))


def test_more_clients_a_round_than_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^clients\.per_round: more clients .*, got 4 with clients\.num=3;"):
        load_parts(with_values(NATURAL, {"clients.per_round": 4, **MODEL}), source(SITES))


@pytest.mark.parametrize("wrong", ["all", "8", 0, -1])
def test_anything_else_is_refused(wrong: int | str) -> None:
    with pytest.raises(ValueError, match=r"^clients\.num: .*got '?(all|8|0|-1)"):
        ClientsConfig(num=wrong)


def test_pooled_data_have_no_clients() -> None:
    config = with_values(NATURAL, {"mode": "centralised", "data.partition": "iid", **MODEL})
    assert load_parts(config, source(None)).config.clients.num == "auto"


@pytest.fixture
def sites(tmp_path: Path) -> list[str]:
    """Write a tree of two sites; returns the arguments of a command on it."""
    for number, site in enumerate(("oslo", "bern")):
        for part in ("train", "test"):
            for place, name in enumerate(("dark", "light")):
                (tmp_path / "data" / site / part / name).mkdir(parents=True)
                for i in range(number + 2):
                    path = tmp_path / "data" / site / part / name / f"{i}.png"
                    Image.new("L", (8 + i, 8), 60 + 100 * place + i).save(path)
    keys = {"name": "image_folder", "root": tmp_path / "data", "layout": "sites", "partition": "natural"}
    keys |= {"image_size": 8, "image_channels": 1}
    options = [f"--data.{key}={value}" for key, value in keys.items()]
    return [
        *options,
        "--clients.num=auto",
        f"--output_dir={tmp_path / 'run'}",
        "--model.name=cnn",
        "--engine.threads=1",
    ]


@needs("plots")
def test_a_run_of_sites_has_their_number_and_names_to_the_end(
    sites: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", *sites, "--rounds=1"]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["clients"]["num"] == 2
    with safe_open(run / "model.safetensors", "pt") as file:
        found = json.loads(file.metadata()["preprocessing"])
    assert (found["groups"], found["classes"]) == (["bern", "oslo"], ["dark", "light"])
    (card,) = EventAccumulator(str(run)).Reload().Tensors("partition/text_summary")
    assert "| 1 | oslo | 2 (50 %) | 2 (50 %) | 4 |" in card.tensor_proto.string_val[0].decode()
    assert "2 classes: dark, light; 2 groups: bern, oslo; 2 clients\n" in capsys.readouterr().err
    assert main(["train", *sites, "--rounds=1"]) == 0  # it goes on with what auto came to
    assert "is finished" in capsys.readouterr().err
    assert main(["partition", *sites]) == 0
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line[1:-1]] for line in lines] == [
        ["0", "bern", "3 (50 %)", "3 (50 %)", "6"],
        ["1", "oslo", "2 (50 %)", "2 (50 %)", "4"],
    ]
    assert (run / "partition.png").read_bytes().startswith(b"\x89PNG")


def test_sites_that_a_partition_mixes_are_worth_a_warning(sites: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *sites, "--rounds=1", "--data.partition=iid"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "so that no client is a site, got iid with data.layout=sites; use natural, with clients.num=auto" in said

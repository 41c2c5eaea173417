"""Runs on a Dataset: the same bits on any number of ranks and workers, after a resume, and as on resident tensors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision import transforms
from torchvision.datasets import FakeData

from flare_dist import Part, Source, Task
from flare_dist.cli import main
from flare_dist.config.config import Config
from flare_dist.data.datasets import load
from flare_dist.data.sources import SOURCES
from flare_dist.rounds.build_run import load_parts, set_up
from flare_dist.run.evaluation import evaluate_run
from flare_dist.tasks import config as tasks
from flare_dist.tasks.builtin import TASKS
from flare_dist.tasks.evaluation_config import EvaluationConfig
from tests.helpers.lazy import AsDict, Jittered, config, source
from tests.helpers.runs import assert_same_run, start, start_rank
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("alone")
    start(config(directory), data=source())
    return directory


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (3, 1)])
def test_ranks_and_workers_change_nothing(alone: Path, tmp_path: Path, ranks: int, workers: int) -> None:
    start(config(tmp_path, workers=workers), ranks, data=source())
    assert_same_run(alone, tmp_path, wire=ranks == 1)


def test_nor_does_a_resume(alone: Path, tmp_path: Path) -> None:
    start(config(tmp_path), kill_in_round=2, data=source())
    start(config(tmp_path, workers=1, on_error="skip"), data=source())
    assert_same_run(alone, tmp_path)


def test_an_example_that_cannot_be_read_ends_the_command_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "mine", lambda config, seed: source(groups=True, broken=(33,)))
    own = ["--model.name=tests.helpers.lazy:linear", "--data.normalize=none", "--clients.num=2", "--engine.device=cpu"]
    assert main(["train", "--data.name=mine", "--rounds=1", f"--output_dir={tmp_path}", *own]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "error: data.name: mine: train: example 33 (group site 3) cannot be read: OSError: image 33 is"
    )
    assert said.endswith("mend it, or set data.on_error=skip")


def test_torchvision_data_just_work(tmp_path: Path) -> None:
    """PIL images become tensors, random crops draw the same with workers, classes are those that are given."""
    crops = transforms.Compose([transforms.RandomCrop(6), transforms.ToTensor()])
    given = Source(FakeData(40, (1, 8, 8), 4, crops), FakeData(12, (1, 6, 6), 4), classes=4)
    for workers in (0, 1):
        start(config(tmp_path / str(workers), partition="iid", workers=workers), data=given)
    assert_same_run(tmp_path / "0", tmp_path / "1")


def test_datasets_of_hugging_face_just_work(tmp_path: Path) -> None:
    """Columns of lists become rows; classes and labels are known, so that partitions by class need nothing else."""
    datasets = pytest.importorskip("datasets")
    pixels = source().train.data.images.flatten(1)  # type: ignore[union-attr]
    names = datasets.ClassLabel(names=["a", "b", "c", "d"])
    features = datasets.Features({"pixels": datasets.Sequence(datasets.Value("float32")), "label": names})
    columns = {"pixels": pixels.tolist(), "label": [number % 4 for number in range(len(pixels))]}
    table = datasets.Dataset.from_dict(columns, features=features)
    train, test = table.select(range(48)), table.select(range(48, 64))
    for name, workers in (("plain", 0), ("read by workers", 1), ("torch", 0)):
        given = [part.with_format(name) if name == "torch" else part for part in (train, test)]
        start(config(tmp_path / name, workers=workers), data=Source(given[0], given[1]))
        assert_same_run(tmp_path / "plain", tmp_path / name)
    labels = torch.arange(64) % 4
    twin = Source(TensorDataset(pixels[:48], labels[:48]), TensorDataset(pixels[48:], labels[48:]))
    start(config(tmp_path / "resident"), data=twin)
    models = [load_file(tmp_path / name / "model.safetensors") for name in ("plain", "resident")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[1])


def in_mode(directory: Path, mode: str) -> Config:
    return dataclasses.replace(config(directory, partition="iid"), mode=mode, eval_every=2)


def resident_twin(given: Source) -> Source:
    parts = [part.data if isinstance(part, Part) else part for part in (given.train, given.test)]
    assert all(isinstance(part, Jittered) for part in parts)
    return Source(*(TensorDataset(part.images, part.labels) for part in parts), classes=given.classes)  # type: ignore


@pytest.mark.parametrize("mode", ["federated", "gradient", "centralised"])
def test_a_dataset_that_draws_nothing_trains_as_its_tensors_do(mode: str, tmp_path: Path) -> None:
    given = source(draws=False)
    for name, data in (("lazy", given), ("resident", resident_twin(given))):
        run_ranks(start_rank, 2, in_mode(tmp_path / name, mode), None, data)
    lazy, resident = (load_file(tmp_path / name / "model.safetensors") for name in ("lazy", "resident"))
    assert all(torch.equal(lazy[name], resident[name]) for name in resident)


@pytest.mark.parametrize("ranks", [1, 2])
def test_skipped_examples_are_counted_over_all_ranks(
    ranks: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = dataclasses.replace(config(tmp_path, on_error="skip"), rounds=1)
    every = dataclasses.replace(whole, clients=dataclasses.replace(whole.clients, per_round=4))
    start(every, ranks, data=source(groups=True, broken=(9, 33)))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "skipped_examples" not in rows[0]
    assert rows[0]["test_skipped_examples"] == 1
    assert rows[1]["skipped_examples"] == 2 * 2  # epochs
    if ranks == 1:
        assert "left out: data: train: example 33 (group site 3) cannot be read" in caplog.text


def test_reads_that_fail_while_members_are_measured_are_counted_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (9, 33, 40, 41)
    given = source(groups=True, broken=broken)
    by_name = Part(given.test, groups=["a", "b"] * 12, labels=torch.arange(24) % 4)  # type: ignore[arg-type]
    given = dataclasses.replace(given, test=by_name)
    members = EvaluationConfig(client_holdout=0.5, by_group=True)
    chosen = dataclasses.replace(config(tmp_path, on_error="skip"), rounds=1, evaluation=members)
    every = dataclasses.replace(chosen, clients=dataclasses.replace(chosen.clients, per_round=4))
    start(every, data=given)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    held_out = load_parts(every, given).parts.held_out
    assert held_out is not None
    of_clients = sum(int(number) in broken for own in held_out for number in own)
    assert 0 < of_clients < len(broken)  # the others are trained on
    for row in rows:
        assert row["test_skipped_examples"] == row["group_skipped_examples"] == 1
        assert row["client_skipped_examples"] == of_clients
    assert rows[1]["skipped_examples"] == 2 * (len(broken) - of_clients)  # epochs
    monkeypatch.setitem(SOURCES, every.data.name, lambda config, seed: given)
    assert evaluate_run(tmp_path, "final", None)["skipped_examples"] == 1


def test_a_client_of_whom_nothing_can_be_read_is_left_out(tmp_path: Path) -> None:
    site = tuple(range(4, 64, 5))
    base = config(tmp_path, partition="natural", on_error="skip")
    clients = dataclasses.replace(base.clients, num=5, per_round=5)
    start(dataclasses.replace(base, rounds=1, clients=clients), data=source(groups=True, broken=site))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (rows[1]["clients"], rows[1]["rejected_clients"], rows[1]["skipped_examples"]) == (5, 1, 2 * len(site))


def test_a_group_of_whom_nothing_can_be_read_is_measured_on_nothing(tmp_path: Path) -> None:
    base = config(tmp_path, partition="natural", on_error="skip", validation=0.0)
    evaluation = EvaluationConfig(client_holdout=0.2, personalised=True)
    clients = dataclasses.replace(base.clients, num=5, per_round=5)
    given = source(groups=True, broken=tuple(range(4, 64, 5)))
    start(dataclasses.replace(base, rounds=1, clients=clients, evaluation=evaluation), data=given)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["worst_client_name"] != "4 (site 4)"
    assert 0 <= rows[1]["client_accuracy"] <= 1


def test_every_example_that_can_be_read_is_measured() -> None:
    """The last batch of two has one that can be."""
    data = load(config().data, 0, source=source(broken=(13,)))
    batches = dataclasses.replace(data, reading=data.reading._replace(on_error="skip")).batches(
        data.train, torch.device("cpu")
    )
    sizes = [len(labels) for _, labels in batches.batches(torch.arange(14), 4, None, smallest=2)]
    assert sizes == [4, 4, 4, 1]


class Told(nn.Module):
    """Takes a dict and returns one, as Hugging Face's models do."""

    def __init__(self, input_shape: Any = None, num_classes: Any = None) -> None:
        super().__init__()
        self.out = nn.Linear(36, 4)

    def forward(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        scores = self.out(image.flatten(1))
        return {"loss": F.cross_entropy(scores, label), "scores": scores}


def by_dict() -> Task:
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = model(**batch)["loss"]
        return found

    def metrics(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
        right = model(**batch)["scores"].argmax(1) == batch["label"]
        return {"accuracy": (right.sum(), len(right))}

    return Task(loss, metrics, best=("accuracy", "max"))


@pytest.mark.parametrize("mode", ["federated", "gradient"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_task_gets_the_batch_as_it_is(
    mode: str, pieces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dict reaches the loss whole, and in pieces; it learns what the pairs of the built-in task learn."""
    monkeypatch.setitem(TASKS, "mine", by_dict())
    found = {}
    for name, kind, model in (("mine", AsDict, "Told"), ("classification", Jittered, "told")):
        base = in_mode(tmp_path / name, mode)
        chosen = dataclasses.replace(
            base,
            task=tasks.TaskConfig(name),
            model=dataclasses.replace(base.model, name="tests.test_lazy_runs:" + model),
            engine=dataclasses.replace(base.engine, gradient_accumulation_steps=pieces),
        )
        run_ranks(start_rank_with, 2, chosen, source(kind))
        found[name] = load_file(tmp_path / name / "model.safetensors")
    mine, builtin = found["mine"], found["classification"]
    torch.testing.assert_close(mine["out.weight"], builtin["1.weight"], rtol=1e-4, atol=1e-6)


def start_rank_with(world: Any, chosen: Config, data: Source) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "mine", by_dict())
        start_rank(world, chosen, None, data)


def told(input_shape: Any, num_classes: int) -> nn.Module:
    """The same weights as Told's."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, num_classes))


def test_the_built_in_task_takes_dicts_with_labels_and_refuses_others() -> None:
    assert load_parts(config(), source(AsDict)).data.input_shape == (1, 6, 6)
    odd = dataclasses.replace(source(AsDict), collate=lambda examples: {"image": torch.zeros(len(examples), 1, 6, 6)})
    with pytest.raises(ValueError, match=r"^task\.name: this task takes \(inputs, labels\), .* got a dict of image;"):
        load_parts(config(), odd)


def test_clients_of_a_dataset_are_not_one_batch() -> None:
    always = dataclasses.replace(config().clients, together="always")
    with pytest.raises(ValueError, match=r"^clients\.together: always is not possible: examples of a Dataset are read"):
        set_up_lazily(dataclasses.replace(config(), clients=always))


def set_up_lazily(given: Config) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flare_dist.rounds.build_run.load_parts", lambda config: load_parts(config, source()))
        set_up(given)


def test_classes_of_pixels_are_not_those_of_the_images() -> None:
    """Images with a class each for the partition, and masks inside of what is read lazily."""

    class Masks(Jittered):
        def __getitem__(self, index: int) -> Any:
            image, _ = super().__getitem__(index)
            return image, torch.zeros(6, 6, dtype=torch.int64)

    asked = tasks.TaskConfig(name="segmentation", class_weights="balanced")
    with pytest.raises(ValueError, match=r"^task\.class_weights: balanced counts labels, and these data have none"):
        load(config().data, 0, asked, source(Masks))

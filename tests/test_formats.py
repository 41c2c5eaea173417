"""Exported models load elsewhere with all keys matched, and score what the run measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import flare_dist
from flare_dist import Task, cli
from flare_dist.config.load import load_config
from flare_dist.data.datasets import load
from flare_dist.engines import onnx_export
from flare_dist.given import given
from flare_dist.models.config import ModelConfig
from flare_dist.models.registry import build
from flare_dist.run.formats import export_run
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers import lazy
from tests.helpers.runs import start, tiny

IS_THERE = {name: bool(importlib.util.find_spec(name)) for name in (*onnx_export.NEEDED, "onnxruntime", "transformers")}
needs_onnx = pytest.mark.skipif(
    not all(IS_THERE[name] for name in (*onnx_export.NEEDED, "onnxruntime")), reason="onnx is not installed"
)
needs_transformers = pytest.mark.skipif(not IS_THERE["transformers"], reason="transformers is not installed")

VIT = """
from transformers import ViTConfig, ViTForImageClassification

class Net(ViTForImageClassification):
    def forward(self, pixel_values):
        return super().forward(pixel_values).logits

def net(input_shape, num_classes):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    shape = {"image_size": input_shape[1], "patch_size": 5, "num_channels": input_shape[0]}
    return Net(ViTConfig(num_labels=num_classes, **sizes, **shape))
"""


def fresh() -> nn.Module:
    """The model of `straight`, with other weights."""
    return build("2nn", "keep", (1, 5, 5), 3, 1, CLASSIFICATION)


def inputs_of(directory: Path) -> tuple[Tensor, Tensor]:
    """Normalised inputs and labels of the run's test set, made as preprocessing.json says."""
    config = load_config(directory / "config.yaml")
    test = load(config.data, config.seed, config.task).test
    by = json.loads((directory / "preprocessing.json").read_text())["normalization"]
    mean, std = (torch.tensor(by[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return (by["scale"] * (test.inputs / by["scale"]) - mean) / std, test.labels


@pytest.mark.parametrize(("format_", "suffix"), [("safetensors", ".safetensors"), ("pt", ".pt")])
def test_weights_load_into_the_plain_model_with_all_keys(
    straight: Path, tmp_path: Path, format_: str, suffix: str
) -> None:
    to = tmp_path / "folder" / f"mine{suffix}"
    assert export_run(straight, "best", format_, to) == [to, to.with_name("mine.preprocessing.json")]
    state = load_file(to) if format_ == "safetensors" else torch.load(to, weights_only=True)
    model = fresh()
    assert str(model.load_state_dict(state)) == "<All keys matched successfully>"
    inputs, labels = inputs_of(straight)
    best = json.loads((straight / "summary.json").read_text())["best_accuracy"]
    with torch.no_grad():
        found = (model.eval()(inputs).argmax(1) == labels).double().mean().item()
    assert found == pytest.approx(best)


def test_preprocessing_is_beside_the_model_and_in_its_metadata(straight: Path, tmp_path: Path) -> None:
    to, beside = export_run(straight, "final", "safetensors", tmp_path / "mine.safetensors")
    written = json.loads(beside.read_text())
    assert written == json.loads((straight / "preprocessing.json").read_text())
    assert (written["task"], written["input_shape"], written["num_classes"]) == ("classification", [1, 5, 5], 3)
    with safe_open(to, "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["preprocessing"]) == written


def of_onnxruntime(path: Path, inputs: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["output"], {"input": inputs.numpy()})[0])


@needs_onnx
@pytest.mark.filterwarnings("default")  # of other people's code
def test_onnxruntime_gives_the_scores_of_the_model(straight: Path, tmp_path: Path) -> None:
    import onnx

    to, _ = export_run(straight, "final", "onnx", tmp_path / "mine.onnx")
    graph = onnx.load(str(to))
    onnx.checker.check_model(graph)
    facts = json.loads({entry.key: entry.value for entry in graph.metadata_props}["preprocessing"])
    assert facts == json.loads((straight / "preprocessing.json").read_text())
    model = fresh()
    model.load_state_dict(load_file(straight / "model.safetensors"))
    inputs, _ = inputs_of(straight)
    for examples in (1, 7):  # any number
        with torch.no_grad():
            expected = model.eval()(inputs[:examples])
        torch.testing.assert_close(of_onnxruntime(to, inputs[:examples]), expected, rtol=1e-4, atol=1e-5)


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def test_a_model_whose_inputs_only_the_data_know_is_built_from_them(tmp_path: Path) -> None:
    run = flare_dist.train(lazy.config(tmp_path), data=lazy.source(), task=Task(own_loss), rounds=1)
    assert json.loads((tmp_path / "preprocessing.json").read_text())["input_dtype"] is None
    assert torch.equal(run.model()[1].weight, load_file(tmp_path / "model.safetensors")["1.weight"])  # type: ignore[index]
    with given(run.objects), pytest.raises(ValueError, match=r"^--format: onnx needs inputs that are one tensor"):
        export_run(tmp_path, "final", "onnx", tmp_path / "x" / "mine.onnx")


@needs_onnx
@pytest.mark.filterwarnings("default")
def test_a_model_of_tokens_becomes_onnx(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9), nn.Dropout())  # silent in evaluation mode
    onnx_export.save_onnx(tmp_path / "x.onnx", model, torch.zeros(1, 6, dtype=torch.int64), {})
    tokens = torch.arange(18).view(3, 6) % 9
    with torch.no_grad():
        expected = model(tokens)
    torch.testing.assert_close(of_onnxruntime(tmp_path / "x.onnx", tokens), expected, rtol=1e-4, atol=1e-5)


@needs_onnx
@pytest.mark.filterwarnings("default")
def test_a_model_that_onnx_does_not_take_is_one_line(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs if inputs.sum() > 0 else -inputs  # depends on values, which no graph does

    with pytest.raises(ValueError, match=r"^--format: torch.onnx cannot translate the model: ") as error:
        onnx_export.save_onnx(tmp_path / "x.onnx", Branching(), torch.zeros(1, 2), {})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x.onnx").exists()


@pytest.fixture
def of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The directory of a run of a small vision transformer of the user's."""
    (tmp_path / "their_vit.py").write_text(VIT)
    monkeypatch.syspath_prepend(str(tmp_path))
    directory = tmp_path / "run"
    start(tiny(directory, model=ModelConfig(name="their_vit:net"), rounds=1))
    yield directory
    sys.modules.pop("their_vit", None)


@needs_transformers
@pytest.mark.filterwarnings("default")
def test_a_model_of_transformers_is_loaded_by_its_library(of_transformers: Path, tmp_path: Path) -> None:
    from transformers import ViTForImageClassification

    to, beside = export_run(of_transformers, "final", "hf", tmp_path / "hf")
    assert beside == to / "preprocessing.json"
    model, told = ViTForImageClassification.from_pretrained(str(to), output_loading_info=True, local_files_only=True)
    assert not any(told.values())
    expected = load_file(of_transformers / "model.safetensors")
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "export: to must be given; flare-dist export --help describes it"),
        (["--to", "{tmp}/x", "--format", "tf"], "--format"),
        (["--to", "{tmp}/x", "--format", "hf"], "--format: hf is for models with save_pretrained, as transformers and"),
        (["--to", "{tmp}/x.pt"], "--to: {tmp}/x.pt ends as format pt does, got --format safetensors; choose one of"),
        (["--to", "{tmp}"], "--to: {tmp} is a directory; name a file in it, e.g. {tmp}/model.safetensors"),
        (["--to", "{tmp}/file/x.safetensors"], "--to: cannot write {tmp}/file/x.safetensors: "),
        (["--to", "{tmp}/file", "--format", "hf"], "--to: hf writes a folder, got the file {tmp}/file; name a folder"),
        (["--to", "{run}/best.safetensors"], "--to: {run}/best.safetensors is a file of the run; choose another name"),
        (["--to", "{run}", "--format", "hf"], "--to: {run} is the run directory; name another folder"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    (tmp_path / "file").touch()
    named = [argument.replace("{tmp}", str(tmp_path)).replace("{run}", str(straight)) for argument in arguments]
    assert cli.main(["export", str(straight), *named]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said.replace("{tmp}", str(tmp_path)).replace("{run}", str(straight)) in error


def test_no_run_and_missing_packages_are_refused(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["export", str(tmp_path), "--to", str(tmp_path / "x")]) == 2
    assert "export: " in (error := capsys.readouterr().err)
    assert "config.yaml does not exist" in error
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["export", str(straight), "--format", "onnx", "--to", str(tmp_path / "x.onnx")]) == 2
    assert "--format: onnx is not installed; run pip install 'flare_dist[onnx]'" in capsys.readouterr().err

"""Models by name: their sizes, their seeds, and refusals that name the model."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from flare_dist import cli
from flare_dist.layout import buffer_layout, parameter_layout
from flare_dist.models.config import ModelConfig
from flare_dist.models.registry import MODELS, Shape, build, find_builder
from flare_dist.models.resnet import with_group_norm
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.models import CIFAR, MNIST, weights

OF_IMAGES = sorted(set(MODELS) - {"fasttext", "gru", "lstm", "vgg16", "vgg19"})


def sketched(name: str, shape: Shape, num_classes: int) -> nn.Module:
    """Build a model on the meta device, where its weights, up to forty million, are not drawn."""
    with torch.device("meta"):
        return with_group_norm(find_builder(name)(shape, num_classes))


@pytest.mark.parametrize(
    ("name", "shape", "total"),
    [
        ("2nn", MNIST, 199_210),
        ("cnn", MNIST, 28_938),
        ("lenet", MNIST, 61_706),
        ("lenet", CIFAR, 62_006),
        ("resnet18", CIFAR, 11_173_962),
        ("flare_fc", MNIST, 36_356_525),
        ("flare_cnn", MNIST, 582_026),
        ("vgg11", CIFAR, 28_144_010),
        ("vgg16", CIFAR, 33_638_218),
        ("vgg19", CIFAR, 38_947_914),
        ("tests.helpers.models:linear", MNIST, 7_850),
    ],
)
def test_models_have_their_published_sizes(name: str, shape: Shape, total: int) -> None:
    assert parameter_layout(sketched(name, shape, 10)).total == total


@pytest.mark.parametrize("name", OF_IMAGES)
def test_ours_are_built(name: str) -> None:
    model = build(name, "group", CIFAR, 7, seed=0, task=CLASSIFICATION)
    assert [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)] == []
    with torch.no_grad():
        assert model(torch.zeros(3, *CIFAR)).shape == (3, 7)


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("shape", [MNIST, (3, 64, 48)])
def test_ours_take_images_of_any_size(name: str, shape: Shape) -> None:
    if name == "vgg11" and shape == MNIST:
        pytest.skip("VGG halves images five times")
    assert sketched(name, shape, 7)(torch.zeros(3, *shape, device="meta")).shape == (3, 7)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_torchvision_by_name(norm: str) -> None:
    model = build("torchvision:mobilenet_v3_small", norm, CIFAR, 10, seed=0, task=CLASSIFICATION)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == (norm == "batch")
    assert (buffer_layout(model).total == 0) == (norm == "group")


@pytest.mark.parametrize(("name", "size"), [("googlenet", 32), ("inception_v3", 96)])
def test_auxiliary_classifiers_are_left_out(name: str, size: int) -> None:
    """On the meta device, where the thirty million weights are not drawn."""
    with torch.device("meta"):
        model = find_builder(f"torchvision:{name}")((3, size, size), 7)
        for training in (True, False):
            scores = model.train(training)(torch.zeros(2, 3, size, size))
            assert isinstance(scores, Tensor)
            assert scores.shape == (2, 7)
    assert not [entry.name for entry in parameter_layout(model).entries if entry.name.lower().startswith("aux")]


@pytest.mark.parametrize("name", ["weight_normed", "lazy", "WarmCache"])
def test_models_that_cannot_be_copied_are_built(name: str) -> None:
    model = build(f"tests.helpers.models:{name}", "keep", CIFAR, 10, seed=0, task=CLASSIFICATION)
    again = build(f"tests.helpers.models:{name}", "keep", CIFAR, 10, seed=0, task=CLASSIFICATION)
    other = build(f"tests.helpers.models:{name}", "keep", CIFAR, 10, seed=1, task=CLASSIFICATION)
    assert torch.equal(weights(model), weights(again))
    assert not torch.equal(weights(model), weights(other))
    for buffer_name, buffer in model.named_buffers():
        assert (buffer == (1 if buffer_name.endswith("var") else 0)).all()
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("name", ["weight_normed", "lazy", "WarmCache", "Plain", "Skipping"])
@pytest.mark.parametrize("mode", ["federated", "gradient"])
def test_they_are_trained_and_saved_as_they_came(name: str, mode: str, tmp_path: Path) -> None:
    """Through the command line; the saved model loads into the user's own."""
    keys = "--rounds 1 --data.name synthetic --data.synthetic.examples 40 --data.synthetic.shape [3,32,32] --mode"
    assert cli.main(["train", *keys.split(), mode, f"--model.name=tests.helpers.models:{name}",
                     f"--output_dir={tmp_path}", "--clients.num=2", "--engine.threads=1"]) == 0  # fmt: skip
    saved = load_file(tmp_path / "model.safetensors")
    model = find_builder(f"tests.helpers.models:{name}")(CIFAR, 10)
    model.load_state_dict(saved, strict=True)
    if name == "Plain":
        assert saved["norm.running_var"].ne(1).all()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["norm"] == "keep"


def test_a_replacement_of_layers_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flare_dist")
    build("tests.helpers.models:Plain", "keep", CIFAR, 10, seed=0, task=CLASSIFICATION)
    build("2nn", "group", CIFAR, 10, seed=0, task=CLASSIFICATION)
    assert not caplog.messages
    model = build("tests.helpers.models:Plain", "group", CIFAR, 10, seed=0, task=CLASSIFICATION)
    assert caplog.messages == [
        "model.norm: group replaces 1 BatchNorm2d of tests.helpers.models:Plain by GroupNorm; "
        "of others it has 1 BatchNorm1d"
    ]
    assert isinstance(model.norm, nn.GroupNorm)
    lazily = build("tests.helpers.models:lazy", "group", CIFAR, 10, seed=0, task=CLASSIFICATION)
    assert isinstance(lazily[1], nn.GroupNorm)  # type: ignore[index]


@pytest.mark.parametrize("name", ["2nn", "cnn", "lenet", "torchvision:squeezenet1_1", "tests.helpers.models:linear"])
def test_the_seed_decides_and_the_global_generator_is_left_alone(name: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = weights(build(name, "group", CIFAR, 10, seed=0, task=CLASSIFICATION))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(weights(build(name, "group", CIFAR, 10, seed=0, task=CLASSIFICATION)), first)
    assert not torch.equal(weights(build(name, "group", CIFAR, 10, seed=1, task=CLASSIFICATION)), first)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "vgg",
        "torchvision:",
        "torchvision:no_such_net",
        "torchvision:fcn_resnet50",  # no classifier
        "no_such_package.models:net",
        "tests.helpers.models:no_such_function",
        "tests.helpers.models:NOT_CALLABLE",
        "tests.helpers.models:",
        ":linear",
        ".models:linear",
    ],
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^model\.name: "):
        ModelConfig(name=name)


def test_an_error_in_somebody_s_code_is_told_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"cannot build .*: KeyError: 'sizes' \(.*models\.py, line \d+\)$"):
        build("tests.helpers.models:broken", "keep", MNIST, 10, seed=0, task=CLASSIFICATION)
    with pytest.raises(ValueError, match=r"parameters of torch\.float16 \(1\.weight\); build it in torch\.float32"):
        build("tests.helpers.models:half", "keep", MNIST, 10, seed=0, task=CLASSIFICATION)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("CutOff", r"CutOff gives scores without a gradient while it trains; "),
        ("Growing", r"Growing changes the shape of its buffer last from \(1,\) to \(2, 10\); "),
        ("on_meta", r"on_meta has 1\.weight on meta; build it on the CPU"),
        ("uninitialised", r"uninitialised begins with weights that are not finite \(1\.bias\); "),
        ("script", r"cannot build .*: SystemExit: usage: train\.py \(.*models\.py, line \d+\)$"),
    ],
)
def test_models_that_would_fail_later_are_refused_by_what_is_wrong(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.name: .*{problem}"):
        build(f"tests.helpers.models:{name}", "keep", MNIST, 10, seed=0, task=CLASSIFICATION)

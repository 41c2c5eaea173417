"""Models by name: their sizes, their norms, their seeds, and clear words for those that do not fit."""

from __future__ import annotations

import logging
import math
import sys
import warnings
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
from flare_dist.models.small import OverlappingMaxPool
from flare_dist.tasks.builtin import CLASSIFICATION

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
NOT_CALLABLE = 3


def linear(input_shape: Shape, num_classes: int) -> nn.Module:
    channels, height, width = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))


class Pair(nn.Module):
    """Scores and something else: always, or only while it trains."""

    def __init__(self, scores: nn.Module, always: bool) -> None:
        super().__init__()
        self.scores = scores
        self.always = always

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        scores = self.scores(x)
        return (scores, x) if self.always or self.training else scores


def two_outputs(input_shape: Shape, num_classes: int) -> nn.Module:
    return Pair(linear(input_shape, num_classes), always=True)


def two_outputs_while_training(input_shape: Shape, num_classes: int) -> nn.Module:
    return Pair(linear(input_shape, num_classes), always=False)


def one_class_too_many(input_shape: Shape, num_classes: int) -> nn.Module:
    return linear(input_shape, num_classes + 1)


def only_nine_inputs(input_shape: Shape, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(9, num_classes))


def too_many_arguments(input_shape: Shape, num_classes: int, width: int) -> nn.Module:
    return linear(input_shape, num_classes)


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


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
        ("tests.test_models:linear", MNIST, 7_850),
    ],
)
def test_sizes(name: str, shape: Shape, total: int) -> None:
    assert parameter_layout(build(name, "group", shape, 10, seed=0, task=CLASSIFICATION)).total == total


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"gru", "vgg16", "vgg19"}))
@pytest.mark.parametrize("shape", [MNIST, CIFAR, (3, 64, 48)])
def test_ours_take_images_of_any_size(name: str, shape: Shape) -> None:
    if name == "vgg11" and shape == MNIST:
        pytest.skip("VGG halves images five times")
    model = build(name, "group", shape, 7, seed=0, task=CLASSIFICATION)
    with torch.no_grad():
        assert model(torch.zeros(3, *shape)).shape == (3, 7)


def test_resnet18_in_both_norms() -> None:
    grouped, batched = (build("resnet18", norm, CIFAR, 10, seed=0, task=CLASSIFICATION) for norm in ("group", "batch"))
    assert torch.equal(weights(grouped), weights(batched))
    for model, norm in ((grouped, nn.GroupNorm), (batched, nn.BatchNorm2d)):
        assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 20
        assert sum(isinstance(module, norm) for module in model.modules()) == 20
    assert buffer_layout(grouped).total == 0
    assert buffer_layout(batched).total == 2 * 4800


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


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 24), (20, 20), (37, 1), (1, 1)])
def test_group_norm_takes_over(channels: int, groups: int) -> None:
    batch = nn.BatchNorm2d(channels, eps=0.25)
    norm = with_group_norm(nn.Sequential(batch))[0]  # type: ignore[index]
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels, norm.eps) == (groups, channels, 0.25)
    assert norm.weight is batch.weight
    assert norm.bias is batch.bias
    plain = with_group_norm(nn.Sequential(nn.Sequential(nn.BatchNorm2d(channels, affine=False))))
    assert [type(module) for module in plain.modules()] == [nn.Sequential, nn.Sequential, nn.GroupNorm]
    assert not list(plain.parameters())


def test_a_norm_used_twice_is_replaced_twice() -> None:
    norm = nn.BatchNorm2d(4)
    model = with_group_norm(nn.Sequential(norm, nn.ReLU(), norm))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert parameter_layout(model).total == 8


def weight_normed(input_shape: Shape, num_classes: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.Flatten(), torch.nn.utils.weight_norm(nn.Linear(3072, num_classes)))


def lazy(input_shape: Shape, num_classes: int) -> nn.Module:
    layers = (nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes))
    return nn.Sequential(*layers)


def lazy_and_unreached(input_shape: Shape, num_classes: int) -> nn.Module:
    model = linear(input_shape, num_classes)
    model.other = nn.LazyLinear(3)
    model.forward = model[:2].forward  # type: ignore[index]
    return model


class WarmCache(nn.Module):
    """Keeps its last activation, as attention maps are kept for a plot, from its construction on."""

    def __init__(self, input_shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.layer = linear(input_shape, num_classes)
        self.forward(torch.zeros(1, *input_shape))

    def forward(self, x: Tensor) -> Tensor:
        self.last: Tensor = self.layer(x)
        return self.last


class Skipping(nn.Module):
    """Has a parameter that it never uses, and skips a layer at random while it trains."""

    def __init__(self, input_shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.layer, self.other = linear(input_shape, num_classes), nn.Linear(num_classes, num_classes)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(x)
        skips = self.training and torch.rand(()) < 0.5
        return scores if skips else scores + self.other(scores)


def half(input_shape: Shape, num_classes: int) -> nn.Module:
    return linear(input_shape, num_classes).half()


class CutOff(nn.Module):
    """Gives scores that know nothing of its parameters."""

    def __init__(self, input_shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.layer = linear(input_shape, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.layer(x).detach().numpy())


class Growing(CutOff):
    """Keeps the scores of its last batch in a buffer."""

    def __init__(self, input_shape: Shape, num_classes: int) -> None:
        super().__init__(input_shape, num_classes)
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(x)
        self.last = scores.detach()
        return scores


def on_meta(input_shape: Shape, num_classes: int) -> nn.Module:
    return linear(input_shape, num_classes).to("meta")


def uninitialised(input_shape: Shape, num_classes: int) -> nn.Module:
    model = linear(input_shape, num_classes)
    with torch.no_grad():
        model.get_parameter("1.bias").fill_(math.nan)
    return model


def script(input_shape: Shape, num_classes: int) -> nn.Module:
    sys.exit("usage: train.py")


def broken(input_shape: Shape, num_classes: int) -> nn.Module:
    return linear({}["sizes"], num_classes)  # type: ignore[index]


class Plain(nn.Module):
    """A model of somebody else's, with norms of every kind."""

    def __init__(self, input_shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes), nn.BatchNorm1d(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.norm(self.conv(x)).relu())
        return scores


@pytest.mark.parametrize("name", ["weight_normed", "lazy", "WarmCache"])
def test_models_that_cannot_be_copied_are_built(name: str) -> None:
    model = build(f"tests.test_models:{name}", "keep", CIFAR, 10, seed=0, task=CLASSIFICATION)
    again = build(f"tests.test_models:{name}", "keep", CIFAR, 10, seed=0, task=CLASSIFICATION)
    other = build(f"tests.test_models:{name}", "keep", CIFAR, 10, seed=1, task=CLASSIFICATION)
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
    assert cli.main(["train", *keys.split(), mode, f"--model.name=tests.test_models:{name}",
                     f"--output_dir={tmp_path}", "--clients.num=2", "--engine.threads=1"]) == 0  # fmt: skip
    saved = load_file(tmp_path / "model.safetensors")
    model = find_builder(f"tests.test_models:{name}")(CIFAR, 10)
    model.load_state_dict(saved, strict=True)
    if name == "Plain":
        assert saved["norm.running_var"].ne(1).all()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["norm"] == "keep"


def test_a_replacement_of_layers_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flare_dist")
    build("tests.test_models:Plain", "keep", CIFAR, 10, seed=0, task=CLASSIFICATION)
    build("2nn", "group", CIFAR, 10, seed=0, task=CLASSIFICATION)
    assert not caplog.messages
    model = build("tests.test_models:Plain", "group", CIFAR, 10, seed=0, task=CLASSIFICATION)
    assert caplog.messages == [
        "model.norm: group replaces 1 BatchNorm2d of tests.test_models:Plain by GroupNorm; "
        "of others it has 1 BatchNorm1d"
    ]
    assert isinstance(model.norm, nn.GroupNorm)
    lazily = build("tests.test_models:lazy", "group", CIFAR, 10, seed=0, task=CLASSIFICATION)
    assert isinstance(lazily[1], nn.GroupNorm)  # type: ignore[index]


def test_norms_are_kept_unless_asked_otherwise() -> None:
    assert ModelConfig().norm == "keep"
    assert ModelConfig(norm="batch") == ModelConfig()


@pytest.mark.parametrize("name", ["2nn", "cnn", "lenet", "torchvision:squeezenet1_1", "tests.test_models:linear"])
def test_the_seed_decides_and_the_global_generator_is_left_alone(name: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = weights(build(name, "group", CIFAR, 10, seed=0, task=CLASSIFICATION))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(weights(build(name, "group", CIFAR, 10, seed=0, task=CLASSIFICATION)), first)
    assert not torch.equal(weights(build(name, "group", CIFAR, 10, seed=1, task=CLASSIFICATION)), first)


def test_trying_a_model_leaves_its_statistics_alone() -> None:
    model = build("resnet18", "batch", (1, 8, 8), 10, seed=0, task=CLASSIFICATION)
    for name, buffer in model.named_buffers():
        assert (buffer == (1 if name.endswith("var") else 0)).all()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "vgg",
        "torchvision:",
        "torchvision:no_such_net",
        "torchvision:fcn_resnet50",  # no classifier
        "no_such_package.models:net",
        "tests.test_models:no_such_function",
        "tests.test_models:NOT_CALLABLE",
        "tests.test_models:",
        ":linear",
        ".test_models:linear",
    ],
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^model\.name: "):
        ModelConfig(name=name)


def test_unknown_norms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.norm: must be keep .*or group, got 'layer'$"):
        ModelConfig(norm="layer")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # of a layer that has no inputs left
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cnn", (1, 3, 3)),
        ("lenet", (1, 6, 6)),
        ("lenet", (1, 4, 28)),
        ("torchvision:squeezenet1_0", (3, 8, 8)),
        ("torchvision:resnet18", MNIST),
        ("tests.test_models:only_nine_inputs", MNIST),
        ("tests.test_models:one_class_too_many", MNIST),
        ("tests.test_models:two_outputs", MNIST),
        ("tests.test_models:two_outputs_while_training", MNIST),
        ("tests.test_models:too_many_arguments", MNIST),
        ("tests.test_models:half", MNIST),
        ("tests.test_models:broken", MNIST),
        ("tests.test_models:lazy_and_unreached", MNIST),
        ("tests.test_models:linear", (7,)),  # a text
    ],
)
def test_models_that_do_not_fit_are_refused(name: str, shape: Shape) -> None:
    with pytest.raises(ValueError, match=r"^model\.name: "):
        build(name, "group", shape, 10, seed=0, task=CLASSIFICATION)


def test_a_pool_with_the_channels_innermost_has_the_bits_of_torch_s() -> None:
    """Values, and gradients where windows overlap and entries are equal."""
    ends = []
    for pool in (nn.MaxPool2d(3, stride=1), OverlappingMaxPool(3, stride=1)):
        draws = torch.Generator().manual_seed(0)
        inputs = torch.randint(-3, 4, (4, 10, 12, 9), generator=draws).float().requires_grad_()
        outputs = pool(inputs)
        outputs.backward(torch.randn(outputs.shape, generator=draws))
        assert outputs.is_contiguous()
        ends.append((outputs, inputs.grad))
    assert all(map(torch.equal, *ends))


def test_an_error_in_somebody_s_code_is_told_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"cannot build .*: KeyError: 'sizes' \(.*test_models\.py, line \d+\)$"):
        build("tests.test_models:broken", "keep", MNIST, 10, seed=0, task=CLASSIFICATION)
    with pytest.raises(ValueError, match=r"parameters of torch\.float16 \(1\.weight\); build it in torch\.float32"):
        build("tests.test_models:half", "keep", MNIST, 10, seed=0, task=CLASSIFICATION)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("CutOff", r"CutOff gives scores without a gradient while it trains; "),
        ("Growing", r"Growing changes the shape of its buffer last from \(1,\) to \(2, 10\); "),
        ("on_meta", r"on_meta has 1\.weight on meta; build it on the CPU"),
        ("uninitialised", r"uninitialised begins with weights that are not finite \(1\.bias\); "),
        ("script", r"cannot build .*: SystemExit: usage: train\.py \(.*test_models\.py, line \d+\)$"),
    ],
)
def test_models_that_would_fail_later_are_refused_by_what_is_wrong(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.name: .*{problem}"):
        build(f"tests.test_models:{name}", "keep", MNIST, 10, seed=0, task=CLASSIFICATION)

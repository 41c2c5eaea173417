"""Every file under configs/ is valid, alone and layered, and so is every documented command that names one."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from flare_dist.cautions import CAUTIONS
from flare_dist.cli.sweeps import compare_parser, sweep_parser
from flare_dist.cli.training import partition_parser, train_parser
from flare_dist.config.config import Config
from flare_dist.config.load import build_config
from flare_dist.config.saved import as_dict, differing_keys
from flare_dist.exclusion import messages
from flare_dist.run.checks import keys_without_effect

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
FILES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix()
    for path in CONFIGS.rglob("*.yaml")
    if path.parent not in (CONFIGS / "studies" / "adamw", CONFIGS / "studies" / "outer")  # grids of benchmarks/
)
STUDY = "studies/federated_lora"
WAYS = [f"{STUDY}/{name}" for name in ("full", "lora", "sparse", "full_length")]
METHODS = [name for name in FILES if name.startswith("methods/") or name in WAYS]
ALONE = [name for name in FILES if name not in METHODS]
SHARED = ("studies/frontier_mnist", "studies/frontier_cifar10", "studies/flash_mnist", "studies/flash_cifar10")
FLARE = ("fc", "cnn", "vgg", "gru")
LAYERS = [
    *((f"flare/{model}", f"methods/{method}") for model in FLARE for method in ("ec", "ef21", "fedavg")),
    *((f"flare/{model}", f"methods/fedprox_{model}") for model in FLARE),
    *((preset, f"methods/{method}") for preset in ("papers/fedopt", "mnist_2nn") for method in ("ec", "ef21")),
    ("papers/fedopt", "methods/fedadam_ec"),
    ("flash/cifar10", "methods/jmwst"),
    ("flash/cifar10", "methods/hetero_jmwst"),
    ("compare/deepspeed", "methods/topk_int8"),
    ("compare/deepspeed", "methods/topk_int8", "methods/fp16_training"),
    (f"{STUDY}/base", f"{STUDY}/full"),
    (f"{STUDY}/base", f"{STUDY}/lora", f"{STUDY}/sparse", f"{STUDY}/full_length"),
]
PARSERS = {  # made once: that takes longer than to parse a command
    "train": functools.cache(train_parser),
    "partition": functools.cache(partition_parser),
    "sweep": functools.cache(sweep_parser),
    "compare": functools.cache(compare_parser),
}
NAMES_OURS = re.compile(rf"--config (configs/|({'|'.join(FILES)})(?![\w/.]))")
COMMAND = re.compile(
    r"(?:flare-dist|flare_dist) (train|partition|sweep|compare) ([^`]+)|launch/\w+\.(?:sh|sbatch) ([^`]+)"
)


@functools.cache
def read(*names: str) -> Config:
    parser = PARSERS["train"]()
    return build_config(parser, parser.parse_args([f"--config={CONFIGS / name}.yaml" for name in names]))


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Find commands that name a file of ours, and their arguments; a line after ... adds to the last whole one."""
    text = re.sub(r"\s*\\\n[#\s]*", " ", text)
    first = ""
    for line in text.splitlines():
        line = re.split(r"\s#|(?<=\S) {3,}", line.strip("# "))[0]
        goes_on = line.startswith("...")
        line = first + line.removeprefix("...") if goes_on else line
        found = COMMAND.search(line)
        if found and NAMES_OURS.search(line) and "--print_config" not in line:
            yield found[1] or "train", found[2] or found[3]
            first = first if goes_on else line
    for arguments in re.findall(r"`(--config [^`]+)`", text):
        if NAMES_OURS.match(arguments):
            yield "train", arguments


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(CONFIGS.rglob("*.yaml"))]
DOCUMENTED = sorted({command for path in DOCUMENTS for command in commands(path.read_text(encoding="utf-8"))})


@pytest.mark.parametrize("layers", [*((name,) for name in FILES if name not in SHARED), *LAYERS], ids="+".join)
def test_shipped_configurations_are_valid_and_every_key_has_an_effect(layers: tuple[str, ...]) -> None:
    assert not keys_without_effect(read(*layers))


def test_configurations_that_several_methods_share_are_valid() -> None:
    for name in SHARED:
        read(name)


def test_every_run_has_a_directory_of_its_own_and_methods_name_none() -> None:
    directories = [read(name).output_dir for name in ALONE]
    assert len(set(directories)) == len(directories)
    assert all(Path(directory).parent == Path("runs") for directory in directories)
    assert {read(name).output_dir for name in METHODS} == {Config().output_dir}


def test_every_method_is_laid_over_something() -> None:
    assert {name for layers in LAYERS for name in layers[1:]} == set(METHODS)


@pytest.mark.parametrize("model", FLARE)
@pytest.mark.parametrize("method", ["ec", "ef21", "fedprox", "fedavg"])
def test_methods_differ_from_flare_in_the_method_alone(model: str, method: str) -> None:
    flare = read(f"flare/{model}")
    other = read(f"flare/{model}", f"methods/{method}_{model}" if method == "fedprox" else f"methods/{method}")
    free = ("clients.objective", "clients.flare.", "clients.fedprox.", "compression.")
    assert flare.clients.objective == "flare"
    assert all(key.startswith(free) for key in differing_keys(as_dict(flare), as_dict(other)))
    assert (flare.compression.density == other.compression.density) is (method != "fedavg")
    if method == "fedprox":
        assert other.clients.fedprox.mu == pytest.approx(2 * flare.clients.flare.tau)
        assert other.clients.fedprox.decay == flare.clients.flare.decay


@pytest.mark.parametrize("preset", ["papers/fedopt", "mnist_2nn", "flare/cnn"])
@pytest.mark.parametrize("method", ["ec", "ef21"])
def test_error_feedback_laid_over_a_preset_has_something_to_feed_back(preset: str, method: str) -> None:
    compression = read(preset, f"methods/{method}").compression
    assert compression.feedback.state_names
    assert compression.rule == method


@pytest.mark.parametrize(("method", "said"), [("ec", ["server.betas"]), ("fedadam_ec", []), ("ef21", [])])
def test_an_adaptive_server_behind_a_residual_is_warned_of_its_momentum(method: str, said: list[str]) -> None:
    config = read("papers/fedopt", f"methods/{method}")
    assert [message.split(":")[0] for message in messages(CAUTIONS, **vars(config))] == said


@pytest.mark.parametrize(("command", "arguments"), DOCUMENTED)
def test_every_command_of_the_documentation_is_valid(
    command: str, arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    parser = PARSERS[command]()
    config = build_config(parser, parser.parse_args(shlex.split(arguments)))
    assert not keys_without_effect(config)
    alone = [read(name).output_dir for name in ALONE if f"configs/{name}.yaml" in arguments]
    alone += [read(name).output_dir for name in ALONE if f"--config {name} " in arguments]
    if re.search(r"--config (configs/)?methods/", arguments):
        assert config.output_dir not in alone


def test_commands_are_found_in_a_text() -> None:
    assert len(DOCUMENTED) > 25
    text = (
        "`--config configs/a.yaml\n--rounds 3` and\n  flare-dist train --config configs/b.yaml \\\n  --seed 1   # so\n"
    )
    assert list(commands(text + "... --rounds 2     or 3\n")) == [
        ("train", "--config configs/b.yaml --seed 1"),
        ("train", "--config configs/b.yaml --seed 1 --rounds 2"),
        ("train", "--config configs/a.yaml\n--rounds 3"),
    ]

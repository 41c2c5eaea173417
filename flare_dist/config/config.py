"""The configuration of a run: one frozen dataclass, composed of each part's own.

The command line, `--help`, `--print_config` and the reading of YAML are made from these classes by jsonargparse.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.config import GradientsConfig
from flare_dist.compatibility import EXCLUSIONS
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.parser import ConfigParser
from flare_dist.config.values import expand_home
from flare_dist.data.config import DataConfig
from flare_dist.engines.config import EngineConfig
from flare_dist.exclusion import refuse
from flare_dist.models.config import ModelConfig
from flare_dist.server.aggregation import WEIGHTINGS
from flare_dist.server.config import ServerConfig
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.pruning import PruningConfig
from flare_dist.tasks.config import TaskConfig

MODES = ("federated", "gradient", "centralised")
PATHS = ("data.root", "clients.state_dir", "checkpoint.resume", "engine.deepspeed_config")  # and output_dir


@dataclass(frozen=True)
class CheckpointConfig:
    """When state is saved, and what a run starts from.

    Args:
        every: rounds between checkpoints; the last round is always saved.
        keep: checkpoints kept, at least 2, so that one survives a damaged file.
        resume: auto (continue the output directory's run if it has a checkpoint), never (start over, removing the run
            that is there) or the path of another run, whose newest checkpoint is continued under this configuration.
    """

    every: int = 10
    keep: int = 2
    resume: str = "auto"

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"checkpoint.every: must be at least 1, got {self.every}")
        if self.keep < 2:
            raise ValueError(f"checkpoint.keep: must be at least 2, got {self.keep}")


@dataclass(frozen=True)
class Config:
    """One run of flare_dist.

    Args:
        seed: every random draw of the run derives from it.
        rounds: rounds to train.
        mode: federated (rounds of clients), gradient (data-parallel training of one model on the pooled data, whose
            gradients are exchanged sparsely in every step; clients.batch_size is that of a rank and a round is
            eval_every steps) or centralised (one model on the pooled data; a round is clients.local_epochs passes, the
            optimizer keeps its state, nothing is sent).
        eval_every: rounds between evaluations on the test set; the initial and the final model are always evaluated.
            In mode gradient the steps of a round, each of which ends with an evaluation.
        output_dir: the run directory: configuration, metrics, TensorBoard events, checkpoints and models.
        data: from which examples the model learns, and how they are divided among the clients.
        task: what is learnt from them.
        model: which model is trained.
        clients: who takes part and how clients train.
        compression: what of a client's model delta travels to the server, or of a rank's gradients to the others.
        gradients: by which hook mode gradient exchanges its gradients.
        server: how the server turns the clients' mean model delta into new global parameters.
        sparse_training: which weights the model has at all, and who decides it.
        pruning: by which score the weights of sparse_training.method=pruned are chosen.
        engine: where local training runs, and in which precision.
        checkpoint: when state is saved, and what a run starts from.
    """

    seed: int = 0
    rounds: int = 40
    mode: str = "federated"
    eval_every: int = 1
    output_dir: str = "runs/default"
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    clients: ClientsConfig = field(default_factory=ClientsConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    gradients: GradientsConfig = field(default_factory=GradientsConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    sparse_training: SparseTrainingConfig = field(default_factory=SparseTrainingConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        self._expand_home()
        if self.mode not in MODES:
            raise ValueError(f"mode: must be one of {', '.join(MODES)}, got {self.mode!r}")
        for name in ("rounds", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.clients.weighting not in WEIGHTINGS:
            known = ", ".join(WEIGHTINGS)
            raise ValueError(f"clients.weighting: must be one of {known}, got {self.clients.weighting!r}")
        if not self.output_dir:
            raise ValueError("output_dir: must name a directory")
        by_hook = self.mode == "gradient" and self.gradients.hook == "sparse"
        refuse(EXCLUSIONS, by_hook=by_hook, **vars(self))

    def _expand_home(self) -> None:
        """Replace `~` in every path, so that the saved configuration means the same folders wherever it is read."""
        object.__setattr__(self, "output_dir", expand_home(self.output_dir, "output_dir"))
        for key in PATHS:
            section, name = key.split(".")
            path = getattr(getattr(self, section), name)
            if isinstance(path, str) and (expanded := expand_home(path, key)) != path:
                changed = dataclasses.replace(getattr(self, section), **{name: expanded})
                object.__setattr__(self, section, changed)

    @property
    def exchanged(self) -> CompressionConfig:
        """`compression` as far as it counts: not where PyTorch's hooks exchange, its downlink for federated clients."""
        if self.mode == "gradient" and self.gradients.hook != "sparse":
            return CompressionConfig(sparsifier="dense")
        return self.compression if self.mode == "federated" else dataclasses.replace(self.compression, downlink="dense")


def config_parser(**options: Any) -> ConfigParser:
    """A parser of every key of `Config`, with --config FILE and --print_config."""
    return ConfigParser(configuration=Config, **options)


def build_config(parser: ConfigParser, namespace: Any) -> Config:
    """The validated configuration of a parsed command line.

    ValueError names the dotted key that is wrong, and where it stands if it is in a file.
    """
    for section in dataclasses.fields(Config):
        if section.default is dataclasses.MISSING and not isinstance(namespace[section.name], Namespace):
            raise ValueError(f"{section.name}: expected keys and values, got {namespace[section.name]!r}")
    with parser.located():
        values = dict(parser.instantiate(namespace))
        return Config(**{field_.name: values[field_.name] for field_ in dataclasses.fields(Config)})


def load_config(*paths: Path) -> Config:
    """The configuration in YAML files: where two set the same key the later one wins."""
    parser = config_parser()
    return build_config(parser, parser.parse_args([f"--config={path}" for path in paths]))


def with_arguments(config: Config, arguments: Sequence[str]) -> Config:
    """`config` with what a command line says; ValueError or ArgumentError if that is no valid configuration."""
    parser = _bare_parser()
    return build_config(parser, parser.parse_args(list(arguments), namespace=parser.parse_string(to_yaml(config))))


@functools.cache
def _bare_parser() -> ConfigParser:
    """Made once: a sweep reads many command lines before it starts."""
    return config_parser()


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(as_dict(config), sort_keys=False)


def with_machine(config: Config, threads: int, device: str) -> Config:
    """The configuration with the intra-op threads and the kind of device settled, on which the bits of a run depend."""
    return dataclasses.replace(config, engine=dataclasses.replace(config.engine, threads=threads, device=device))


def with_together(config: Config, together: str) -> Config:
    """The configuration with clients.together settled, on which the bits of a run depend as well."""
    return dataclasses.replace(config, clients=dataclasses.replace(config.clients, together=together))


def with_task(config: Config, name: str) -> Config:
    """The configuration with task.name settled."""
    return dataclasses.replace(config, task=dataclasses.replace(config.task, name=name))


def with_smallest_batch(config: Config, smallest: int | None) -> Config:
    """The configuration with clients.smallest_batch settled."""
    return dataclasses.replace(config, clients=dataclasses.replace(config.clients, smallest_batch=smallest))


def as_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, as in the YAML file."""

    def plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: as_lists(value) for key, value in pairs}

    def as_lists(value: Any) -> Any:
        return [as_lists(item) for item in value] if isinstance(value, tuple) else value

    return dataclasses.asdict(config, dict_factory=plain)


def with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """What an older version may have saved of a run, with the keys that it did not have yet at their defaults."""

    def fill(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        nested = {
            key: fill(values[key], default)
            for key, default in defaults.items()
            if isinstance(default, dict) and isinstance(values.get(key), dict)
        }
        return defaults | values | nested

    return fill(saved, as_dict(Config()))


def differing_keys(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys whose values differ between two nested dictionaries, in order."""
    for key in [*one, *(key for key in other if key not in one)]:
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from differing_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            yield f"{prefix}{key}"

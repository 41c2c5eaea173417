"""The configuration of a run: one frozen dataclass, composed of each part's own.

jsonargparse makes the command line, `--help`, `--print_config` and the loading of YAML from these classes (load.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.config import GradientsConfig
from flare_dist.compatibility import EXCLUSIONS
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.values import expand_home
from flare_dist.data.config import DataConfig
from flare_dist.engines.config import EngineConfig
from flare_dist.errors import check_choice, check_least
from flare_dist.exclusion import refuse
from flare_dist.models.config import ModelConfig
from flare_dist.schedules import check_schedule
from flare_dist.server.aggregation import WEIGHTINGS
from flare_dist.server.config import ServerConfig
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.pruning import PruningConfig
from flare_dist.tasks.config import TaskConfig
from flare_dist.tasks.evaluation_config import EvaluationConfig

T = TypeVar("T")

MODES = ("federated", "gradient", "centralised")
NAMED = (  # keys that take package.module:callable
    *("data.name", "data.partition", "task.name", "task.loss", "task.metrics", "model.name"),
    *("clients.objective", "clients.optimizer", "clients.lr_schedule"),
    *("compression.sparsifier", "compression.error_feedback", "compression.index_codec", "compression.value_codec"),
    *("server.optimizer", "server.lr_schedule", "server.aggregator"),
)
TRACKERS = ("tensorboard", "wandb", "mlflow")
PATHS = (  # and output_dir
    *("data.root", "data.tokenizer", "clients.state_dir", "checkpoint.resume", "engine.deepspeed_config"),
)


@dataclass(frozen=True)
class CheckpointConfig:
    """Choose when state is saved, and from which state a run starts.

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
        check_least("checkpoint.every", self.every, 1)
        check_least("checkpoint.keep", self.keep, 2)


@dataclass(frozen=True)
class Config:
    """Configure one run of flare_dist.

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
        code_dirs: directories in which package.module:callable is looked for, before the current one and those of the
            configuration files; a run's own config.yaml has those in which it found what it uses.
        tracking: where the curves are shown: any of tensorboard, wandb and mlflow, e.g. [tensorboard, wandb].
        log_every: a line of the log every so many rounds if there is no terminal; 0 = at most one every ten seconds.
            It may change when a run is continued.
        data: the examples, and how they are divided among the clients.
        task: what is learnt from them.
        evaluation: on whom models are measured beside the test set as a whole.
        model: which model is trained.
        clients: who takes part and how clients train.
        compression: how much of a client's model delta travels to the server, or of a rank's gradients to the others.
        gradients: by which hook mode gradient exchanges its gradients.
        server: how the server turns the clients' mean model delta into new global parameters.
        sparse_training: which weights the model has, and who decides it.
        pruning: by which score the weights of sparse_training.method=pruned are chosen.
        engine: the library and the device of local training, and its precision.
        checkpoint: when state is saved, and from which state a run starts.
    """

    seed: int = 0
    rounds: int = 40
    mode: str = "federated"
    eval_every: int = 1
    output_dir: str = "runs/default"
    code_dirs: tuple[str, ...] = ()
    tracking: tuple[str, ...] = ("tensorboard",)
    log_every: int = 1
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
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
        check_choice("mode", self.mode, MODES)
        for name in self.tracking:
            check_choice("tracking", name, TRACKERS)
        check_least("rounds", self.rounds, 1)
        check_least("eval_every", self.eval_every, 1)
        check_least("log_every", self.log_every, 0)
        check_choice("clients.weighting", self.clients.weighting, WEIGHTINGS)
        if not self.output_dir:
            raise ValueError("output_dir: must name a directory, got nothing; choose one, e.g. runs/mine")
        by_hook = self.mode == "gradient" and self.gradients.hook == "sparse"
        refuse(EXCLUSIONS, by_hook=by_hook, **vars(self))
        for key, section in (("clients.lr_schedule", self.clients), ("server.lr_schedule", self.server)):
            check_schedule(section.lr_schedule, key, section.lr_schedule_options, self.rounds)

    def _expand_home(self) -> None:
        """Replace `~` in every path, so that the saved configuration names the same folders wherever it is read."""
        object.__setattr__(self, "output_dir", expand_home(self.output_dir, "output_dir"))
        for key in PATHS:
            section, name = key.split(".")
            path = getattr(getattr(self, section), name)
            if isinstance(path, str) and (expanded := expand_home(path, key)) != path:
                changed = dataclasses.replace(getattr(self, section), **{name: expanded})
                object.__setattr__(self, section, changed)

    @property
    def exchanged(self) -> CompressionConfig:
        """Return `compression` as it takes effect: dense under PyTorch's hooks, with a downlink in federated mode."""
        if self.mode == "gradient" and self.gradients.hook != "sparse":
            return CompressionConfig(sparsifier="dense")
        return self.compression if self.mode == "federated" else dataclasses.replace(self.compression, downlink="dense")


def with_values(config: T, values: Mapping[str, Any]) -> T:
    """Replace values by dotted key, e.g. {"engine.threads": 4}; each dataclass is validated once, with all of its own.

    `config` is a Config or one of its sections, whose keys are then relative to it.
    """
    own = {key: value for key, value in values.items() if "." not in key}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, dot, name = key.partition(".")
        if dot:
            sections.setdefault(section, {})[name] = value
    for section, nested in sections.items():
        own[section] = with_values(getattr(config, section), nested)
    return dataclasses.replace(config, **own)  # type: ignore[type-var]

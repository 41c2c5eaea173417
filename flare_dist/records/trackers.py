"""Weights & Biases and MLflow, one function each: it opens the run there, and yields a function that takes a round.

Both libraries are optional, and read their own environment variables (WANDB_MODE, MLFLOW_TRACKING_URI and so on). The
name of the run at a tracker is kept in the run directory, so that a resumed run goes on there.
"""

from __future__ import annotations

import importlib.util
import os
import re
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flare_dist.config.saved import dotted
from flare_dist.errors import not_installed
from flare_dist.records.files import write_text
from flare_dist.records.rundir import TRACKED

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

WANDB, MLFLOW = TRACKED
PROJECT = "flare_dist"  # unless the environment names another
PATIENCE_SECONDS = 30.0  # at the end of a run, for what has not been sent yet
MOST_PARAMETERS = 100  # that MLflow takes at once
MOST_METRICS = 1000
OF_MLFLOW_DB = ("sqlalchemy", "alembic")


class Point(NamedTuple):
    """Hold the values of a round by tag, and the seconds since 1970 at which it ended."""

    round: int
    time: float
    values: dict[str, float]


class TrackedRun(NamedTuple):
    """Describe a run to trackers: its directory, its configuration and the rounds before this process."""

    directory: Path
    config: dict[str, Any]
    earlier: list[Point]


Send = Callable[[Point], None]


@contextmanager
def wandb_tracker(run: TrackedRun) -> Iterator[Send]:
    """Log to Weights & Biases; offline runs lie in the run directory until `wandb sync` sends them.

    A run that is resumed offline is written anew under the same name, from its first round: nobody knows what of the
    earlier file a kill has left.
    """
    import wandb

    mode = wandb.setup().settings.mode
    if mode in ("online", "shared") and not wandb.login(prompt=False):  # the thread must not wait for somebody to type
        raise ValueError("there is no login; run wandb login, or set WANDB_MODE=offline")
    path = run.directory / WANDB
    name = path.read_text(encoding="utf-8") if path.exists() else uuid.uuid4().hex[:8]
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=name,
        name=os.environ.get("WANDB_NAME", run.directory.name),
        dir=os.environ.get("WANDB_DIR", str(run.directory)),
        config=run.config,
        resume="allow",
        reinit="create_new",  # beside a run of the caller's own
        allow_val_change=True,
        settings=wandb.Settings(finish_timeout=PATIENCE_SECONDS, finish_timeout_raises=True),
    )
    write_text(path, name)

    def send(point: Point) -> None:
        if point.round >= opened.step:  # the tracker has not heard of it yet
            opened.log(point.values | {"round": point.round}, step=point.round)

    for point in run.earlier:
        send(point)
    try:
        yield send
    except BaseException:
        opened.finish(exit_code=1)
        raise
    opened.finish()


@contextmanager
def mlflow_tracker(run: TrackedRun) -> Iterator[Send]:
    """Log to the MLflow server or store that MLFLOW_TRACKING_URI names, by default ./mlflow.db."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient()
    opened = _mlflow_run(client, run)
    name = opened.info.run_id
    last = opened.data.metrics.get("round", -1.0)

    def send(point: Point) -> None:
        if point.round > last:  # the tracker has not heard of it yet
            values = point.values | {"round": point.round}
            moment = round(point.time * 1000)
            metrics = (Metric(_mlflow_name(key), value, moment, point.round) for key, value in values.items())
            while some := list(islice(metrics, MOST_METRICS)):
                client.log_batch(name, some)

    for point in run.earlier:
        send(point)
    try:
        yield send
    except BaseException:
        client.set_terminated(name, "FAILED")
        raise
    client.set_terminated(name)


def _mlflow_name(tag: str) -> str:
    """Write a tag with the characters that MLflow takes, and as a path without empty parts: groups have any name."""
    parts = [re.sub(r"[^\w.\- :]", lambda found: f"_{ord(found[0]):x}_", part) for part in tag.split("/")]
    return "/".join(f"_{part}_" if part in ("", ".", "..") else part for part in parts)


def _mlflow_run(client: MlflowClient, run: TrackedRun) -> Run:
    """Go on with the run of this directory, or begin one if the store has none; parameters are logged once."""
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    path = run.directory / MLFLOW
    if path.exists():
        with suppress(MlflowException):  # another store
            opened = client.get_run(path.read_text(encoding="utf-8"))
            client.update_run(opened.info.run_id, status="RUNNING")
            return opened
    project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(project)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(project)
    opened = client.create_run(experiment_id, run_name=run.directory.name)
    parameters = iter(dotted(run.config).items())
    while some := [Param(key, str(value)) for key, value in islice(parameters, MOST_PARAMETERS)]:
        client.log_batch(opened.info.run_id, params=some)
    write_text(path, opened.info.run_id)
    return opened


def check_installed(names: Collection[str]) -> None:
    """Raise ValueError that names tracking if a tracker's library is missing, or what its store needs."""
    for name in names:
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise ValueError(str(not_installed("tracking", name, f"'flare_dist[{name}]', or leave it out")))
    keeps_file = "mlflow" in names and "MLFLOW_TRACKING_URI" not in os.environ
    missing = [name for name in OF_MLFLOW_DB if importlib.util.find_spec(name) is None] if keeps_file else []
    if missing:
        raise ValueError(
            f"tracking: mlflow's ./mlflow.db needs {' and '.join(missing)}, which mlflow-skinny does not bring; run "
            "pip install 'flare_dist[mlflow]', or set MLFLOW_TRACKING_URI"
        )


TRACKERS = {
    "wandb": wandb_tracker,
    "mlflow": mlflow_tracker,
}

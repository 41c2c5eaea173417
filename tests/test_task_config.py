"""Settings of the task."""

from __future__ import annotations

from typing import Any

import pytest

from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from flare_dist.tasks.builtin import TASKS
from flare_dist.tasks.config import TaskConfig, find_task
from flare_dist.tasks.task import Task


def test_the_task_is_the_data_s_own_unless_it_is_named() -> None:
    assert load(DataConfig(name="digits"), 0).task_name == "classification"
    with pytest.raises(ValueError, match=r"^data\.name: digits: train: labels must be float32 \[1442, 10\], got int64"):
        load(DataConfig(name="digits"), 0, TaskConfig("regression"))
    with pytest.raises(
        ValueError, match=r"^task\.name: unknown choice, got 'ranking'; choose from auto, classification"
    ):
        find_task("ranking")


def ranking(best: object = ("loss", "min")) -> Task:
    return TASKS["regression"]._replace(best=best)  # type: ignore[arg-type]


def test_a_task_of_the_user_s_is_made_with_its_options() -> None:
    assert find_task("tests.test_task_config:ranking").loss == TASKS["regression"].loss
    assert TaskConfig("tests.test_task_config:ranking", {"best": ("mae", "min")}).options == {"best": ("mae", "min")}


@pytest.mark.parametrize("best", ["loss", ("loss", "least"), (1, "max"), None])
def test_the_best_metric_has_a_direction(best: object) -> None:
    with pytest.raises(
        ValueError, match=r'^task\.name: best must be a metric and "max" or "min", got .*; write \("loss"'
    ):
        find_task("tests.test_task_config:ranking", {"best": best})


def changed(**fields: Any) -> Task:
    return TASKS["regression"]._replace(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": None}, r"loss must be a function, got None; for example flare_dist\.Task\(loss=lambda model, batch:"),
        ({"metrics": None}, r"metrics must be a function, got None"),
        ({"criterion": 5}, r"criterion must be a function, got 5"),
        ({"class_of": "pixels"}, r"class_of must be one of example, token, pixel or None, got 'pixels'"),
        ({"torchmetrics": [1]}, r"torchmetrics must be metrics by name, got list"),
        ({"torchmetrics": {"f1": 1}}, r"torchmetrics\['f1'\] must be a torchmetrics\.Metric, got int"),
    ],
)
def test_fields_of_another_kind_are_refused(fields: dict[str, Any], message: str) -> None:
    assert find_task("tests.test_task_config:changed", {"criterion": None}).criterion is None
    with pytest.raises(ValueError, match=rf"^task\.name: {message}"):
        find_task("tests.test_task_config:changed", fields)


def test_built_in_tasks_take_no_options() -> None:
    with pytest.raises(ValueError, match=r"^task\.options\.best: regression takes no such option, got 1; leave it out"):
        TaskConfig("regression", {"best": 1})
    with pytest.raises(ValueError, match=r"^task\.options\.best: the data's own task takes no options; name yours"):
        TaskConfig(options={"best": 1})

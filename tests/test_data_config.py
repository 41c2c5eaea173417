"""Settings of the data: errors name the key, and every key is described."""

from __future__ import annotations

from typing import Any

import jsonargparse
import pytest

from flare_dist.data.config import DataConfig, SyntheticConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": -1}, "data.alpha: must be positive, got -1"),
        ({"alpha": float("nan")}, "data.alpha: must be positive, got nan"),
        ({"validation": 1.0}, r"data.validation: must be in \[0, 1\), got 1.0"),
        ({"examples_per_client": 0}, "data.examples_per_client: must be at least 1, got 0"),
        ({"shards_per_client": 0}, "data.shards_per_client: must be at least 1, got 0"),
        ({"name": "imagenet"}, "data.name: must be one of digits, .*, got imagenet"),
        ({"partition": "non-iid"}, "data.partition: must be one of iid, .*, got non-iid"),
        ({"normalize": "l2"}, "data.normalize: must be one of standard, unit, none, got l2"),
        ({"root": "caf\udce9"}, r"data.root: the name has bytes that are not UTF-8 .*, got caf\\xe9"),
        ({"augment": "mixup"}, "data.augment: must be one of none, .*, got mixup"),
    ],
)
def test_config_errors_name_the_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        DataConfig(**values)


def test_help_describes_every_key() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--data", type=DataConfig, default=DataConfig())
    described = {action.dest: action.help for action in parser._actions}
    keys = [f"data.{key}" for key in DataConfig.__dataclass_fields__ if key != "synthetic"]
    keys += [f"data.synthetic.{key}" for key in SyntheticConfig.__dataclass_fields__]
    assert [key for key in keys if not described.get(key)] == []

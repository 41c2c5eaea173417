"""Settings of the data: errors name the key, and every key is described."""

from __future__ import annotations

from typing import Any

import jsonargparse
import pytest

from flare_dist.data.config import DataConfig, SyntheticConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": -1}, r"data.alpha: out of range, got -1; choose a number in \(0, inf\)"),
        ({"alpha": float("nan")}, r"data.alpha: out of range, got nan; choose a number in \(0, inf\)"),
        ({"validation": 1.0}, r"data.validation: out of range, got 1.0; choose a number in \[0, 1\)"),
        ({"examples_per_client": 0}, "data.examples_per_client: out of range, got 0; choose at least 1"),
        ({"shards_per_client": 0}, "data.shards_per_client: out of range, got 0; choose at least 1"),
        ({"name": "imagenet"}, "data.name: unknown choice, got 'imagenet'; choose from digits, .*"),
        ({"partition": "non-iid"}, "data.partition: unknown choice, got 'non-iid'; choose from iid, .*"),
        ({"normalize": "l2"}, "data.normalize: unknown choice, got 'l2'; choose from standard, unit, none"),
        (
            {"root": "caf\udce9"},
            r"data.root: the name has bytes that are not UTF-8 .*, got caf\\xe9; give a link to it with another name",
        ),
        ({"layout": "flat"}, "data.layout: unknown choice, got 'flat'; choose from classes, sites"),
        ({"image_size": 0}, r"data.image_size: must be one number or \[height, width\], at least 1, got 0"),
        ({"image_size": [4, -1]}, r"data.image_size: must be one number .*, got \[4, -1\]"),
        ({"image_size": [4, 5, 6]}, r"data.image_size: must be one number .*, got \[4, 5, 6\]"),
        ({"image_channels": 4}, r"data.image_channels: must be 3 \(colours\) or 1 \(grey\), got 4"),
        ({"augment": "mixup"}, "data.augment: unknown choice, got 'mixup'; choose from none, .*"),
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

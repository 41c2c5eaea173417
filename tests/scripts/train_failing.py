"""Train from Python a model that fails on rank 1 (tests/helpers/failing.py): argument 1 is the output directory."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import flare_dist


def main() -> None:
    values: dict[str, Any] = {"model.name": "tests.helpers.failing:model", "rounds": 50, "eval_every": 1000}
    flare_dist.train("configs/smoke.yaml", output_dir=sys.argv[1], **values)


if __name__ == "__main__":
    main()

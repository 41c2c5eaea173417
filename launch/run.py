"""Start ranks by a launcher, and end with the error that they have found instead of the launcher's traceback.

    python launch/run.py torchrun --nproc_per_node 2 -m flare_dist train --config FILE

What a user can put right the ranks write into the file FLARE_DIST_ERRORS; each line of it is said once, after all that
the launcher says. A rank that crashes writes nothing there: its traceback and the launcher's report stay.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
from pathlib import Path

# torchrun is the only one that reports on ranks through a logger of this process.
REPORTS = "torch.distributed.elastic.multiprocessing.api"


def main() -> int:
    """Run the launcher that the first argument names; returns its exit status."""
    sys.argv = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="flare_dist-") as folder:
        errors = Path(folder) / "errors"
        errors.touch()
        os.environ["FLARE_DIST_ERRORS"] = str(errors)
        logging.getLogger(REPORTS).addFilter(lambda record: errors.stat().st_size == 0)
        status = _launch(LAUNCHERS[sys.argv[0]], errors)
        if status:
            for line in dict.fromkeys(errors.read_text(encoding="utf-8").splitlines()):
                print(line, file=sys.stderr)
    return status


def _launch(module: str, errors: Path) -> int:
    """The exit status of a launcher's main function; what it raises passes if no rank has said why."""
    try:
        importlib.import_module(module).main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        if errors.stat().st_size == 0:
            raise
        return 1
    return 0


LAUNCHERS = {
    "torchrun": "torch.distributed.run",
    "accelerate": "accelerate.commands.accelerate_cli",
    "deepspeed": "deepspeed.launcher.runner",
}

if __name__ == "__main__":
    raise SystemExit(main())

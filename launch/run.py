"""Start ranks by a launcher, and end with the ranks' own error instead of the launcher's traceback.

    python launch/run.py torchrun --nproc_per_node 2 -m flare_dist train --config FILE

Ranks write errors that a user can put right into the file FLARE_DIST_ERRORS. Each line of it is printed once, after the
launcher's own output. A rank that crashes writes nothing there: its traceback and the launcher's report stay. If a
signal ends a rank or the launcher, e.g. Ctrl-C, one line reports that instead.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

# Only torchrun reports on ranks through a logger of this process.
REPORTS = "torch.distributed.elastic.multiprocessing.api"


def main() -> int:
    """Run the launcher that the first argument names; returns its exit status."""
    sys.argv = sys.argv[1:]
    ranks = os.environ.get("NPROC_PER_NODE", "auto")
    if ranks not in ("auto", "cpu", "gpu") and not (ranks.isdecimal() and int(ranks)):
        print(f"error: NPROC_PER_NODE: expected a number of ranks of at least 1, got {ranks!r}", file=sys.stderr)
        return 2
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
    """Run a launcher's main function; returns its exit status. Its exception passes unless a rank reported an error."""
    try:
        importlib.import_module(module).main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        if errors.stat().st_size == 0:
            stopped = _stopped(error)
            if not stopped:
                raise
            errors.write_text(f"error: {stopped}; the same command continues from the last checkpoint, if there is one")
        return 128 + error.sigval if hasattr(error, "sigval") else 1
    return 0


def _stopped(error: Exception) -> str:
    """Name the signal that stopped the launcher or the first of its ranks to end; empty if none did."""
    if hasattr(error, "sigval"):  # torchrun's SignalException, after it has ended the ranks
        return f"stopped by {signal.Signals(error.sigval).name}"
    if hasattr(error, "get_first_failure"):  # torchrun's ChildFailedError
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            return f"rank {rank} was stopped by {signal.Signals(-failure.exitcode).name}"
    return ""


LAUNCHERS = {
    "torchrun": "torch.distributed.run",
    "accelerate": "accelerate.commands.accelerate_cli",
    "deepspeed": "deepspeed.launcher.runner",
}

if __name__ == "__main__":
    raise SystemExit(main())

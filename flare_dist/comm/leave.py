"""Leave a run that has failed: at once, for what ends a process in order may wait for the other ranks.

NCCL shuts a process group down by flushing it, also as the interpreter ends, and the peers that would have to take part
wait in a collective for this rank. So a program that has failed prints its traceback and ends without either.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

SECONDS_TO_DESTROY = 5.0  # for a group that was left over, in a program that is not ours


def run_and_leave(run: Callable[[], int], rank: int, has_group: Callable[[], bool]) -> int:
    """Return what `run` returns or raises; if it fails and leaves a process group behind, end this process at once."""
    try:
        status = run()
    except BaseException as error:
        if not has_group():
            raise
        status = 1
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        else:  # in one piece, for other ranks write as well
            sys.stderr.write(f"rank {rank} has failed:\n{traceback.format_exc()}")
    if status and has_group():
        leave(status)
    return status


def leave(status: int) -> NoReturn:
    """End this process and its children now, without any function that is registered for its end."""
    for child in multiprocessing.active_children():  # DataLoader's workers, which would look for us for seconds
        child.kill()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def destroy_or_leave(destroy: Callable[[], None]) -> None:
    """Destroy a group that a failed run has left over, at the end of a process; end it if the peers do not come."""
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(SECONDS_TO_DESTROY, exit=True, file=nowhere)
        destroy()
        faulthandler.cancel_dump_traceback_later()

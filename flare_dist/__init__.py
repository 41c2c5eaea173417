"""Federated and data-parallel training that sends sparse updates.

In your own loop: `flare_dist.attach`, or `ddp.register_comm_hook(flare_dist.SparseHookState(...), sparse_hook)`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flare_dist.algorithms.algorithm import Algorithm as Algorithm
    from flare_dist.algorithms.algorithm import LocalContext as LocalContext
    from flare_dist.algorithms.algorithm import LocalWork as LocalWork
    from flare_dist.algorithms.algorithm import Penalty as Penalty
    from flare_dist.algorithms.algorithm import Senders as Senders
    from flare_dist.algorithms.algorithm import Trained as Trained
    from flare_dist.api import bandwidth as bandwidth
    from flare_dist.api import evaluate as evaluate
    from flare_dist.api import export as export
    from flare_dist.api import sweep as sweep
    from flare_dist.api import train as train
    from flare_dist.compression.choices import Sparsifier as Sparsifier
    from flare_dist.compression.config import CompressionConfig as CompressionConfig
    from flare_dist.compression.error_feedback import ErrorFeedback as ErrorFeedback
    from flare_dist.compression.index_codecs import IndexCodec as IndexCodec
    from flare_dist.compression.payload import Sparse as Sparse
    from flare_dist.compression.value_codecs import Groups as Groups
    from flare_dist.compression.value_codecs import ValueCodec as ValueCodec
    from flare_dist.data.source import Part as Part
    from flare_dist.data.source import Source as Source
    from flare_dist.engines.attach import attach as attach
    from flare_dist.engines.lightning_hook import LightningHookCallback as LightningHookCallback
    from flare_dist.engines.transformers_hook import HookCallback as HookCallback
    from flare_dist.hook.checkpoint import load_hook_state as load_hook_state
    from flare_dist.hook.checkpoint import save_hook_state as save_hook_state
    from flare_dist.hook.ddp import sparse_hook as sparse_hook
    from flare_dist.hook.dtensors import hook_tensors as hook_tensors
    from flare_dist.hook.dtensors import load_hook_tensors as load_hook_tensors
    from flare_dist.hook.outer import outer as outer
    from flare_dist.hook.outer_steps import OuterSteps as OuterSteps
    from flare_dist.hook.state import SparseHookState as SparseHookState
    from flare_dist.run.finished import FinishedRun as FinishedRun
    from flare_dist.schedules import Schedule as Schedule
    from flare_dist.tasks.task import Task as Task
    from flare_dist.vocabulary import Vocabulary as Vocabulary

_HOMES = {
    "Algorithm": "flare_dist.algorithms.algorithm",
    "CompressionConfig": "flare_dist.compression.config",
    "ErrorFeedback": "flare_dist.compression.error_feedback",
    "Groups": "flare_dist.compression.value_codecs",
    "IndexCodec": "flare_dist.compression.index_codecs",
    "LocalContext": "flare_dist.algorithms.algorithm",
    "LocalWork": "flare_dist.algorithms.algorithm",
    "Penalty": "flare_dist.algorithms.algorithm",
    "Schedule": "flare_dist.schedules",
    "Senders": "flare_dist.algorithms.algorithm",
    "Sparse": "flare_dist.compression.payload",
    "FinishedRun": "flare_dist.run.finished",
    "Part": "flare_dist.data.source",
    "Source": "flare_dist.data.source",
    "OuterSteps": "flare_dist.hook.outer_steps",
    "SparseHookState": "flare_dist.hook.state",
    "Sparsifier": "flare_dist.compression.choices",
    "Task": "flare_dist.tasks.task",
    "Trained": "flare_dist.algorithms.algorithm",
    "ValueCodec": "flare_dist.compression.value_codecs",
    "Vocabulary": "flare_dist.vocabulary",
    "attach": "flare_dist.engines.attach",
    "bandwidth": "flare_dist.api",
    "evaluate": "flare_dist.api",
    "export": "flare_dist.api",
    "hook_tensors": "flare_dist.hook.dtensors",
    "load_hook_state": "flare_dist.hook.checkpoint",
    "load_hook_tensors": "flare_dist.hook.dtensors",
    "outer": "flare_dist.hook.outer",
    "save_hook_state": "flare_dist.hook.checkpoint",
    "sparse_hook": "flare_dist.hook.ddp",
    "sweep": "flare_dist.api",
    "train": "flare_dist.api",
}
__all__ = sorted(_HOMES)
_HOMES |= {  # of libraries that need not be installed, so `from flare_dist import *` leaves these out
    "HookCallback": "flare_dist.engines.transformers_hook",
    "LightningHookCallback": "flare_dist.engines.lightning_hook",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, so that importing the package does no work (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'flare_dist' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

"""Federated and data-parallel training that sends sparse updates.

In your own loop: `flare_dist.attach`, or `ddp.register_comm_hook(flare_dist.SparseHookState(...), sparse_hook)`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flare_dist.compression.config import CompressionConfig as CompressionConfig
    from flare_dist.data.source import Part as Part
    from flare_dist.data.source import Source as Source
    from flare_dist.engines.attach import attach as attach
    from flare_dist.engines.lightning_hook import LightningHookCallback as LightningHookCallback
    from flare_dist.engines.transformers_hook import HookCallback as HookCallback
    from flare_dist.hook.checkpoint import load_hook_state as load_hook_state
    from flare_dist.hook.checkpoint import save_hook_state as save_hook_state
    from flare_dist.hook.ddp import sparse_hook as sparse_hook
    from flare_dist.hook.state import SparseHookState as SparseHookState
    from flare_dist.tasks.task import Task as Task
    from flare_dist.vocabulary import Vocabulary as Vocabulary

_HOMES = {
    "CompressionConfig": "flare_dist.compression.config",
    "Part": "flare_dist.data.source",
    "Source": "flare_dist.data.source",
    "SparseHookState": "flare_dist.hook.state",
    "Task": "flare_dist.tasks.task",
    "Vocabulary": "flare_dist.vocabulary",
    "attach": "flare_dist.engines.attach",
    "load_hook_state": "flare_dist.hook.checkpoint",
    "save_hook_state": "flare_dist.hook.checkpoint",
    "sparse_hook": "flare_dist.hook.ddp",
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

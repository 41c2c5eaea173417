"""The global model as a file that plain PyTorch loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from flare_dist.fixed import fixed_of
from flare_dist.records import rundir
from flare_dist.records.files import BASE, save_model
from flare_dist.rounds.build_run import Run


def save_global(path: Path, run: Run, header: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write the global model, as clients hold it, in the dtypes that the user has given it, with a header of texts.

    All ranks of host 0 call it, and the first one writes. Of a frozen base the header has the digest, and the file
    nothing else.
    """
    model = run.model
    server = run.server
    view = run.view
    model.load(view, server.buffers)
    floats = dict(model.layout.views(view)) | dict(model.buffer_layout.views(server.buffers))
    names: dict[Any, str] = {
        parameter: name for name, parameter in model.module.named_parameters()
    }  # tied ones have one name here
    state = {name: whole(value) for name, value in model.module.state_dict(keep_vars=True).items()}
    for name, dtype in model.dtypes.items():
        if state[name].dtype != dtype:  # the engine computes in a lower precision than it averages in
            state[name] = floats.get(names.get(state[name], name), state[name]).to(dtype)
    if run.world.number != 0:
        return
    base = fixed_of(model.module).base
    digest = {} if model.base is None else {BASE: model.base}
    save_model(path, {name: value for name, value in state.items() if name not in base}, dict(header) | digest)
    consensus = run.masks.by_name(model.layout)
    if consensus:
        save_model(path.with_suffix(rundir.MASKS_SUFFIX), consensus)


def whole(value: Any) -> Tensor:
    """Return a tensor of which the ranks of this host hold rows, put together; others as they are."""
    found: Tensor = value.full_tensor().detach() if hasattr(value, "full_tensor") else value
    return found

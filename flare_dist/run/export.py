"""The global model as a file that plain PyTorch loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from flare_dist.engines.gathered import whole
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
    is_writer = run.world.rank == 0
    state = {name: value for name, value in _tensors(run) if is_writer}
    consensus = run.masks.by_name()
    if not is_writer:
        return
    digest = {} if model.base is None else {BASE: model.base}
    save_model(path, state, dict(header) | digest)
    if consensus:
        save_model(path.with_suffix(rundir.MASKS_SUFFIX), consensus)


def _tensors(run: Run) -> Iterator[tuple[str, Tensor]]:
    """Yield the global model's tensors by name, without its base; all ranks of its host call it together."""
    model = run.model
    base = fixed_of(model.module).base
    held = dict(model.layout.views(run.view)) | dict(model.buffer_layout.views(run.server.buffers))
    shapes = {entry.name: entry.shape for entry in model.shard.whole.entries} if model.shard else {}
    names: dict[Any, str] = {
        parameter: name for name, parameter in model.module.named_parameters()
    }  # tied ones have one name here
    for name, value in model.module.state_dict(keep_vars=True).items():
        if name in base:
            continue
        dtype = model.dtypes[name]
        own = held.get(names.get(value, name))
        if names.get(value) in shapes:  # of the slices of all ranks, in their order
            assert own is not None
            yield name, run.world.host.gather(own.flatten()).view(shapes[names[value]]).to(dtype).cpu()
        elif own is not None and value.dtype != dtype:  # the engine computes in a lower precision than it averages in
            yield name, own.to(dtype)
        else:
            yield name, whole(value).to(dtype)

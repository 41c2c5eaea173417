"""The global model as a file that plain PyTorch loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flare_dist.data.datasets import DataSplits
from flare_dist.errors import printable
from flare_dist.fixed import fixed_of
from flare_dist.records import rundir
from flare_dist.records.files import BASE, save_model
from flare_dist.rounds.build_run import Run


def metadata(data: DataSplits) -> dict[str, str]:
    """Describe what a model expects of its inputs and what its outputs mean, for the header of its file.

    Values are JSON. `mean` and `std` are those of each channel in the units of pixels, of which `white` is the largest:
    the model takes (pixels - mean) / std. Both are absent if inputs stay as they are.
    """
    facts: dict[str, Any] = {
        "classes": list(map(printable, data.class_names)) or data.num_classes,
        "groups": [printable(str(name)) for name in data.train.group_names],
        "input_shape": data.input_shape,
        "task": data.task_name,
    }
    if data.mean.numel():
        facts |= {"mean": data.mean.tolist(), "std": data.std.tolist(), "white": data.white}
    return {"format": "pt"} | {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}


def save_global(path: Path, run: Run, described: dict[str, str] | None = None) -> None:
    """Write the global model, as clients hold it, in the dtypes that the user has given it; see `metadata`.

    Of a frozen base the header has the digest, and the file nothing else.
    """
    model = run.model
    server = run.server
    view = run.view
    model.load(view, server.buffers)
    floats = dict(model.layout.views(view)) | dict(model.buffer_layout.views(server.buffers))
    names = {parameter: name for name, parameter in model.module.named_parameters()}  # tied ones have one name here
    state = model.module.state_dict(keep_vars=True)
    for name, dtype in model.dtypes.items():
        if state[name].dtype != dtype:  # the engine computes in a lower precision than it averages in
            state[name] = floats.get(names.get(state[name], name), state[name]).to(dtype)
    base = fixed_of(model.module).base
    digest = {} if model.base is None else {BASE: model.base}
    save_model(path, {name: value for name, value in state.items() if name not in base}, (described or {}) | digest)
    consensus = run.masks.by_name(model.layout)
    if consensus:
        save_model(path.with_suffix(rundir.MASKS_SUFFIX), consensus)

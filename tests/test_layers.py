"""The house: imports point one way, and each outside library has its one place."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flare_dist"

# Each folder may import itself and what stands before it in one of these lists.
GROUND = {
    "layout",
    "seeding",
    "schedules",
    "units",
    "disk",
    "errors",
    "locks",
    "preserved",
    "exclusion",
    "conditions",
    "named",
    "imported",
    "given",
    "signatures",
    "vocabulary",
    "fixed",
    "json_lines",
    "progress",
    "devices",
    "cuts",
}
PURE = GROUND | {"tasks", "data", "models", "compression", "algorithms", "sparse_training"}
BELOW = PURE | {"clients", "server", "comm", "hook", "engines"}  # the configuration of a run, which all of it reads
MAY_IMPORT = {
    "layout": {"fixed"},
    "fixed": set(),
    "seeding": set(),
    "json_lines": set(),
    "progress": {"units"},
    "devices": {"units"},
    "cuts": {"layout"},
    "schedules": {"named", "errors"},
    "units": set(),
    "disk": {"errors"},
    "errors": set(),
    "locks": set(),
    "exclusion": set(),
    "preserved": set(),
    "conditions": {"named"},
    "named": {"errors", "given", "imported"},
    "imported": {"errors"},
    "given": set(),
    "signatures": set(),
    "vocabulary": set(),
    "compatibility": {
        *(
            "exclusion",
            "exclusions_one_batch",
            "exclusions_optimizers",
            "exclusions_shards",
            "conditions",
            "algorithms",
        ),
    },
    "exclusions_shards": {"exclusion", "conditions", "algorithms"},
    "exclusions_one_batch": {"exclusion", "conditions", "algorithms"},
    "exclusions_optimizers": {"exclusion", "conditions", "algorithms"},
    "cautions": {"exclusion", "conditions", "algorithms"},
    "tasks": GROUND,
    "data": GROUND | {"tasks"},
    "models": GROUND | {"tasks"},
    "compression": GROUND,
    "algorithms": GROUND,
    "sparse_training": GROUND | {"tasks", "compression"},
    "clients": PURE,
    "server": PURE,
    "comm": PURE | {"clients", "server"},
    "hook": PURE | {"comm"},
    "engines": PURE | {"clients", "server", "comm", "hook"},
    "config": BELOW,
    "records": BELOW | {"config"},
    "rounds": BELOW | {"config"},
    "run": BELOW | {"config", "records", "rounds"},
    "studies": BELOW | {"config", "records", "rounds"},
    "analysis": {"layout", "units", "json_lines", "errors", "tasks", "config"},
    "cli": BELOW | {"config", "records", "rounds", "run", "studies", "analysis"},
    "api": BELOW | {"config", "records", "rounds", "run", "studies", "analysis"},
    "__main__": {"cli"},
    "__init__": {
        *("api", "run", "vocabulary", "tasks", "data", "hook", "compression", "engines", "algorithms", "schedules"),
    },
}
# Who else may import the tables of what goes with what; they import algorithms, so they are no ground.
READERS = {
    "compatibility": {
        "data",
        "compression",
        "sparse_training",
        "clients",
        "server",
        "hook",
        "engines",
        "config",
        "rounds",
        "run",
        "cli",
    },
    "cautions": {"run", "cli"},
    "exclusions_one_batch": {"rounds"},
}
ONLY_IN = {
    "torch.distributed": {"comm/collectives.py", "comm/world.py", "comm/group.py"},
    "torch.distributed.tensor": {"hook/dtensors.py"},
    "torch.distributed.device_mesh": {"engines/fsdp.py"},
    "torch.distributed.checkpoint": {"hook/dtensors.py"},
    "torch.distributed.fsdp": {"engines/fsdp.py", "engines/fsdp_groups.py", "engines/attach.py"},
    "accelerate": {"engines/placement.py", "engines/accelerate_hook.py"},
    "deepspeed": {f"engines/{name}.py" for name in ("deepspeed", "deepspeed_engine", "deepspeed_slices", "gathered")},
    "jsonargparse": {"config/load.py", "config/config_parser.py", "config/parser.py"},
    "tensorboard": {"analysis/events.py", "records/tensorboard.py", "records/cards.py"},
    "wandb": {"records/trackers.py"},
    "mlflow": {"records/trackers.py"},
    "onnx": {"engines/onnx_export.py"},
    "matplotlib": {"analysis/figure_style.py"},
    "plotly": {"analysis/page.py"},
    "jinja2": {"analysis/page.py"},
    "triton": {
        *(f"compression/gpu_{name}_kernels.py" for name in ("part", "bits")),
        *(f"compression/gpu_{name}.py" for name in ("kernels", "sum_kernel", "walks")),
    },
    "transformers": {"data/tokenizer.py", "models/hugging_face.py", "engines/transformers_hook.py"},
    "peft": {"models/adapters.py"},
    "lightning": {"engines/lightning_hook.py"},
    "pytorch_lightning": {"engines/lightning_hook.py"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of what a module imports; `from a import b` counts as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def import_graph() -> dict[str, set[str]]:
    """Map each file to those that it imports at any depth: within functions and under TYPE_CHECKING too."""
    dotted = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in MODULES}
    modules = {name.removesuffix(".__init__"): str(path.relative_to(PACKAGE)) for path, name in dotted.items()}
    graph = {}
    for own, file in modules.items():
        names = imports(PACKAGE / file)
        # `from a import b` runs the module a, and the module a.b if there is one.
        used = names | {name.rpartition(".")[0] for name in names}
        graph[file] = {modules[name] for name in used & modules.keys() - {own}}
    return graph


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    used = {name.split(".")[1] for name in imports(path) if name.startswith("flare_dist.")}
    tables = {table for table, readers in READERS.items() if part(path) in readers}
    assert used <= MAY_IMPORT[part(path)] | tables | {part(path)}


def test_no_files_import_each_other_in_a_circle() -> None:
    circle: list[str] = []
    try:
        TopologicalSorter(import_graph()).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert not circle, f"these files are in a circle, each imported by the next: {', '.join(circle)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_library_has_its_place(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    for library, places in ONLY_IN.items():
        uses = any(is_of(imported, library) for imported in imports(path))
        assert not uses or name in places, f"{name} imports {library}"


def is_of(imported: str, library: str) -> bool:
    """Tell if a name belongs to a library, and to none inside of it that has a place of its own."""
    inside = [other for other in ONLY_IN if other.startswith(f"{library}.")]
    if any(is_of(imported, other) for other in inside):
        return False
    return imported == library or imported.startswith(f"{library}.")


def test_no_folder_inside_a_folder_and_no_long_module() -> None:
    for path in MODULES:
        assert len(path.relative_to(PACKAGE).parts) <= 2
        assert len(path.read_text().splitlines()) <= 200, f"split {path}"

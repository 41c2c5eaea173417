"""The notebook of examples/ runs from top to bottom, and is committed with small outputs of such a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"


def test_it_is_committed_as_it_ran() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 60_000
    assert not re.search(r"/(?:tmp|home|root|usr)/", text)
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs: list[dict[str, Any]] = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    kernels = pytest.importorskip("ipykernel.kernelspec")
    # The kernel is a process of this interpreter, whatever kernels are registered, and finds the package as it does.
    kernels.write_kernel_spec(str(tmp_path / "jupyter" / "kernels" / "python3"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOK, 4)
    committed = [cell.get("outputs", []) for cell in notebook.cells]
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises the error of a cell
    accuracies = [re.findall(r"round 12  accuracy (\S+)", str(outputs)) for outputs in committed]
    again = [re.findall(r"round 12  accuracy (\S+)", str(cell.get("outputs", []))) for cell in notebook.cells]
    expected = [float(number) for found in accuracies for number in found]
    assert len(expected) == 2
    assert [float(number) for found in again for number in found] == pytest.approx(expected, abs=0.03)

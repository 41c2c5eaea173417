"""Packaged configurations are found by name from any directory, and a built package holds them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flare_dist import cli
from flare_dist.config import packaged
from flare_dist.config.load import load_config
from flare_dist.config.packaged import description, find_config, packaged_configs
from tests.helpers.configs import cached_parser

ROOT = Path(__file__).parent.parent
STUDIES = ROOT / "configs" / "studies"
OF_BENCHMARKS = tuple(STUDIES / name for name in ("adamw", "outer", "federated_lora"))  # grids, and layers of them


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_shipped_configuration_has_a_name_and_says_what_it_is() -> None:
    shipped = {path for path in (ROOT / "configs").rglob("*.yaml") if path.parent not in OF_BENCHMARKS}
    assert set(packaged_configs().values()) == shipped
    assert packaged_configs()["flare/fc"] == ROOT / "configs" / "flare" / "fc.yaml"
    for path in shipped:
        words = description(path)
        assert len(words) > 20
        assert "--config" not in words


def test_names_are_layers_in_an_empty_directory(nowhere: Path) -> None:
    layered = load_config(Path("flare/fc"), Path("methods/ec"))
    files = [ROOT / "configs" / f"{name}.yaml" for name in ("flare/fc", "methods/ec")]
    assert layered == load_config(*files)
    assert layered.clients.objective == "none"
    assert layered.data.name == "mnist"


def test_a_file_of_the_user_wins_and_a_folder_does_not(nowhere: Path) -> None:
    (nowhere / "flare").mkdir()
    (nowhere / "flare" / "fc").write_text("rounds: 7\n")
    (nowhere / "quickstart").mkdir()
    assert load_config(Path("flare/fc")).rounds == 7
    assert find_config("quickstart") == str(ROOT / "configs" / "quickstart.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quikstart", "did you mean quickstart?"),
        ("fc", "did you mean flare/fc?"),
        ("configs/quickstart.yaml", "did you mean quickstart?"),
        ("flare/cf", "did you mean flare/fc or flare/cnn?"),
        ("mine.yaml", "check the path, or choose a packaged one: diloco, extreme_sparsity, "),
    ],
)
def test_a_missing_file_is_answered_with_packaged_names(nowhere: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^config: {text}: there is no such file; ") as error:
        cached_parser().parse_args([f"--config={text}"])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_errors_name_the_packaged_file(nowhere: Path) -> None:
    parser = cached_parser()
    parser.parse_args(["--config=quickstart"])
    located = parser.origins.locate("clients.num: too many")
    assert located.startswith(f"clients.num: {ROOT / 'configs' / 'quickstart.yaml'}:")


def test_a_built_package_holds_all_modules_and_configurations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("setuptools")
    build = "from setuptools import setup; setup()"
    arguments = ["-q", "egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", build, *arguments], cwd=ROOT, check=True, capture_output=True)
    built = tmp_path / "lib" / "flare_dist"
    modules = {path.relative_to(built) for path in built.rglob("*.py")}
    assert modules == {path.relative_to(ROOT / "flare_dist") for path in (ROOT / "flare_dist").rglob("*.py")}
    data = {path.name for path in built.rglob("*.*") if path.suffix not in (".py", ".yaml")}
    assert data == {"py.typed", "page.html", "page.css", "page.js"}
    names = list(packaged_configs())
    monkeypatch.setattr(packaged, "PACKAGE", built)
    packaged_configs.cache_clear()
    try:
        assert list(packaged_configs()) == names
        assert find_config("quickstart") == str(built / "configs" / "quickstart.yaml")
        assert cli.main(["configs"]) == 0
    finally:
        packaged_configs.cache_clear()
    listed = capsys.readouterr().out
    assert all(name in listed for name in names)

"""Runs of different work are told apart, and a directory without a log is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flare_dist import cli
from flare_dist.analysis.run_logs import check_same_work, read_run
from tests.helpers.run_logs import write_run


def test_gradient_runs_on_different_numbers_of_ranks_are_different_work(tmp_path: Path) -> None:
    for ranks in (1, 4):
        write_run(tmp_path / str(ranks), ranks=ranks)
        config = yaml.safe_load((tmp_path / str(ranks) / "config.yaml").read_text())
        (tmp_path / str(ranks) / "config.yaml").write_text(yaml.safe_dump(config | {"mode": "gradient"}))
    runs = [read_run(tmp_path / str(ranks), {}) for ranks in (1, 4)]
    said = check_same_work(runs)
    assert said is not None
    assert "differ in ranks" in said
    assert check_same_work([runs[0], runs[0]]) is None


def test_different_work_is_refused_unless_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / str(size), batch_size=size)) for size in (10, 20)]
    said = check_same_work([read_run(Path(run), {}) for run in runs])
    assert said is not None
    assert "the runs differ in clients.batch_size" in said
    assert cli.main(["bandwidth", *runs]) == 2
    assert "--allow_different compares them all the same" in capsys.readouterr().err
    assert cli.main(["bandwidth", *runs, "--allow_different", "--output_dir", str(tmp_path / "report")]) == 0
    assert "Beware: the runs differ in clients.batch_size" in capsys.readouterr().err
    (tmp_path / "10/config.yaml").write_text("[not, a, configuration")
    said = check_same_work([read_run(Path(run), {}) for run in runs])
    assert said is not None
    assert "has no config.yaml" in said


def test_directories_without_a_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds neither metrics"):
        read_run(tmp_path, {})
    (tmp_path / "metrics.jsonl").write_text("{")
    with pytest.raises(ValueError, match="has no readable line"):
        read_run(tmp_path, {})


def test_without_a_task_the_metric_is_what_was_measured(tmp_path: Path) -> None:
    assert read_run(write_run(tmp_path / "a"), {}).best == ("accuracy", "max")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/metrics.jsonl").write_text('{"round": 0, "test_loss": 2.0}\n')
    assert read_run(tmp_path / "b", {}).best == ("loss", "min")
    (tmp_path / "b/summary.json").write_text('{"metric": "perplexity", "better": "min"}')
    assert read_run(tmp_path / "b", {}).best == ("perplexity", "min")


@pytest.mark.parametrize("name", ["new\nline", "tab\tname", "not \udcff utf-8"])
def test_a_directory_whose_name_cannot_be_printed_is_compared_under_an_escaped_one(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    try:
        directory.mkdir()
    except (OSError, UnicodeError):
        pytest.skip("no file system for such names")
    (directory / "metrics.jsonl").write_text('{"round": 1, "accuracy": 0.5}\n')
    assert read_run(directory, {}).name == f"{tmp_path}/{name.encode('unicode_escape').decode().replace('udc', 'x')}"

"""Files of states are checked before they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from flare_dist.clients.version_files import version_path
from flare_dist.clients.versions import FileLayout
from tests.helpers.states import change, checkpoint, mapped_states


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_files_that_are_not_whole_are_found_without_reading(tmp_path: Path, how: str) -> None:
    states = mapped_states(tmp_path)
    change(states, 3)
    stored = checkpoint(states, 1)
    assert stored.problems() == []
    path = version_path(tmp_path, 3, 1)
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:-1])
    (problem,) = stored.problems()
    assert str(path) in problem


def test_a_flipped_bit_is_found_when_its_client_takes_part(tmp_path: Path) -> None:
    states = mapped_states(tmp_path)
    change(states, 3)
    change(states, 4)
    stored = checkpoint(states, 1)
    path = version_path(tmp_path, 3, 1)
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.write_bytes(content)
    again = mapped_states(tmp_path)
    again.take_over(stored)
    change(again, 4)
    with pytest.raises(RuntimeError, match=rf"clients\.state_dir: {path} is damaged"):
        change(again, 3)


def test_vectors_begin_at_cache_lines_and_fill_their_file(tmp_path: Path) -> None:
    layout = FileLayout(("residual", "mask"), 17)
    assert layout.nbytes == 2 * 4 * 32
    (tmp_path / "file").write_bytes(bytes(layout.nbytes))
    vectors = layout.vectors(layout.map(tmp_path / "file", writable=False))
    assert [(name, vector.shape) for name, vector in vectors.items()] == [("residual", (17,)), ("mask", (17,))]

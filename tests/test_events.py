"""The undamaged part of an event file counts, and the file is named."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from flare_dist import cli
from flare_dist.analysis.bandwidth import totals
from flare_dist.analysis.bandwidth_table import lines
from flare_dist.analysis.events import read_event_file
from flare_dist.analysis.links import Link
from flare_dist.analysis.run_logs import read_run
from tests.helpers.event_files import TAGS, amounts, read, sent, write

SEED = 18
FILES = 2000  # that are mutated


def record(event: bytes) -> bytes:
    """Make the record of an event, with right checksums."""
    length = struct.pack("<Q", len(event))
    return length + struct.pack("<I", masked_crc32c(length)) + event + struct.pack("<I", masked_crc32c(event))


def records(data: bytes) -> list[bytes]:
    """Divide a whole file into its records."""
    found = []
    while data:
        end = 16 + struct.unpack("<Q", data[:8])[0]
        found.append(data[:end])
        data = data[end:]
    return found


@pytest.mark.parametrize("place", [4, 10, 30], ids=["length", "checksum", "value"])
def test_a_flipped_byte_costs_its_record_alone(tmp_path: Path, place: int) -> None:
    path = write(tmp_path, sent(range(1, 21)))
    parts = records(path.read_bytes())
    changed = bytearray(parts[10])
    changed[place] ^= 255
    path.write_bytes(b"".join([*parts[:10], bytes(changed), *parts[11:]]))
    assert amounts(tmp_path) == (19, 19, pytest.approx(20))
    start, size = sum(map(len, parts[:10])), path.stat().st_size
    damage = f"{len(changed)} of its {size} bytes are damaged and left out (bytes {start} to {start + len(changed)})"
    assert read(tmp_path)[0].notes == [f"{path}: {damage}"]


def test_a_cut_tail_and_one_of_zeros_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, sent(range(1, 21)))
    whole = path.read_bytes()
    for tail in (whole[:-7], whole + bytes(100_000)):
        path.write_bytes(tail)
        expected = 19 if len(tail) < len(whole) else 20
        assert amounts(tmp_path) == (expected, expected, pytest.approx(expected))
        (note,) = read(tmp_path)[0].notes
        assert note.startswith(f"{path}: ")
        assert note.endswith(f"to {len(tail)}, the end of the file)")


def test_an_empty_file_is_named_alone_and_beside_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "events.out.tfevents.1.h"
    empty.touch()
    command = ["bandwidth", str(tmp_path), "--tag", "wire_bytes=comm/sent", "--output_dir", str(tmp_path / "report")]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert f"warning: {empty}: it is empty" in said
    assert f"error: bandwidth: {tmp_path} has no tag comm/sent (its tags: none)" in said
    write(tmp_path, sent(range(1, 21)))
    (tmp_path / "events.out.tfevents.2.gone").symlink_to(tmp_path / "nowhere")
    assert cli.main(command) == 0
    said = capsys.readouterr().err
    assert f"warning: {empty}: it is empty" in said
    assert "tfevents.2.gone: it cannot be read (No such file or directory)" in said
    assert amounts(tmp_path) == (20, 20, pytest.approx(20))


def test_tensors_that_hold_no_single_number_are_left_out(tmp_path: Path) -> None:
    event = Event(step=1, wall_time=1.0)
    text = event.summary.value.add(tag="comm/text").tensor
    text.dtype = 7
    text.string_val.append(b"many")
    vast = event.summary.value.add(tag="comm/vast").tensor
    vast.dtype = 1
    vast.float_val.append(1.0)
    vast.tensor_shape.dim.add(size=2**50)
    event.summary.value.add(tag="comm/sent", simple_value=5.0)
    path = tmp_path / "events.out.tfevents.1.h"
    path.write_bytes(record(event.SerializeToString()) + record(b"\xff no event"))
    file = read_event_file(path)
    assert [(scalar.tag, scalar.value) for scalar in file.scalars] == [("comm/sent", 5.0)]
    assert file.lost is not None
    assert file.lost.startswith("26 of its 132 bytes are damaged")


def mutate(parts: list[bytes], draw: random.Random) -> bytes:
    """Damage a file in one way."""
    data = bytearray(b"".join(parts))
    place, length = draw.randrange(len(data)), draw.randrange(1, 60)
    kind = draw.randrange(8)
    if kind == 0:
        data[place] ^= draw.randrange(1, 256)
    elif kind == 1:
        data[place : place + length] = draw.randbytes(length)
    elif kind == 2:
        data[place:place] = draw.randbytes(length)
    elif kind == 3:
        del data[place : place + length]
    elif kind == 4:
        del data[place:]
    elif kind == 5:
        data += draw.randbytes(length)
    elif kind == 6:  # records in another order, some of them twice: all are whole
        return b"".join(draw.choices(parts, k=len(parts)))
    else:  # another event with right checksums: a number, a step, a time, a tag or a type that nobody expects
        number = draw.randrange(1, len(parts))
        event = bytearray(parts[number][12:-4])
        event[draw.randrange(len(event))] = draw.randrange(256)
        return b"".join([*parts[:number], record(bytes(event)), *parts[number + 1 :]])
    return bytes(data)


def test_two_thousand_damaged_files_are_read_or_refused_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each gives its numbers or an error with the path, and a line that names the file if bytes are lost."""
    caplog.set_level("CRITICAL", logger="flare_dist")
    path = write(
        tmp_path, [*sent(range(1, 5)), ("ranks/ranks", 5, 2, 4.5), *sent(range(5, 8)), ("loss/train", 7, 1, 8)]
    )
    parts, draw = records(path.read_bytes()), random.Random(SEED)
    for number in range(FILES):
        damaged = mutate(parts, draw)
        path.write_bytes(damaged)
        try:
            log = read_run(tmp_path, TAGS)
            lines([totals(log, [Link("slow", 1e6)], "ranks", 0.5)], 0.5)
        except ValueError as error:
            refused = str(error)
            assert (str(tmp_path) in refused, "\n" in refused) == (True, False), number
            continue
        if not is_made_of_records(damaged):
            assert any(note.startswith(f"{path}: ") for note in log.notes), number


def is_made_of_records(data: bytes) -> bool:
    """Tell whether the file consists of whole records, so that no reader can see the damage."""
    while len(data) >= 16:
        end = 16 + int(struct.unpack("<Q", data[:8])[0])
        if data[:end] != record(data[12 : end - 4]):
            return False
        data = data[end:]
    return not data

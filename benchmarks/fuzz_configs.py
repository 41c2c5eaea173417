"""Damage configuration files, and check that each is read as it was meant or refused in one line that names the file.

    python benchmarks/fuzz_configs.py [--files 1000] [--seed 18]

Takes the files under configs/ and the whole default configuration, damages each in one to three ways, as hands,
editors, templates and disks do, and reads it as `--config` does. Prints how many were accepted and refused, and those
that ended in another exception or whose message lacks the path. The exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import codecs
import random
import sys
import tempfile
from argparse import ArgumentError
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from flare_dist.config.config import Config
from flare_dist.config.config_parser import ConfigParser
from flare_dist.config.load import build_config, config_parser
from flare_dist.config.saved import to_yaml

CONFIGS = Path(__file__).parent.parent / "configs"
SEED = 18
VALUES = """
    null|~||''|no|yes|on|off|true|.nan|.inf|-.inf|1e999|1e-3|1_000|010|0x10|3.0|2.5|-1|0|99999999999999999999|12:30:15
    2024|2024-01-31|"3"|'0.1'|text|[]|{}|[1, 2]|[[1, 2], [3]]|[a, null]|{a: 1}|{a: {b: [1]}}|*unknown|&a [*a]|&a {b: *a}
    !!python/object:os.system x|!my 3|!!int "3"|!!str 3|!!binary aGk=|? |<<|=|@x|`x`|%x|"\\q"|"open|'open|[open|{open
    ~/x|~nobody-here/x|../x|café|🙂|- 1|>|\t1
""".replace("\n", "|")
CHARACTERS = "\t\0\r\n\x07\x85\u2028\ufeff:#-?,[]{}&*!|>'\"%@`<= \\é🙂0"


def lines_of(text: str, draw: random.Random) -> tuple[list[str], int]:
    lines = text.splitlines(keepends=True) or [""]
    return lines, draw.randrange(len(lines))


def other_value(text: str, draw: random.Random) -> str:
    lines, at = lines_of(text, draw)
    key = lines[at].partition(":")[0]
    value = draw.choice([value.strip(" ") for value in VALUES.split("|")])
    lines[at] = f"{key}: {value}\n"
    return "".join(lines)


def twice(text: str, draw: random.Random) -> str:
    lines, at = lines_of(text, draw)
    lines.insert(draw.randrange(len(lines)), lines[at])
    return "".join(lines)


def left_out(text: str, draw: random.Random) -> str:
    lines, at = lines_of(text, draw)
    return "".join(lines[:at] + lines[at + 1 :])


def indented(text: str, draw: random.Random) -> str:
    lines, at = lines_of(text, draw)
    lines[at] = draw.choice(["\t", " ", "  ", "        "]) + lines[at]
    return "".join(lines)


def character(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text) + 1)
    return text[:at] + draw.choice(CHARACTERS) + text[at + draw.randrange(2) :]


def misspelt(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text) + 1)
    return text[:at] + text[at + 1 : at + 2] + text[at : at + 1] + text[at + 2 :]


def cut(text: str, draw: random.Random) -> str:
    return text[: draw.randrange(len(text) + 1)]


def another_document(text: str, draw: random.Random) -> str:
    return text + draw.choice(["---\n", "...\n", "--- 3\n"]) + draw.choice(["", text])


def as_list(text: str, draw: random.Random) -> str:
    return "".join(f"- {line}" for line in text.splitlines(keepends=True))


def nested(text: str, draw: random.Random) -> str:
    depth = draw.choice([3, 100, 3000])
    return text + draw.choice(["[" * depth, "a: " + "{a: " * depth + "1" + "}" * depth, "? " * depth])


def merged(text: str, draw: random.Random) -> str:
    return text + draw.choice(["<<: *a\n", "clients: &a {num: 3}\n<<: *a\n", "<<: 3\n", "<<: [{rounds: 3}]\n"])


TEXTS: list[Callable[[str, random.Random], str]] = [
    other_value, other_value, other_value, twice, left_out, indented, character, misspelt, cut, another_document,
    as_list, nested, merged,
]  # fmt: skip


def mutated(number: int, seed: int, originals: list[str]) -> bytes:
    """Damage one file; its number and the seed determine how."""
    draw = random.Random(f"{seed}/{number}")
    text = draw.choice(originals)
    for _ in range(draw.randint(1, 3)):
        text = draw.choice(TEXTS)(text, draw)
    encoding = draw.choice(["utf-8"] * 12 + ["utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
    data = bytearray(text.encode(encoding, "replace"))
    if data and draw.random() < 0.1:
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data) if draw.random() < 0.98 else draw.choice([b"", codecs.BOM_UTF8, b"\xff\xfe", b"\x80\n"])


def judge(parser: ConfigParser, path: Path) -> str:
    """Tell whether a file is accepted or refused, or describe what is wrong with the refusal."""
    try:
        build_config(parser, parser.parse_args(["--config", str(path)]))
    except (ValueError, ArgumentError) as error:
        message = str(error)
        return "refused" if str(path) in message and len(message) < 1000 else f"no path or too long: {message[:300]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]!r}"
    return "accepted"


def fuzz(files: int, seed: int) -> tuple[Counter[str], dict[int, str]]:
    """Count the files that were accepted and refused; returns the problems of the others by number as well."""
    originals = [path.read_text(encoding="utf-8") for path in sorted(CONFIGS.rglob("*.yaml"))] + [to_yaml(Config())]
    parser = config_parser()
    counts = Counter[str]()
    wrong = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(files):
            path = Path(folder) / f"{number}.yaml"
            path.write_bytes(mutated(number, seed, originals))
            outcome = judge(parser, path)
            if outcome in ("accepted", "refused"):
                counts[outcome] += 1
            else:
                wrong[number] = outcome
    return counts, wrong


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--files", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=SEED)
    options = arguments.parse_args()
    counts, wrong = fuzz(options.files, options.seed)
    print(f"{counts['accepted']} accepted, {counts['refused']} refused, {len(wrong)} wrong (seed {options.seed})")
    for number, outcome in wrong.items():
        print(f"{number}: {outcome}")
    sys.exit(1 if wrong else 0)

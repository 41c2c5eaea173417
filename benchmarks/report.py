"""Put the output of a benchmark into docs/benchmarks/index.md, between the marks of its name; the rest stays as it is.

python benchmarks/selection.py | python benchmarks/report.py selection
"""

from __future__ import annotations

import datetime
import re
import sys
from pathlib import Path

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks" / "index.md"


def main() -> None:
    name = sys.argv[1]
    printed = sys.stdin.read().strip()
    if not printed:
        raise SystemExit(f"error: {name} printed nothing; {DOCUMENT} stays as it was")
    begin = f"<!-- {name} -->"
    end = f"<!-- end of {name} -->"
    text = DOCUMENT.read_text(encoding="utf-8")
    if begin not in text:
        raise SystemExit(f"error: {DOCUMENT} has no place for {name} ({begin})")
    day = datetime.date.today().isoformat()
    section = f"{begin}\n{printed}\n\nMeasured {day}.\n{end}"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    DOCUMENT.write_text(re.sub(pattern, lambda _: section, text, flags=re.DOTALL), encoding="utf-8")
    print(printed)


if __name__ == "__main__":
    main()

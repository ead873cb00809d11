"""Write the items that come with the package: python -m mergekern.lab.items."""

from __future__ import annotations

import json
from pathlib import Path

from mergekern.evaluate.packaged import ITEMS
from mergekern.lab.data import items
from mergekern.lab.domains import SOURCES


def files() -> dict[str, str]:
    """Name -> content: of every domain the items that are reported, and those to choose by."""
    found = {}
    for domain in SOURCES:
        found[f"{domain}.jsonl"] = _lines(items(domain, "test"))
        if SOURCES[domain].validated:
            found[f"{domain}-validation.jsonl"] = _lines(items(domain, "validation"))
    return found


def write(folder: Path = ITEMS) -> None:
    for name, content in files().items():
        (folder / name).write_text(content, encoding="utf-8")


def _lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    write()

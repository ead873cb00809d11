"""What became of every cell: one line of JSON for each, the last one counts.

    {"cell": "ties/lambda=0.4/merge", "key": "…", "status": "done", "seconds": 1.9, "peak": 312}

A line holds for the key it was written with: a cell whose inputs or settings changed is done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekern.errors import OutputError

Facts = Mapping[str, Any]


class State:
    """The cells of a run, in a file that every line is safe in before the next cell begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: dict[str, dict[str, Any]] = {}
        try:
            held = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from error
        self._cut = not held.endswith(b"\n") if held else False  # by a kill
        for line in held.decode("utf-8", errors="replace").split("\n"):
            try:
                cell = json.loads(line)
            except ValueError:
                continue  # empty, or cut short
            self._cells[cell["cell"]] = cell

    def done(self, cell: str, key: str) -> dict[str, Any] | None:
        """What is known of a finished cell; None where it is to be done."""
        found = self._cells.get(cell)
        return found if found and found["status"] == "done" and found["key"] == key else None

    def of(self, cell: str) -> dict[str, Any] | None:
        """The last line of a cell, whatever became of it."""
        return self._cells.get(cell)

    def add(self, cell: str, key: str, status: str, **facts: Any) -> dict[str, Any]:
        """Record a cell."""
        line = {"cell": cell, "key": key, "status": status, **facts}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._cut + json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written: {error.strerror}") from error
        self._cut = False
        self._cells[cell] = line
        return line

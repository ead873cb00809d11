"""The benchmarks run, find their results right, and give every figure."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_part_gives_its_figures(tmp_path: Path) -> None:
    written = tmp_path / "limits.json"
    command = [sys.executable, "bench/limits.py", "--quick", "--json", str(written)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=900)
    parts = json.loads(written.read_text())["parts"]
    assert len(parts) == 10
    for name, rows in parts.items():
        assert rows, name
        for row in rows:
            spread = row["rounds"]
            assert math.isfinite(row["measured"]), row["what"]
            assert spread["min"] <= spread["median"] <= spread["max"], row["what"]

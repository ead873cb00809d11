"""The benchmarks run, find their results right, and give every figure."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rows import Row

ROOT = Path(__file__).parent.parent


def test_results_are_given_as_a_table(tmp_path: Path) -> None:
    missed = Row("planning", "s", 2.5, (2.5, 3.0), 2.0, at_most=True, beside="27 µs a tensor")
    unjudged = Row("dispatch", "µs a tensor", 123.4, (123.4,))
    written = tmp_path / "limits.json"
    written.write_text(json.dumps({"parts": {"one": [missed.as_json(), unjudged.as_json()]}}))
    command = [sys.executable, "bench/limits.py", "--table", str(written)]
    shown = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    assert shown.stdout.splitlines()[2:] == [
        "| planning | 2.5 s | 2.5 – 3 | ≤ 2 (missed) | 27 µs a tensor |",
        "| dispatch | 123 µs a tensor | 123 – 123 |  |  |",
    ]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run it on")
def test_what_will_run_on_a_gpu(tmp_path: Path) -> None:
    written = tmp_path / "gpu.json"
    command = [sys.executable, "bench/gpu.py", "--rehearse", "--json", str(written)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=600)
    rows = json.loads(written.read_text())["parts"]["triton"]
    assert len(rows) == 8 and all(math.isfinite(row["measured"]) for row in rows)


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


@pytest.mark.slow
@pytest.mark.skipif(
    not (ROOT / ".venv-parity/bin/mergekit-yaml").exists(), reason="mergekit is not installed"
)
def test_both_tools_side_by_side(tmp_path: Path) -> None:
    written = tmp_path / "versus.json"
    command = [sys.executable, "bench/versus.py", "--quick", "--only", "linear"]
    command += ["--scratch", str(tmp_path), "--json", str(written)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    rows = json.loads(written.read_text())["parts"]["linear"]
    assert [row["unit"] for row in rows][:3] == ["× faster", "× faster", "× less"]
    assert all(math.isfinite(row["measured"]) and row["measured"] > 0 for row in rows)

"""What the trained models show; they are trained first if there are none in the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from mergekern.evaluate import gain
from mergekern.lab import make_lab, run_demo


@pytest.mark.demo
def test_merges_of_the_demo_are_above_base(tmp_path: Path) -> None:
    result = run_demo(tmp_path, console=Console(quiet=True))
    assert all(interval.low > 0 for interval in result.made.gains.values())
    base = result.results.base
    assert base is not None
    for row in result.results.rows:
        assert row.evaluation is not None and gain(row.evaluation, base).low > 0.1, row.method


@pytest.mark.slow
def test_the_labs_experts_are_experts(tmp_path: Path) -> None:
    make_lab(tmp_path, console=Console(quiet=True)).check()

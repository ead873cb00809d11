"""The peak of a process that merges checkpoints several times larger than its memory budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import buffers, hashes, merge, write_model

import mergekern
from mergekern.budget import memory_estimate
from mergekern.machine import available_bytes, resident_bytes
from mergekern.speculation import Trial

MIB = 1 << 20
BUDGET = 420 * MIB
ROWS = {"embed": 64_000, **{f"layer.{number}.up": 8_000 for number in range(8)}}
WIDTH = 1024

PROGRAM = """
import json, sys
from pathlib import Path
import mergekern
arguments, output = json.loads(sys.argv[1]), sys.argv[2]
estimate = mergekern.plan(**arguments).memory.total
report = mergekern.merge(**arguments, output=output, threads=2)
# Not ru_maxrss, which a child process inherits from its parent.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"peak": peak, "read": report.bytes_read, "estimate": estimate}))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base and three fine-tunes of 256 MiB each; "embed" takes 125 MiB of each, 625 in all."""
    root = tmp_path_factory.mktemp("models")
    noise = torch.randn(WIDTH * 1000, generator=torch.Generator().manual_seed(0))
    folders = []
    for number in range(4):
        state = {
            name: (1 + noise.roll(number) / 100).bfloat16().repeat(rows // 1000).view(rows, WIDTH)
            for name, rows in ROWS.items()
        }
        folders.append(str(write_model(root / str(number), state)))
    return folders


METHODS: dict[str, dict[str, Any]] = {
    "linear": {"recipe_or_method": "linear", "weight": [0.2, 0.3, 0.5]},
    "task_arithmetic": {"recipe_or_method": "task_arithmetic"},
    "ties": {"recipe_or_method": "ties", "density": 0.2},
    "ties, model": {"recipe_or_method": "ties", "density": 0.2, "scope": "model"},
    "model_stock": {"recipe_or_method": "model_stock"},
    "dare_ties": {"recipe_or_method": "dare_ties", "density": 0.2, "seed": 1},
    "emr": {"recipe_or_method": "emr"},
}


@pytest.mark.parametrize("name", METHODS)
def test_peak(models: list[str], tmp_path: Path, name: str) -> None:
    arguments: dict[str, Any] = METHODS[name] | {"models": models[1:], "max_memory": BUDGET}
    if name != "linear":
        arguments["base"] = models[0]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(arguments), str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["read"] > 1.5 * BUDGET
    assert found["peak"] <= found["estimate"] + 2 * MIB
    assert found["estimate"] <= BUDGET


@pytest.mark.parametrize("share", [0, 40_000])
@pytest.mark.parametrize("nbytes", [7_000_000, 1 << 26], ids=["tiles", "whole"])
def test_open_elements_stay_within_their_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int, share: int
) -> None:
    """Without ties, a guess leaves open what is not to be held: then magnitudes are counted."""
    g = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(1_500_000, generator=g)}
    tuned = {"w": base["w"] + 1e-3 * torch.randn(1_500_000, generator=g)}
    folders = [write_model(tmp_path / str(n), state) for n, state in enumerate((base, tuned))]
    merge(folders, tmp_path / "free", "ties")
    kept, lost = [], []
    honest = Trial.verdict

    def watched(trial: Trial, tensors: Any) -> Any:
        found = honest(trial, tensors)
        lost.append(trial.lost)
        kept.append(sum(count for _, count in trial.doubts.sizes()))
        return found

    monkeypatch.setattr(Trial, "verdict", watched)
    buffers(monkeypatch, nbytes, open_=share)
    merge(folders, tmp_path / "bounded", "ties")
    assert lost == [True] and kept[0] * (24 + 2 * 4) <= share
    assert hashes(tmp_path / "bounded") == hashes(tmp_path / "free")


def test_estimate(models: list[str]) -> None:
    """Bounded by the budget where there is one, and by what the plan can use where not."""
    plan = mergekern.plan("ties", base=models[0], models=models[1:], density=0.2)
    assert plan.memory is not None and "at the peak" in str(plan.memory)
    free = memory_estimate([plan])
    assert free.least <= free.total
    assert 625 * MIB <= free.buffers < 2 * 625 * MIB  # "embed", and no other like it
    tight = memory_estimate([plan], free.least)
    assert tight.total <= free.least + MIB
    roomy = memory_estimate([plan], 1 << 40)
    assert roomy.buffers == free.buffers


def test_what_is_free() -> None:
    assert 0 < available_bytes() < 1 << 44
    assert 0 < resident_bytes() < 1 << 40

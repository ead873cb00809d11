"""Files are merged, planned and told about without torch, whose loading takes seconds; and merged
without what draws tables and bars, and the commands that they do not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders import CONFIG, write_model
from safetensors.torch import save_file

PROGRAM = """
import json, sys
from importlib.abc import MetaPathFinder

class NoTorch(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] != "torch", "torch is loaded"

sys.meta_path.insert(0, NoTorch())
from mergekern.cli import app

merges, others = json.loads(sys.argv[1])
for line in merges:
    assert not app(line, standalone_mode=False), line
loaded = sorted({"rich", "mergekern.evaluate", "mergekern.collect"} & set(sys.modules))
assert not loaded, f"{loaded} are loaded"
for line in others:
    assert not app(line, standalone_mode=False), line
"""
DELTAS = ("task_arithmetic", "ties", "dare_ties", "della", "breadcrumbs", "sce", "model_stock")
SHAPE = (1200, 700)
DTYPES = {"up": torch.bfloat16, "half": torch.float16, "wide": torch.float32, "ids": torch.int64}


def write_adapter(folder: Path) -> Path:
    """Of a rank of 2, for the tensor `up`."""
    folder.mkdir()
    factors = {"A": torch.randn(2, SHAPE[1]), "B": torch.randn(SHAPE[0], 2)}
    weights = {f"base_model.model.up.lora_{name}.weight": x for name, x in factors.items()}
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """A base, two fine-tunes of it, and the base with an adapter."""
    made = []
    for number in range(3):
        state = {
            f"{name}.weight": (torch.randn(SHAPE) if name != "ids" else torch.ones(9)).to(dtype)
            for name, dtype in DTYPES.items()
        }
        made.append(str(write_model(tmp_path / f"model{number}", state)))
    return [*made, f"{made[0]}+{write_adapter(tmp_path / 'adapter')}"]


def test_nothing_of_files_needs_torch(folders: list[str], tmp_path: Path) -> None:
    base, *models, adapted = folders
    experts = [word for model in models for word in ("--model", model)]
    where = ["--base", base, *experts, "--device", "cpu", "--quiet"]
    recipe = {"merge_method": "ties", "base_model": base, "parameters": {"density": 0.5}}
    recipe["models"] = [{"model": adapted}, {"model": models[0]}]
    (tmp_path / "lora.yml").write_text(json.dumps(recipe))
    whole = ["-p", "density=0.3", "-p", "scope=model"]
    merges = {
        "linear": ["linear", *experts, "--device", "cpu", "--max-shard-size", "4MB"],
        "slerp": ["slerp", *where[:4], "-p", "t=0.3", "--device", "cpu"],
        "lora": [str(tmp_path / "lora.yml"), "--device", "cpu", "--out-dtype", "float16"],
        "ties, model": ["ties", *where, *whole],
        **{name: [name, *where] for name in DELTAS},
        **{f"{name}, 0.5": [name, *where, "-p", "density=0.5"] for name in DELTAS[1:5]},
    }
    lines = [["merge", "ties", "o", *where, "--dry-run"]]
    for name, (what, *options) in merges.items():
        lines.append(["merge", what, str(tmp_path / "out" / name), *options])
    others = [["--version"], ["methods", "ties"]]
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([lines, others])],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name in merges:
        written = json.loads((tmp_path / "out" / name / "config.json").read_text())
        assert written["model_type"] == CONFIG["model_type"]  # written last

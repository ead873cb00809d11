"""Small model folders with every awkward kind of tensor, and merges of them for comparison."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergekern
from mergekern import engine
from mergekern.budget import MemoryEstimate
from mergekern.journal import NAME as JOURNAL

CONFIG = {"model_type": "test", "architectures": ["Test"]}
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear", "weight": [0.25, 0.75]},
    "ties": {"method": "ties", "density": 0.3},
    "ties, model": {"method": "ties", "density": 0.3, "scope": "model"},
    "breadcrumbs": {  # in two passes
        **{"method": "breadcrumbs", "density": 0.4, "gamma": 0.1},
        **{"scope": "model", "ties": "keep"},
    },
    "karcher": {"method": "karcher"},
    "multislerp": {"method": "multislerp", "weight": [0.25, 0.75]},
    "ram": {"method": "ram", "epsilon": 1e-2},
    "ramplus_tl": {"method": "ramplus_tl", "epsilon": 1e-2},
    "nuslerp, columns": {
        **{"method": "nuslerp", "weight": [0.25, 0.75]},
        **{"nuslerp_flatten": False, "nuslerp_row_wise": True},
    },
    "dare": {"method": "dare_ties", "density": 0.4, "seed": 7},
    "varm, model": {"method": "varm", "granularity": "model"},
}
CONTAINERS: dict[str, dict[str, Any]] = {"emr": {"method": "emr"}}


def tensors(seed: int, near: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Large, small, odd, empty, other dtypes, integers; with `near`, a fine-tune of those."""
    g = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "embed": (torch.bfloat16, (700, 1000)),
        "empty": (torch.bfloat16, (0, 4)),
        "head.f32": (torch.float32, (300, 333)),
        "scalar": (torch.float32, ()),
        "half": (torch.float16, (70_001,)),
    }
    for layer in range(4):
        shapes[f"layer.{layer}.up"] = (torch.bfloat16, (200, 1001))
        shapes[f"layer.{layer}.norm"] = (torch.bfloat16, (33,))
    for number in range(30):
        shapes[f"tiny.{number}"] = (torch.bfloat16, (number % 7 + 1,))
    found = {}
    for name, (dtype, shape) in shapes.items():
        x = torch.randn(shape, generator=g)
        found[name] = (near[name].float() + 1e-2 * x if near else x).to(dtype)
    found["ids"] = torch.arange(100_000)
    found["mask"] = torch.ones(5, dtype=torch.bool)
    return found


def write_model(folder: Path, state: Mapping[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    save_file(dict(state), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder's shards."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def write_models(root: Path, experts: int = 2) -> list[Path]:
    """A base and fine-tunes of it; the base comes first."""
    base = tensors(0)
    folders = [write_model(root / "base", base)]
    for number in range(experts):
        state = tensors(number + 1, base)
        folders.append(write_model(root / f"expert{number}", state))
    return folders


def merge(folders: Sequence[Path], output: Path, name: str = "linear", **more: Any) -> Any:
    """A merge of write_models() by one of METHODS, or into one of CONTAINERS."""
    options = dict({**METHODS, **CONTAINERS}[name]) | more
    method = options.pop("method")
    base = None if method == "linear" else str(folders[0])
    models = [str(folder) for folder in folders[1:]]
    options.setdefault("threads", 2)
    return mergekern.merge(method, base=base, models=models, output=str(output), **options)


def hashes(folder: Path) -> dict[str, str]:
    """File name -> sha256 of the weights and everything else that must not differ."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def unfinished(folder: Path) -> bool:
    """True when nothing in the folder can be taken for a finished merge."""
    return (folder / JOURNAL).exists() or not folder.exists() or not any(folder.iterdir())


def buffers(
    monkeypatch: pytest.MonkeyPatch, nbytes: int, tile: int | None = None, open_: int = 1 << 26
) -> None:
    """Give merges buffers of this size, whatever Python and torch hold."""

    def estimate(*_: object) -> MemoryEstimate:
        return MemoryEstimate(0, 0, nbytes, 0, tile, open_)

    monkeypatch.setattr(engine.budget, "memory_estimate", estimate)


class Watch:
    """A progress display that keeps what it is told, and may call something at every step."""

    def __init__(self, at: Callable[[], None] = lambda: None) -> None:
        self.total = self.tensors = self.moved = self.done = self.stopped = 0
        self.phases: dict[str, int] = {}
        self._at = at

    def start(self, total_bytes: int, tensors: int) -> None:
        self.total, self.tensors = total_bytes, tensors

    def more(self, nbytes: int) -> None:
        self.total += nbytes

    def advance(self, nbytes: int, tensors: int, phase: str) -> None:
        self.moved += nbytes
        self.done += tensors
        self.phases[phase] = self.phases.get(phase, 0) + nbytes
        self._at()

    def stop(self) -> None:
        self.stopped += 1

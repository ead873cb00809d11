"""What a GPU must show before its figures mean anything: the CPU's bytes, and no stray access."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu_ops import given_thresholds, linear_op, ranked
from on_device import DEVICE, base_and_experts
from parts.fused import dare_op
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.backends.choose import get_backend
from mergekern.dtypes import FLOAT32
from mergekern.fused import Tile

ROOT = Path(__file__).resolve().parent.parent


def grid() -> str:
    """The tests that compare backends bit for bit, which run on a GPU where there is one."""
    skipped = ["--ignore", "tests/backends/test_triton_code.py"]  # compiles for other devices
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/backends", *skipped]
    return _last_line(command, timeout=240)


def whole_merges(kinds: list[str]) -> str:
    """Folders and state dicts merged by every backend, by the hash of what comes out."""
    calls: list[tuple[str, dict[str, Any]]] = [
        ("linear", {}),
        ("task_arithmetic", {"lambda_": 0.7}),
        ("ties", {"density": 0.2}),
        ("ties", {"density": 0.2, "scope": "model"}),
        ("ties", {"density": 0.5, "ties": "keep", "max_device_memory": "32MiB"}),
        ("dare_linear", {"density": 0.1, "seed": 7}),
        ("dare_ties", {"density": 0.3, "seed": 7}),
        ("breadcrumbs", {"density": 0.9, "gamma": 0.01}),
    ]
    wrong = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = _folders(Path(scratch))
        for number, (method, parameters) in enumerate(calls):
            base = None if method == "linear" else folders[0]
            call = {"base": base, "models": folders[1:], **parameters}
            hashes = {}
            for kind in ("cpu", *kinds):
                output = Path(scratch) / f"{kind}{number}"
                mergekern.merge(method, output=output, backend=kind, **call)
                hashes[kind] = _hash(output)
            if len(set(hashes.values())) > 1:
                wrong.append(f"{method} {parameters} into folders: {hashes}")
            states = [
                None if f is None else load_file(f / "model.safetensors")
                for f in (base, *folders[1:])
            ]
            wrong += _compare_states(method, parameters, states, kinds)
    return "; ".join(wrong) or f"passed ({2 * len(calls)} merges on {', '.join(kinds)} and cpu)"


def _compare_states(
    method: str, parameters: dict[str, Any], states: list[Any], kinds: list[str]
) -> list[str]:
    own = {k: v for k, v in parameters.items() if k != "max_device_memory"}
    want = mergekern.merge(method, base=states[0], models=states[1:], backend="cpu", **own)
    there = [s and {name: x.to(DEVICE) for name, x in s.items()} for s in states]
    wrong = []
    for kind in kinds:
        got = mergekern.merge(method, base=there[0], models=there[1:], backend=kind, **own)
        assert isinstance(got, dict) and isinstance(want, dict)
        differ = [
            name
            for name, x in want.items()
            if not torch.equal(got[name].cpu().view(torch.int16), x.view(torch.int16))
        ]
        if differ:
            wrong.append(f"{method} {own} in {kind} memory: {differ[:3]} differ")
    return wrong


def _folders(scratch: Path) -> list[Path]:
    """A base and three fine-tunes: large and small tensors, odd lengths, in bf16."""
    shapes = {"embed": (3001, 1031), "norm": (77,), "one": (1,), "large": (2048, 4099)}
    folders = []
    g = torch.Generator().manual_seed(0)
    base = {name: 0.02 * torch.randn(shape, generator=g) for name, shape in shapes.items()}
    for number in range(4):
        state = {}
        for name, x in base.items():
            delta = 3e-4 * torch.randn(x.shape, generator=g) if number else torch.zeros(())
            state[f"{name}.weight"] = (x.bfloat16().float() + delta).bfloat16()
        folder = scratch / f"model{number}"
        folder.mkdir()
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text('{"model_type": "llama", "dtype": "bfloat16"}')
        folders.append(folder)
    return folders


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def sanitizer(kinds: list[str]) -> str:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "skipped: compute-sanitizer is not installed"
    if "cuda" not in kinds:
        return "skipped: for CUDA kernels"
    script = (
        "import sys; sys.path.insert(0, 'bench'); import gpu_checks; gpu_checks.touch_everything()"
    )
    verdicts = []
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", script]
        verdicts.append(f"{check} {_last_line(command, timeout=90)}")
    good = all("passed" in verdict for verdict in verdicts)
    return f"{'passed' if good else 'failed'} ({'; '.join(verdicts)})"


def touch_everything() -> None:
    """Every kind of launch once, over lengths that end within a block."""
    backend = get_backend("cuda", device=DEVICE.type, held=str(DEVICE))
    for numel in (1, 2047, 70_001):
        for experts in (1, 4, 9):
            base, tuned = base_and_experts(numel, experts)
            tile = Tile("w", 0, base, tuple(tuned))
            out = torch.empty_like(base)
            for op in (given_thresholds(tile), dare_op(experts, "mass"), linear_op(experts)):
                backend.fuse(op, tile, out)
            backend.fuse_batch(*ranked(tile, out))
            backend.masked_sums(dare_op(experts, "none"), tile)
            backend.gram(tile, FLOAT32)
    torch.cuda.synchronize()


def _last_line(command: list[str], timeout: int) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"failed: not done after {timeout} s"
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    if done.returncode:
        print("\n".join(lines[-60:]), file=sys.stderr)
    return f"{'passed' if done.returncode == 0 else 'failed'}: {lines[-1]}"

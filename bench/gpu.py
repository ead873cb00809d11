"""Everything that needs a GPU, in one command and under eight minutes: `python bench/gpu.py`.

Checks first: the property grid of the tests, whole merges by every backend compared byte for byte,
and compute-sanitizer where it is installed. Then the figures, each against the copy bandwidth that
the same run measures, as one table and as one JSON file in bench/results/.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_checks
import torch
from gpu_ops import given_thresholds, linear_op, ranked, sum_op
from in_torch import ties as ties_in_torch
from on_device import (
    COPIED,
    DEVICE,
    GPU,
    Work,
    alternate,
    base_and_experts,
    copy_of,
    llama_3b,
    peak_of,
)
from parts.fused import dare_op
from rows import Row, of_floor, show
from timing import Times

import mergekern
from mergekern.backends.choose import get_backend
from mergekern.fused import FusedOp, Tile

RESULTS = Path(__file__).with_name("results")
KINDS = ("cuda", "triton")
EXPERTS, NUMEL = 8, 1 << 30
WANTED = {"cuda": 0.90, "triton": 0.85}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that all runs")
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny sizes without a GPU, by Triton's interpreter"
    )
    parser.add_argument("--no-checks", action="store_true", help="figures only")
    parser.add_argument("--no-figures", action="store_true", help="checks only")
    parser.add_argument("--json", type=Path, help="where the results go")
    arguments = parser.parse_args()
    if arguments.rehearse:
        if GPU:
            sys.exit("there is a GPU: no need to rehearse")
        arguments.backend, arguments.no_checks = ["triton"], True
    elif not GPU:
        sys.exit("torch sees no GPU on this machine: nothing to check, nothing to measure")
    numel = NUMEL // (1 << 20 if arguments.rehearse else 64 if arguments.quick else 1)
    described = describe() if GPU else {"gpu": "none"}
    print(", ".join(f"{key} {value}" for key, value in described.items()), flush=True)
    checks: dict[str, str] = {}
    parts: dict[str, list[Row]] = {}
    if not arguments.no_checks:
        checks = run_checks(arguments.backend)
    if not arguments.no_figures:
        for kind in arguments.backend:
            with stopwatch(f"figures of {kind}"):
                parts[kind] = figures(kind, numel)
                if numel != NUMEL:  # small sizes are held against nothing
                    parts[kind] = [replace(row, wanted=None) for row in parts[kind]]
    show(parts)
    for name, verdict in checks.items():
        print(f"{name}: {verdict}")
    rows = {kind: [row.as_json() for row in several] for kind, several in parts.items()}
    name = re.sub(r"\W+", "-", described["gpu"]).lower().strip("-")
    target = arguments.json or RESULTS / f"gpu-{name}.json"
    if arguments.rehearse and not arguments.json:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": described, "quick": arguments.quick, "checks": checks, "parts": rows}
    target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if any(not verdict.startswith(("passed", "skipped")) for verdict in checks.values()):
        sys.exit(1)


def describe() -> dict[str, Any]:
    device = torch.cuda.get_device_properties(0)
    versions = {}
    for name in ("mergekern", "torch", "triton"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return {
        "gpu": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_GiB": round(device.total_memory / 2**30, 1),
        "cuda": torch.version.cuda or "none",
        **versions,
    }


@contextmanager
def stopwatch(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def run_checks(kinds: list[str]) -> dict[str, str]:
    found = {}
    with stopwatch("property grid"):
        found["property grid"] = gpu_checks.grid()
    with stopwatch("whole merges"):
        found["whole merges"] = gpu_checks.whole_merges(kinds)
    with stopwatch("compute-sanitizer"):
        found["compute-sanitizer"] = gpu_checks.sanitizer(kinds)
    return found


def figures(kind: str, numel: int) -> list[Row]:
    copy, copied = copy_of(min(COPIED, 4 * numel))
    rows = fused_and_selected(kind, numel, copy, copied)
    state = whole_state_dict(kind, copy, copied, smaller=1 if GPU else 512)
    return [*rows, *against_torch(kind, numel // 8), state]


def fused_and_selected(kind: str, numel: int, copy: Work, copied: int) -> list[Row]:
    """Each against a copy that moves as many bytes."""
    backend = get_backend(kind, held=str(DEVICE))
    base, tuned = base_and_experts(numel, EXPERTS)
    tile, out = Tile("w", 0, base, tuple(tuned)), torch.empty_like(base)
    read = base.nbytes * (EXPERTS + 1)
    fused = WANTED[kind]

    def fuse(op: FusedOp) -> Work:
        return lambda: backend.fuse(op, tile, out)

    def exact() -> object:
        return backend.fuse_batch(*ranked(tile, out))

    cuda = kind == "cuda"
    runs = [
        ("fused linear", fuse(linear_op(EXPERTS)), read, fused),
        ("fused task arithmetic", fuse(sum_op(EXPERTS)), read + base.nbytes, fused),
        ("fused TIES, thresholds given", fuse(given_thresholds(tile)), read + base.nbytes, fused),
        ("DARE-TIES", fuse(dare_op(EXPERTS, "mass")), read + base.nbytes, 0.70 if cuda else None),
        ("exact TIES, selection and merge", exact, read, 0.60 if cuda else None),
    ]
    rows = []
    for what, run, nbytes, wanted in runs:
        floor, ours = alternate([copy, run], 10)
        seconds = tuple(t * nbytes / copied for t in floor.wall)
        name = f"{what}, {EXPERTS} bf16 experts"
        rows.append(of_floor(name, Times(seconds, seconds), ours, nbytes, wanted))
    return rows


def against_torch(kind: str, numel: int) -> list[Row]:
    """TIES end to end in the device's memory, and the same in torch operations there."""
    base, tuned = base_and_experts(numel, 4)
    call = {"base": {"w": base}, "models": [{"w": x} for x in tuned], "density": 0.2}

    def ours() -> object:
        return mergekern.merge("ties", backend=kind, **call)

    def peer() -> object:
        return ties_in_torch(base, tuned, torch.float32, 0.2)

    theirs, mine = alternate([peer, ours], 5)
    rounds = tuple(a / b for a, b in zip(theirs.wall, mine.wall, strict=True))
    faster = Row("TIES end to end against torch", "× faster", theirs.best / mine.best, rounds, 20.0)
    share = peak_of(ours) / peak_of(peer)
    memory = Row("its peak memory", "of torch's", share, (share,), 0.25, at_most=True)
    return [faster, memory]


def whole_state_dict(kind: str, copy: Work, copied: int, smaller: int) -> Row:
    """Task arithmetic over the tensors of a 3 B model, five experts."""
    base = llama_3b(0, None, smaller)
    experts = [llama_3b(1 + k, base, smaller) for k in range(5)]
    nbytes = 7 * sum(x.nbytes for x in base.values())

    def run() -> object:
        return mergekern.merge("task_arithmetic", base=base, models=experts, backend=kind)

    launches = _launches(run)
    floor, ours = alternate([copy, run], 5)
    times = nbytes / copied
    rounds = tuple(o / (f * times) for f, o in zip(floor.wall, ours.wall, strict=True))
    measured = ours.best / (floor.best * times)
    what = f"task arithmetic, 3 B state dict, 5 experts ({launches} launches)"
    return Row(what, "× the copy's time", measured, rounds, 1.2, at_most=True)


def _launches(run: Work) -> int:
    """Kernels that one call launches, copies and fills left out."""
    run()
    if not GPU:
        return 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    skipped = ("memcpy", "memset")
    return sum(
        1
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.name.lower().startswith(skipped)
    )


if __name__ == "__main__":
    main()

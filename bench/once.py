"""One merge in a process of its own, so that nothing else counts towards its time and memory.

`in_child` starts it; the child prints what it found as one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timing import cpu_seconds


@dataclass(frozen=True)
class Found:
    """imported: peak memory when all is imported and nothing done; peak: at the end."""

    wall: float
    cpu: float
    imported: int
    peak: int


def in_child(how: str, **request: Any) -> Found:
    """how: one of WAYS; request: the arguments of its function."""
    command = [sys.executable, __file__, how, json.dumps(request, default=str)]
    # Huge pages for what torch allocates: its best case, which no setting of ours depends on.
    tuned = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if how == "torch" else {}
    child = subprocess.run(command, capture_output=True, text=True, env=os.environ | tuned)
    if child.returncode:
        raise RuntimeError(f"{how} merge failed:\n{child.stderr}")
    return Found(**json.loads(child.stdout.splitlines()[-1]))


def _peak() -> int:
    """Of this process; ru_maxrss would count what its parent held when it started."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def with_mergekern(method: str, **call: Any) -> Found:
    import mergekern

    return _timed(lambda: mergekern.merge(method, **call))


def with_torch(folders: list[str], output: str, density: float) -> Found:
    """Everything loaded, merged tensor by tensor as mergekit does, saved and synced."""
    import torch
    from in_torch import ties
    from safetensors.torch import load_file, save_file

    def run() -> None:
        base, *experts = [load_file(f"{folder}/model.safetensors") for folder in folders]
        merged = {
            name: ties(tensor, [x[name] for x in experts], torch.bfloat16, density)
            for name, tensor in base.items()
        }
        os.makedirs(output)
        save_file(merged, f"{output}/model.safetensors", metadata={"format": "pt"})
        with open(f"{output}/model.safetensors", "rb") as file:
            os.fsync(file.fileno())

    return _timed(run)


def _timed(run: Callable[[], object]) -> Found:
    imported, before, started = _peak(), cpu_seconds(), time.perf_counter()
    run()
    return Found(time.perf_counter() - started, cpu_seconds() - before, imported, _peak())


WAYS = {"mergekern": with_mergekern, "torch": with_torch}

if __name__ == "__main__":
    print(json.dumps(asdict(WAYS[sys.argv[1]](**json.loads(sys.argv[2])))))

"""Programs of this folder as processes of their own, to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parent.parent
BUFFERS = 2_700_000


def child(program: str, *arguments: str) -> list[str]:
    return [sys.executable, str(SUPPORT / program), *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)])}


def killed(models: list[Path], root: Path, name: str, calls: list[int]) -> str:
    """Merges into root/CALL, each killed at that call; see killed.py."""
    paths = ",".join(str(model) for model in models)
    command = child("killed.py", paths, str(root), name, str(BUFFERS), *map(str, calls))
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout

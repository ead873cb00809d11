"""Settings of the build that cannot be meant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("architectures", ["", " , ", "75 90", "sm_90", "90 8"])
def test_architectures_that_cannot_be(architectures: str) -> None:
    settings = {"MERGEKERN_CUDA": "0", "MERGEKERN_CUDA_ARCHS": architectures}
    command = [sys.executable, "setup.py", "--version"]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True
    )
    assert run.returncode and "Traceback" not in run.stderr
    assert f"MERGEKERN_CUDA_ARCHS is {architectures!r}; want the compute capabilities" in run.stderr

"""What Triton compiles the kernels to, ahead of time, for devices that need not be there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "tests" / "support" / "triton_code.py"
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# The quick suite compiles these, for one device; the slow one everything, for all.
MAIN = ("ties8", "dare", "look", "count", "gram")
OTHERS = (
    *("linear", "task_arithmetic", "ties4", "ties_separate", "dare_ties", "count_max_fp32"),
    *("mixed", "fp64", "speculate", "masked_sums"),
)
CUDA = ("cuda80", "cuda90")
CASES = [
    pytest.param(
        device, name, marks=[] if device == "cuda90" and name in MAIN else pytest.mark.slow
    )
    for device in CUDA
    for name in (*MAIN, *OTHERS)
]


@cache
def compiled(folder: Path, device: str, names: tuple[str, ...]) -> Path:
    """The folder that holds the code of some kernels."""
    folder = folder / device
    folder.mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, SCRIPT, device, folder, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("code")


def code_of(folder: Path, device: str, name: str) -> Path:
    return compiled(folder, device, MAIN if name in MAIN else OTHERS) / name


@pytest.mark.parametrize(("device", "name"), CASES)
def test_code_for_nvidia(folder: Path, device: str, name: str) -> None:
    path = code_of(folder, device, name)
    ptx = path.with_suffix(".ptx").read_text()
    loads, stores = ptx.count("ld.global.v4"), ptx.count("st.global.v4")
    inputs = {"ties8": 9, "look": 9, "task_arithmetic": 9, "linear": 8, "dare": 5, "count": 2}
    assert loads >= inputs.get(name, 0)
    assert stores >= (name in ("ties8", "task_arithmetic", "linear", "dare", "speculate"))
    assert not re.search(r"\b(fma|mad)\S*\.f(32|64)", ptx), "a product and a sum in one rounding"
    assert not re.search(r"div\.(full|approx)|rcp\.approx", ptx), "a division that is not IEEE's"
    assert ".ftz" not in ptx, "denormals are flushed"
    assert ".local" not in ptx
    sass = subprocess.run(
        [BINARIES / "cuobjdump", "--dump-sass", path.with_suffix(".cubin")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "EXIT" in sass
    # Two registers that are used once per block may be parked for the sake of occupancy.
    assert len(re.findall(r"\bSTL\b", sass)) <= 2, "registers are spilled"


@pytest.mark.slow
@pytest.mark.parametrize("name", (*MAIN, *OTHERS))
def test_code_for_amd(folder: Path, name: str) -> None:
    assembly = code_of(folder, "gfx942", name).with_suffix(".amdgcn").read_text()
    if "v_div_fixup" not in assembly:  # a division is made of them
        assert not re.search(r"\bv_(pk_)?fma", assembly)
    assert not re.search(r"\.vgpr_spill_count:\s+[1-9]", assembly)
    assert "amdhsa_float_denorm_mode_32 3" in assembly, "denormals are flushed"

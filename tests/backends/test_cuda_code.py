"""What nvcc made of the CUDA kernels, read from the built module. Needs no device."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import sass

import mergekern
from mergekern.backends.cuda import is_built

pytestmark = pytest.mark.skipif(
    not is_built() or sass.tool("cuobjdump") is None, reason="no CUDA kernels, or no cuobjdump"
)
HOT = [(mix, k) for mix in ("linear", "sum", "elected") for k in (4, 8)]


@cache
def read(what: str) -> str:
    (module,) = Path(mergekern.__file__).parent.glob("_cuda.*so")
    command = [str(sass.tool("cuobjdump")), *what.split(), str(module)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def case(mix: str, k: int) -> str:
    """Of a kernel's mangled name; bf16, no coins, no guesses."""
    return rf"BFloat16ELi{k}ELNS\w*?_3MixE{sass.MIXES.index(mix)}ELb0ELb0E"


def test_nothing_is_spilled() -> None:
    usage = re.findall(r"Function (\w+):\s*\n\s*(.*)", read("--dump-resource-usage"))
    quick = {name: used for name, used in usage if "Quick" in name}
    assert len(quick) >= 100
    for name, used in quick.items():
        assert "LOCAL:0 " in used, (name, used)


@pytest.mark.parametrize(("mix", "k"), HOT)
def test_accesses_are_of_16_bytes(mix: str, k: int) -> None:
    kernels = dict(sass.functions(read("-sass -arch sm_90")))
    name = next(n for n in kernels if re.search(case(mix, k), n))
    names = [instruction.name for instruction in kernels[name]]
    wide = [n for n in names if n.startswith("LDG") and ".128" in n]
    assert len(wide) == k + (mix != "linear")
    assert any(n.startswith("STG") and ".128" in n for n in names)
    assert not any(n.startswith(("LDL", "STL")) for n in names)


@pytest.mark.parametrize(("mix", "k"), HOT)
def test_nothing_is_contracted(mix: str, k: int) -> None:
    """The four steps of the short division of eight elements, and no others."""
    ptx = re.split(r"\.entry\s+", read("-ptx"))
    code = next(part for part in ptx if re.match(rf"\w*{case(mix, k)}", part))
    assert code.count("fma.rn.f32") == 4 * 8
    assert not re.search(r"\bmad\.\w*\.?f(32|64)|fma\.rn\.f64|div\.(full|approx)|\.ftz", code)

"""What the quick CUDA kernels cost: machine instructions per element, counted from SASS.

    python bench/sass.py [90]

Kernels are compiled anew for one op each, so that no branch is left in their main loop but those
around what is rare; the shortest way around the loop is what nearly every element takes. Needs
nvcc, and nvdisasm of the toolkit or of Triton's wheel; no device.
"""

from __future__ import annotations

import heapq
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).parent.parent / "csrc"
MIXES = ("linear", "sum", "elected")  # in the order of quick.cuh
EIGHT = 8  # elements of a thread and turn
OPS = {
    "task arithmetic": ("sum", False, False),
    "DARE-linear": ("sum", True, False),
    "TIES": ("elected", False, False),
    "DARE-TIES": ("elected", True, False),
    "TIES, one pass": ("elected", False, True),
}
SOURCE = """
#include "cuda/quick.cuh"
using namespace mergekern;

template <typename C>
__global__ void __launch_bounds__(kThreads, 2) only(const __grid_constant__ QuickArgs given) {
  __shared__ QuickShared<C> shared;
  QuickArgs a = given;
  a.pass.out = DType::bf16;
  a.pass.merges = true;
  a.divides = C::kElects;
  for (int k = 0; k < C::K; ++k) __builtin_assume(a.keep_below[k] != kEveryCoin);
  Quick<C>::before(a, blockIdx.x, threadIdx.x, &shared);
  __syncthreads();
  Quick<C>::main(a, blockIdx.x, threadIdx.x, &shared);
  __syncthreads();
  Quick<C>::after(a, blockIdx.x, threadIdx.x, &shared);
}
"""
LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?\s*([A-Z][\w.]*)([^;]*);")


@dataclass(frozen=True)
class Instruction:
    at: int
    conditional: bool
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands)
        return int(found[1], 16) if self.name.startswith("BRA") and found else None


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit, or the one that Triton brings."""
    places = [Path("/usr/local/cuda/bin")]
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin")
    return shutil.which(name) or next(
        (str(place / name) for place in places if (place / name).exists()), None
    )


def functions(sass: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Every kernel of a disassembly (cuobjdump -sass), by its mangled name."""
    for part in sass.split("Function : ")[1:]:
        found = LINE.finditer(part)
        yield (
            part.split(None, 1)[0],
            [Instruction(int(m[1], 16), m[2] is not None, m[3], m[4]) for m in found],
        )


def shortest_turn(code: list[Instruction]) -> list[Instruction]:
    """The instructions on the shortest way around the longest loop."""
    index = {instruction.at: i for i, instruction in enumerate(code)}
    backward = [
        (i, index[c.target]) for i, c in enumerate(code) if c.target in index and c.target < c.at
    ]
    end, start = max(backward, key=lambda edge: edge[0] - edge[1])
    best: dict[int, int] = {}
    before: dict[int, int] = {}
    queue = [(1, start, -1)]
    while queue:
        cost, i, came = heapq.heappop(queue)
        if i in best or i >= len(code):
            continue
        best[i], before[i] = cost, came
        if i == end:
            break
        here = code[i]
        target = here.target
        if target in index:
            heapq.heappush(queue, (cost + 1, index[target], i))
        if (target is None and here.name not in ("EXIT", "RET")) or here.conditional:
            heapq.heappush(queue, (cost + 1, i + 1, i))
    turn, i = [], end
    while i >= 0:
        turn.append(code[i])
        i = before[i]
    return turn[::-1]


def compiled(arch: str, folder: Path, counts: list[int]) -> str:
    """The disassembly of all ops for these numbers of experts."""
    lines = [SOURCE]
    for mix, drops, guesses in OPS.values():
        for k in counts:
            case = f"Case<BFloat16, {k}, Mix::{mix}, {str(drops).lower()}, {str(guesses).lower()}>"
            lines.append(
                f"template __global__ void only<{case}>(const QuickArgs __grid_constant__);"
            )
    source, binary = folder / "only.cu", folder / "only.cubin"
    source.write_text("\n".join(lines))
    nvcc, disassemble = tool("nvcc"), tool("cuobjdump")
    if nvcc is None or disassemble is None:
        raise SystemExit("needs nvcc and cuobjdump")
    flags = ["-std=c++17", "-O3", "-fmad=false", f"-arch=sm_{arch}", f"-I{CSRC}", "-cubin"]
    subprocess.run([nvcc, *flags, str(source), "-o", str(binary)], check=True)
    return subprocess.run(
        [disassemble, "-sass", str(binary)], check=True, capture_output=True, text=True
    ).stdout


def main() -> None:
    arch = sys.argv[1] if len(sys.argv) > 1 else "90"
    counts = [4, 8]
    with tempfile.TemporaryDirectory() as folder:
        kernels = dict(functions(compiled(arch, Path(folder), counts)))
    print(f"{'sm_' + arch:16s}" + "".join(f"{f'K = {k}':>10s}" for k in counts))
    for op, (mix, drops, guesses) in OPS.items():
        cells = []
        for k in counts:
            flags = f"ELb{drops:d}ELb{guesses:d}E"
            pattern = rf"BFloat16ELi{k}ELNS\w*?_3MixE{MIXES.index(mix)}{flags}"
            name = next(n for n in kernels if re.search(pattern, n))
            cells.append(len(shortest_turn(kernels[name])) / EIGHT)
        print(f"{op:16s}" + "".join(f"{cell:10.1f}" for cell in cells))


if __name__ == "__main__":
    main()

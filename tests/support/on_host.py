"""The CUDA kernels' own sources compiled as C++: blocks and threads become loops."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

CSRC = Path(__file__).parents[2] / "csrc"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
FLAGS += ["-Wall", "-Wextra", "-Werror"]


def load_on_host(folder: Path) -> ModuleType:
    """mergekern._cuda for the memory of the host."""
    includes = [CSRC, pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = [*FLAGS, *(f"-I{path}" for path in includes)]
    compiler = os.environ.get("CXX", "g++")

    def compiled(source: Path) -> str:
        made = str(folder / f"{source.name}.o")
        command = [compiler, *flags, "-x", "c++", "-c", str(source), "-o", made]
        subprocess.run(command, check=True)
        return made

    sources = [*(CSRC / "cuda").glob("*.cu"), *(CSRC / "cuda").glob("*.cpp")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    library = folder / "_cuda.so"
    subprocess.run([compiler, "-shared", *objects, "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location("_cuda", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

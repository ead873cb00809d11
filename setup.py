"""Builds the compiled kernels; everything else stands in pyproject.toml."""

import os
import platform
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

# The loops are compiled once per instruction set, from the same sources, and one table of functions
# is chosen at import. Contraction stays off: a fused multiply-add would change the bits.
COMMON = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
COMMON += [
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    *os.environ.get("MERGEKERN_CXXFLAGS", "").split(),
]
X86 = {
    "generic": [],
    "avx2": ["-mavx2", "-mbmi", "-mbmi2"],
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mbmi", "-mbmi2"),
        "-mprefer-vector-width=512",
    ],
}
INSTRUCTION_SETS = X86 if platform.machine() in ("x86_64", "AMD64") else {"generic": []}


class BuildKernels(build_ext):
    """Compiles csrc/cpu/loops.cpp once per instruction set and links the objects in."""

    def build_extension(self, ext):
        for name, flags in INSTRUCTION_SETS.items():
            ext.extra_objects += self.compiler.compile(
                ["csrc/cpu/loops.cpp"],
                output_dir=str(Path(self.build_temp) / name),
                include_dirs=ext.include_dirs,
                extra_postargs=[*COMMON, f"-DMK_ISA={name}", *flags],
                depends=ext.depends,
            )
        super().build_extension(ext)


extension = Pybind11Extension(
    "mergekern._C",
    sources=[
        "csrc/batch.cpp",
        "csrc/bindings.cpp",
        *(f"csrc/cpu/{name}.cpp" for name in ("compact", "dispatch", "passes", "pool")),
    ],
    depends=sorted(glob("csrc/**/*", recursive=True)),
    include_dirs=["csrc"],
    extra_compile_args=[*COMMON, *(f"-DMK_HAS_{name}" for name in INSTRUCTION_SETS)],
    extra_link_args=["-pthread"],
)
setup(ext_modules=[extension], cmdclass={"build_ext": BuildKernels})

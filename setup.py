"""Builds the compiled kernels; everything else stands in pyproject.toml."""

import os
import platform
import re
import shutil
import subprocess
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


# No contraction and no fast mathematics here either. The static runtime leaves an extension that
# imports on a machine without a driver.
NVCC = shutil.which("nvcc", path=os.pathsep.join([os.environ["PATH"], "/usr/local/cuda/bin"]))
CUDA_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Werror", "all-warnings", "--threads", "0"]
CUDA_FLAGS += ["-Xcompiler", "-fPIC,-fvisibility=hidden"]
OLDEST = 80  # compute capability: warps add up in one instruction from there on


def wants_cuda():
    """Whether nvcc is to compile csrc/cuda: MERGEKERN_CUDA=0 forbids it, =1 demands it."""
    wish = os.environ.get("MERGEKERN_CUDA", "auto")
    if wish == "1" and not NVCC:
        raise SystemExit("MERGEKERN_CUDA=1, but there is no nvcc on PATH or in /usr/local/cuda/bin")
    wanted = wish != "0" and NVCC is not None
    print("CUDA kernels:", f"with {NVCC}" if wanted else "none (no nvcc, or MERGEKERN_CUDA=0)")
    return wanted


def toolkit():
    """The folder of nvcc's own, which may be called through a link or a script."""
    told = subprocess.run([NVCC, "--dryrun", "-c", "csrc/cuda/general.cu"], capture_output=True)
    return re.search(r"TOP=(\S+)", told.stderr.decode()).group(1)


def architectures():
    """Machine code for each of MERGEKERN_CUDA_ARCHS, and PTX of the last for what comes later."""
    given = os.environ.get("MERGEKERN_CUDA_ARCHS", "80 90")
    numbers = given.replace(",", " ").split()
    known = [re.fullmatch(r"(\d+)[af]?", number) for number in numbers]
    if not all(known) or not known or min(int(found[1]) for found in known) < OLDEST:
        raise SystemExit(
            f"MERGEKERN_CUDA_ARCHS is {given!r}; want the compute capabilities to compile for, "
            f"{OLDEST} or newer, as in '80 90' (MERGEKERN_CUDA=0 builds no CUDA kernels)"
        )
    pairs = [(n, f"sm_{n}") for n in numbers] + [(numbers[-1], f"compute_{numbers[-1]}")]
    return [f"-gencode=arch=compute_{n},code={code}" for n, code in pairs]


ARCHITECTURES = architectures()


class BuildKernels(build_ext):
    """Compiles what the compiler of the rest cannot, and links the objects in."""

    def build_extension(self, ext):
        if ext.name == "mergekern._cuda":
            self.add_cuda(ext)
        else:
            self.add_loops(ext)
        super().build_extension(ext)

    def add_cuda(self, ext):
        """csrc/cuda/*.cu, all in one command, so that nvcc compiles them side by side."""
        sources = sorted(glob("csrc/cuda/*.cu"))
        built = [Path(self.build_temp, "cuda", Path(source).stem + ".o") for source in sources]
        newest = max(Path(path).stat().st_mtime for path in ["setup.py", *ext.depends])
        ext.extra_objects += map(str, built)
        if all(path.exists() and path.stat().st_mtime > newest for path in built):
            return
        built[0].parent.mkdir(parents=True, exist_ok=True)
        command = [NVCC, *CUDA_FLAGS, *ARCHITECTURES, "-Icsrc", "-c", *sources]
        subprocess.run([*command, "-odir", str(built[0].parent)], check=True)

    def add_loops(self, ext):
        """csrc/cpu/loops.cpp, once per instruction set."""
        for name, flags in INSTRUCTION_SETS.items():
            ext.extra_objects += self.compiler.compile(
                ["csrc/cpu/loops.cpp"],
                output_dir=str(Path(self.build_temp) / name),
                include_dirs=ext.include_dirs,
                extra_postargs=[*COMMON, f"-DMK_ISA={name}", *flags],
                depends=ext.depends,
            )


extension = Pybind11Extension(
    "mergekern._C",
    sources=[
        *(f"csrc/{name}.cpp" for name in ("array_bindings", "batch", "bindings")),
        *(
            f"csrc/cpu/{name}.cpp"
            for name in ("compact", "dispatch", "order", "passes", "pool", "systems")
        ),
    ],
    depends=sorted(glob("csrc/**/*", recursive=True)),
    include_dirs=["csrc"],
    extra_compile_args=[*COMMON, *(f"-DMK_HAS_{name}" for name in INSTRUCTION_SETS)],
    extra_link_args=["-pthread"],
)
extensions = [extension]
if wants_cuda():
    extensions.append(
        Pybind11Extension(
            "mergekern._cuda",
            sources=sorted(glob("csrc/cuda/*.cpp")),
            depends=[path for path in sorted(glob("csrc/**/*", recursive=True)) if "." in path],
            include_dirs=["csrc"],
            extra_compile_args=COMMON,
            library_dirs=[str(Path(toolkit(), "lib64"))],
            libraries=["cudart_static", "dl", "rt", "pthread"],
        )
    )
setup(ext_modules=extensions, cmdclass={"build_ext": BuildKernels})

"""Which backend runs a merge: what was asked for, where the tensors lie, and what there is here."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mergekern.arrays import HOST
from mergekern.backends import Backend
from mergekern.backends.cpu import CpuBackend
from mergekern.errors import RecipeError
from mergekern.lazily import torch
from mergekern.methods.parameters import nearest

if TYPE_CHECKING:
    from mergekern.backends.launch import Kernels

BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")
DEVICES = ("auto", "cpu", "cuda", "cuda:0 (cuda:1 …)")
DRIVERS = ("libcuda.so.1", "nvcuda.dll")  # NVIDIA's; AMD's is known by its device
MARGIN = 0.1  # of a device's free memory that is left to others


def get_backend(
    name: str = "auto",
    threads: int | None = None,
    *,
    device: str = "auto",
    held: str = HOST,
    max_device_memory: int | None = None,
) -> Backend:
    """The backend of that name on that device; "auto" takes the fastest that can run here.

    threads: for what runs on the CPU; None takes the cores this process may use
    held:    where the tensors lie; what lies in the host's memory passes through a GPU's stretch
             by stretch
    max_device_memory: bytes of a GPU's memory for these stretches; None for what is free, less a
             margin
    Raises RecipeError where what is asked for is not here, or does not fit together.
    """
    check_choice(name, device, threads)
    where = _place(str(device), name, held)
    if held not in (HOST, where):
        raise RecipeError(
            f"the models lie on {held} and were to be merged on {where}: move them, or leave "
            f"device ({device!r}) and backend ({name!r}) at auto"
        )
    if name == "reference":
        from mergekern.backends.reference import ReferenceBackend

        return ReferenceBackend()
    if name == "cpu" or (where == HOST and name != "triton"):
        return CpuBackend(threads)
    kernels, why_not = _kernels(name, where)
    if kernels is None:
        if (name, device, held) == ("auto", "auto", HOST):
            return CpuBackend(threads)
        raise RecipeError(f"nothing merges on {where} here: {why_not}")
    return _on_device(kernels, where, held, threads, max_device_memory)


def _on_device(
    kernels: Kernels, where: str, held: str, threads: int | None, room: int | None
) -> Backend:
    # Loaded here: who merges on the CPU starts the sooner.
    from mergekern.backends.device import DeviceBackend
    from mergekern.backends.staged import LARGEST_SLOT, SLOTS, StagedBackend

    merging = DeviceBackend(kernels, torch.device(where))
    if held == where:
        return merging
    free = SLOTS * LARGEST_SLOT if where == HOST else _free(where)
    return StagedBackend(merging, CpuBackend(threads), room or free)


def check_choice(name: str, device: str, threads: int | None) -> None:
    """Raise RecipeError for what is no backend, no device or no number of threads anywhere."""
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and not (whole and threads >= 1):
        raise RecipeError(f"threads is {threads!r}; want a whole number from 1 on")
    if name not in BACKENDS:
        raise RecipeError(
            f"backend is {name!r}{nearest(str(name), BACKENDS)}; want {_or(BACKENDS)}"
        )
    kind, _, number = str(device).partition(":")
    if device not in ("auto", "cpu") and (kind != "cuda" or not (number or "0").isdecimal()):
        hint = nearest(str(device), DEVICES)
        raise RecipeError(f"device is {device!r}{hint}; want {_or(DEVICES)}")
    if kind == "cuda" and name in ("cpu", "reference"):
        raise RecipeError(f"backend {name!r} merges on the CPU, not on {device!r}: leave one out")
    if device == "cpu" and name == "cuda":
        raise RecipeError("backend 'cuda' merges on a GPU, device is 'cpu': leave one out")


def place_of(device: str) -> str:
    """Where a model runs: "auto" is a GPU where torch sees one.

    Raises RecipeError for what is no device, and for a GPU that is not here.
    """
    check_choice("auto", device, None)
    return _place(device, "auto", HOST)


def _place(device: str, name: str, held: str) -> str:
    """The device that is meant."""
    if device == "cpu":
        return HOST
    if device == "auto" and held != HOST:
        return held
    gpus = torch.cuda.device_count() if has_driver() and torch.cuda.is_available() else 0
    if device == "auto":
        # Without a GPU, "cuda" says below what it lacks, and Triton may be interpreting.
        if name in ("cpu", "reference") or not (gpus or name == "cuda"):
            return HOST
        return f"cuda:{torch.cuda.current_device() if gpus else 0}"
    number = device.partition(":")[2]
    if not gpus or int(number or 0) >= gpus:
        raise RecipeError(f"device is {device!r}; torch sees {gpus} GPUs on this machine")
    return f"cuda:{number or torch.cuda.current_device()}"


def _kernels(name: str, device: str) -> tuple[Kernels | None, str]:
    """The kernels that were asked for, or the first that can run here; why there are none."""
    reasons = []
    for kind in ("cuda", "triton") if name == "auto" else (name,):
        module = import_module(f"mergekern.backends.{kind}")
        missing = module.missing()
        if missing is None:
            return module.kernels(torch.device(device)), ""
        reasons.append(f"{kind}: {missing}")
    return None, "; ".join(reasons)


def _free(device: str) -> int:
    """What copies may take of a GPU's memory."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * (1 - MARGIN))


def has_driver() -> bool:
    """Whether a GPU may be there, asked without torch, which takes seconds to load."""
    return Path("/dev/kfd").exists() or any(map(_loads, DRIVERS))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"

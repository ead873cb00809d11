"""Backends that merge through the tables of a launch, for the grids that compare backends.

In plain torch on the host, and in CUDA where it can run. Triton compiles a kernel for every kind of
op, which takes minutes for a grid: test_triton.py has one of its own.
"""

from __future__ import annotations

import torch
from plain_kernels import PlainKernels

from mergekern.backends import cuda
from mergekern.backends.device import DeviceBackend
from mergekern.backends.reference import ReferenceBackend
from mergekern.backends.staged import StagedBackend

HOST = torch.device("cpu")
PLAIN = DeviceBackend(PlainKernels(), HOST)
ROOM = 32 << 20  # little enough for the larger tiles to be cut
DEVICES: list[DeviceBackend | StagedBackend] = [
    PLAIN,
    StagedBackend(PLAIN, ReferenceBackend(), ROOM),
]
if cuda.missing() is None:
    GPU = torch.device("cuda", torch.cuda.current_device())
    there = DeviceBackend(cuda.kernels(GPU), GPU)
    DEVICES.append(StagedBackend(there, ReferenceBackend(), ROOM))

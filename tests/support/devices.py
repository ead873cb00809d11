"""Backends that merge through the tables of a launch, for the grids that compare backends: in
plain torch on the host, and on a GPU where there is one."""

from __future__ import annotations

import torch
from plain_kernels import PlainKernels

from mergekern.backends import cuda, triton
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
if torch.cuda.is_available():
    GPU = torch.device("cuda", torch.cuda.current_device())
    for module in (cuda, triton):
        if module.missing() is None:
            there = DeviceBackend(module.kernels(GPU), GPU)
            DEVICES.append(StagedBackend(there, ReferenceBackend(), ROOM))

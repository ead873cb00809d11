"""Backends that merge through the tables of a launch, for the grids that compare backends."""

from __future__ import annotations

import torch
from plain_kernels import PlainKernels

from mergekern.backends.device import DeviceBackend
from mergekern.backends.reference import ReferenceBackend
from mergekern.backends.staged import StagedBackend

HOST = torch.device("cpu")
PLAIN = DeviceBackend(PlainKernels(), HOST)
ROOM = 32 << 20  # little enough for the larger tiles to be cut
DEVICES = [PLAIN, StagedBackend(PLAIN, ReferenceBackend(), ROOM)]

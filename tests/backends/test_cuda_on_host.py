"""The CUDA kernels' own sources, compiled as C++ and run in loops, against the reference."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import pytest
import torch

from mergekern.backends.cuda import CudaKernels
from mergekern.backends.device import DeviceBackend

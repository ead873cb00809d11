"""torch's settings of the thread that calls a merge, which decide nothing about it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mergekern.lazily import torch


@contextmanager
def set_aside() -> Iterator[None]:
    """No autocast and no default device, as in the threads that a merge starts itself."""
    with ExitStack() as stack:
        if "torch" not in sys.modules:  # and so nothing is set
            yield
            return
        host = torch.device("cpu")
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != host:
            stack.enter_context(host)
        yield

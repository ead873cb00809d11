"""The cycle collector, kept off while objects are made by the hundred thousand."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """For work whose objects all stay: the collector would walk them again and again, for nothing.

    What was made counts as old afterwards: the collector looks at it when it looks at everything,
    not at once. Also a decorator. A caller who has it switched off finds it so afterwards.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            if not gc.get_freeze_count():  # or what a caller has frozen would thaw
                gc.freeze()
                gc.unfreeze()
            gc.enable()

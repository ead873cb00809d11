"""Planning a merge of models of very many tensors, from their headers alone."""

from __future__ import annotations

from files import scratch_folder
from headers import write_headers
from rows import Row
from settings import DENSITY, EXPERTS, Settings
from timing import measure

import mergekern


def run(settings: Settings) -> list[Row]:
    tensors, shards = settings.tensors, settings.shards
    with scratch_folder(settings) as scratch:
        names = ("base", *(f"expert{k}" for k in range(EXPERTS)))
        base, *models = [write_headers(scratch / name, tensors, shards) for name in names]
        call = {"base": base, "models": models, "density": DENSITY}
        # The digest, too: every merge needs it, and it says that nothing was put off.
        times = measure(lambda: mergekern.plan("ties", **call).digest, settings.long_repetitions)
    return [
        Row(
            f"planning {tensors} tensors in {shards} shards, a base and {EXPERTS} models",
            "s",
            times.best,
            times.wall,
            2.0,
            at_most=True,
            beside=f"{1e6 * times.best / tensors / (EXPERTS + 1):.0f} µs a tensor read",
            detail={"cpu_s": times.best_cpu},
        )
    ]

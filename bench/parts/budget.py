"""Peak memory of a whole process that streams, against the budget it was given."""

from __future__ import annotations

from files import checkpoints, nbytes
from rows import Row
from settings import DENSITY, Settings

from parts.streaming import MIB, check, streamed

BUDGET = 512 * MIB
TRIMMED = {"method": "ties", "density": DENSITY}
CASES = {
    "task arithmetic": {"method": "task_arithmetic"},
    "TIES, tensor scope": TRIMMED,
    "TIES, whole model": TRIMMED | {"scope": "model"},
}


def run(settings: Settings) -> list[Row]:
    rows = []
    with checkpoints(settings) as folders:
        for name, call in CASES.items():
            if call is not CASES["task arithmetic"]:
                check(settings, **{k: v for k, v in call.items() if k != "method"})
            runs = range(min(2, settings.long_repetitions))
            found = [streamed(folders, settings.threads, max_memory=BUDGET, **call) for _ in runs]
            peaks = tuple(f.peak / BUDGET for f in found)
            row = Row(
                f"peak of the process, {name}",
                "of the budget",
                max(peaks),
                peaks,
                1.0,
                at_most=True,
                beside=f"{BUDGET / MIB:.0f} MiB for {nbytes(folders) / MIB:.0f} MiB of inputs",
            )
            rows.append(row)
    return rows

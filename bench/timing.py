"""The one timer, and the line every figure is printed on."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Seconds of several repetitions: the least and the median."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.wall)

    @property
    def median(self) -> float:
        return sorted(self.wall)[len(self.wall) // 2]

    @property
    def best_cpu(self) -> float:
        return min(self.cpu)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(run: Callable[[], object], repetitions: int) -> Times:
    wall, cpu = [], []
    for _ in range(repetitions):
        before, started = cpu_seconds(), time.perf_counter()
        run()
        wall.append(time.perf_counter() - started)
        cpu.append(cpu_seconds() - before)
    return Times(tuple(wall), tuple(cpu))

"""The one timer: wall and CPU seconds of every repetition."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

Work = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of several repetitions. The least is what the machine can do, undisturbed."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.wall)

    @property
    def best_cpu(self) -> float:
        return min(self.cpu)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def once(run: Work) -> tuple[float, float]:
    """Wall and CPU seconds of one call; what it returns is freed after the clock has stopped."""
    before, started = cpu_seconds(), time.perf_counter()
    result = run()
    wall, cpu = time.perf_counter() - started, cpu_seconds() - before
    del result
    return wall, cpu


def alternate(runs: list[Work], repetitions: int, warm_up: int = 1) -> list[Times]:
    """Each in turn, round by round, so that all of them see the same neighbours."""
    rounds = [[once(run) for run in runs] for _ in range(warm_up + repetitions)][warm_up:]
    columns = [list(zip(*column, strict=True)) for column in zip(*rounds, strict=True)]
    return [Times(wall, cpu) for wall, cpu in columns]


def measure(run: Work, repetitions: int, warm_up: int = 0) -> Times:
    return alternate([run], repetitions, warm_up)[0]

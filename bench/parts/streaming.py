"""Cold files to a synced output: exact TIES over the whole model, against the disk alone."""

from __future__ import annotations

from pathlib import Path

from data import model
from files import checkpoints, make_cold, nbytes, remove, scratch_folder, weights, write
from gate import same_states
from io_floor import REQUESTS, build, io_floor
from once import Found, in_child
from rows import Row
from safetensors.torch import load_file
from settings import DENSITY, EXPERTS, Settings
from timing import Times, once

import mergekern

MIB = 1 << 20


def streamed(folders: list[Path], threads: int, method: str = "ties", **call: object) -> Found:
    """One merge of the folders, base first, into `out` beside them."""
    base, *experts = folders
    output = base.parent / "out"
    remove(output)
    return in_child(
        "mergekern",
        method=method,
        base=base,
        models=[str(folder) for folder in experts],
        output=output,
        threads=threads,
        **call,
    )


def check(settings: Settings, **call: object) -> None:
    """What is streamed equals the reference, in memory, on a small model."""
    with scratch_folder(settings) as scratch:
        states = model(3, (300, 1111), EXPERTS, seed=9)
        folders = [scratch / f"model{number}" for number in range(len(states))]
        for folder, state in zip(folders, states, strict=True):
            write(folder, state)
        streamed(folders, settings.threads, **call)
        (file,) = weights([scratch / "out"])
        base, *experts = states
        want = mergekern.merge("ties", base=base, models=experts, backend="reference", **call)
        same_states("streamed", load_file(file), want)


def run(settings: Settings) -> list[Row]:
    build()
    rows = []
    with checkpoints(settings) as folders:
        moved = nbytes(folders) + nbytes(folders[:1])
        for ties in ("index", "keep"):
            call = {"density": DENSITY, "scope": "model", "ties": ties}
            check(settings, **call)
            floors, cold, warm = _alternate(folders, settings, **call)
            rows += _rows(f"streaming TIES, whole model, ties={ties}", moved, floors, cold, warm)
    return rows


def _alternate(
    folders: list[Path], settings: Settings, **call: object
) -> tuple[Times, list[Found], list[Found]]:
    """The floor, the merge of cold files, and of those that it left warm, round by round."""
    floors, cold, warm = [], [], []
    for _ in range(settings.long_repetitions):
        floors.append(min(_floor(folders, request) for request in REQUESTS))
        make_cold(folders)
        cold.append(streamed(folders, settings.threads, **call))
        _read(folders)
        warm.append(streamed(folders, settings.threads, **call))
    return Times(*zip(*floors, strict=True)), cold, warm


def _floor(folders: list[Path], request: int) -> tuple[float, float]:
    make_cold(folders)
    output = folders[0].parent / "floor"
    output.unlink(missing_ok=True)
    times = once(lambda: io_floor(weights(folders), output, request))
    output.unlink()
    return times


def _read(folders: list[Path]) -> None:
    """Into the page cache."""
    for file in weights(folders):
        with open(file, "rb", buffering=0) as opened:
            while opened.read(8 * MIB):
                pass


def _rows(what: str, moved: int, floor: Times, cold: list[Found], warm: list[Found]) -> list[Row]:
    cpu = tuple(found.cpu / (moved / 1e9) for found in cold)
    peaks = tuple((found.peak - found.imported) / MIB for found in cold)
    best, best_warm = (min(found.wall for found in several) for several in (cold, warm))
    return [
        Row(
            f"{what}, wall",
            "× the floor",
            best / floor.best,
            tuple(found.wall / f for found, f in zip(cold, floor.wall, strict=True)),
            1.15,
            at_most=True,
            beside=f"floor {floor.best:.2f} s, {moved / floor.best / 1e9:.2f} GB/s",
            detail={"floor_s": floor.best, "floor_cpu_s": floor.best_cpu, "seconds": best},
        ),
        Row(f"{what}, CPU", "core per GB/s", min(cpu), cpu, 0.25, at_most=True),
        Row(f"{what}, peak above the import", "MiB", max(peaks), peaks, 256, at_most=True),
        Row(
            f"{what}, warm files, wall",
            "× the cold",
            best_warm / best,
            tuple(found.wall / best for found in warm),
            beside=f"{best_warm:.2f} s, {moved / best_warm / 1e9:.2f} GB/s",
            detail={"seconds": best_warm, "cpu_s": min(found.cpu for found in warm)},
        ),
    ]

"""Exact selection alone: elements per second of a core, and against torch's ways to a threshold."""

from __future__ import annotations

from functools import partial

import torch
from gate import State, WrongResult
from rows import Row, less_cpu
from settings import DENSITY, EXPERTS, Settings
from timing import Times, measure

import mergekern
from mergekern.backends.cpu import CpuBackend
from mergekern.fused import Tile
from mergekern.sources import Resident
from mergekern.trimming import exact_windows
from parts.exact import FP32, HEAVY


def run(settings: Settings) -> list[Row]:
    rows = []
    for kind in (HEAVY, FP32):
        models = kind.models(settings.numel)
        times = {}
        for rule in ("index", "keep"):
            tensors = _tensors(models, rule)
            select = partial(exact_windows, CpuBackend(settings.threads), tensors)
            times[rule] = measure(select, settings.repetitions, 1)
            rows.append(_rate(f"selection, {kind.name}, ties={rule}", times[rule], settings))
        found = select()["w"][0].lo
        rows += _against_torch(kind.name, models, found, times["keep"])
    return rows


def _tensors(models: list[State], rule: str) -> Resident:
    base, *experts = models
    plan = mergekern.plan("ties", base=base, models=experts, density=DENSITY, ties=rule)
    tile = Tile("w", 0, base["w"], tuple(x["w"] for x in experts))
    return Resident([(plan.steps[0], tile)])


def _rate(what: str, ours: Times, settings: Settings) -> Row:
    elements = EXPERTS * settings.numel
    return Row(
        what,
        "G elements/s per core",
        elements / ours.best_cpu / 1e9,
        tuple(elements / cpu / 1e9 for cpu in ours.cpu),
        5.0,
        beside=f"{elements / 1e6:.0f} M in {1e3 * ours.best:.0f} ms, {ours.best_cpu:.3f} s of CPU",
        detail={"seconds": ours.best, "cpu_s": ours.best_cpu},
    )


def _against_torch(what: str, models: list[State], found: int, ours: Times) -> list[Row]:
    """On the magnitudes of one expert, which torch finds made; ours makes them as it reads."""
    magnitudes = (models[1]["w"].float() - models[0]["w"].float()).abs_()
    rank = magnitudes.numel() - int(DENSITY * magnitudes.numel()) + 1
    want: list[torch.Tensor] = []
    kthvalue = measure(lambda: want.append(magnitudes.kthvalue(rank).values), 1)
    if int(want[0].view(torch.int32)) != found:
        raise WrongResult(f"selection, {what}: {found:#x}, torch has {float(want[0])}")
    argsort = measure(lambda: magnitudes.argsort(descending=True), 1)
    each = Times(tuple(t / EXPERTS for t in ours.wall), tuple(t / EXPERTS for t in ours.cpu))
    return [
        less_cpu(f"selection, {what}, against torch.kthvalue", kthvalue, each, 100),
        less_cpu(f"selection, {what}, against torch.argsort", argsort, each, 500),
    ]

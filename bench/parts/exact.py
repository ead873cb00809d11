"""Whole merges in memory: exact TIES, selection included, against the floor of its streams."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from data import SIGMA_DELTA, base_and_experts
from floor import floor_pass
from gate import State, check_merge
from rows import Row, of_floor
from settings import DENSITY, EXPERTS, Settings
from timing import Times, alternate

import mergekern


@dataclass(frozen=True)
class Data:
    """Deltas of a kind. ties: whether many of them equal the threshold."""

    name: str
    ties: bool
    sigmas: tuple[float, ...]
    dtype: torch.dtype = torch.bfloat16

    def models(self, numel: int) -> list[State]:
        base, experts = base_and_experts(numel, EXPERTS, dtype=self.dtype, sigmas=self.sigmas)
        return [{"w": tensor} for tensor in (base, *experts)]


HEAVY = Data("bf16, heavy ties", True, (SIGMA_DELTA,))
FP32 = Data("fp32", False, (SIGMA_DELTA,), torch.float32)
WIDE = Data("bf16, deltas of 1e-2", False, (1e-2,))
TINY = Data("bf16, deltas of 2e-5 to 8e-5", False, (2e-5, 4e-5, 6e-5, 8e-5))
KINDS = (HEAVY, FP32, WIDE, TINY)


def merge(method: str, models: list[State], threads: int, **parameters: object) -> State:
    base, *experts = models
    return mergekern.merge(method, base=base, models=experts, threads=threads, **parameters)


def against_floor(
    method: str, models: list[State], settings: Settings, pieces: int = 1, **parameters: object
) -> tuple[Times, Times, int]:
    """Times of the floor and of the merge, and the bytes of their streams.

    models: of one tensor each, which the merge gets in this many pieces. The floor's output is
    there before it starts; merge() has to take fresh memory from the system for its own.
    """
    inputs = [state["w"] for state in models]
    cut = [{f"w{n}": part for n, part in enumerate(whole.chunk(pieces))} for whole in inputs]
    check_merge(method, cut, settings.threads, **parameters)
    out = torch.zeros_like(inputs[0])
    floor = partial(floor_pass, inputs, out, settings.threads)
    ours = partial(merge, method, cut, settings.threads, **parameters)
    times = alternate([floor, ours], settings.repetitions)
    return times[0], times[1], sum(x.nbytes for x in (*inputs, out))


def run(settings: Settings) -> list[Row]:
    rows = []
    for kind in KINDS:
        models = kind.models(settings.numel)
        wanted = 0.6 if kind.ties else 0.3
        for ties in ("index", "keep"):
            found = against_floor("ties", models, settings, density=DENSITY, ties=ties)
            rows.append(of_floor(f"exact TIES, {kind.name}, ties={ties}", *found, wanted))
        for ties in ("index", "keep"):
            call = {"pieces": 8, "density": DENSITY, "scope": "model", "ties": ties}
            found = against_floor("ties", models, settings, **call)
            what = f"exact TIES, {kind.name}, model of 8 tensors, ties={ties}"
            rows.append(of_floor(what, *found, wanted))
    return rows

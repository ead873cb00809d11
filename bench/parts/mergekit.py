"""Exact TIES in memory against the operations that mergekit performs on the same tensors."""

from __future__ import annotations

from functools import partial

import torch
from gate import WrongResult, check_merge
from in_torch import PEERS
from rows import Row, less_cpu
from settings import DENSITY, EXPERTS, Settings
from timing import measure

from parts.exact import FP32, HEAVY, merge

CHECKED = 200_000
DIFFERENT = 1e-4  # of the elements: equal magnitudes at the threshold, of which the sort takes any


def check_peer(method: str) -> None:
    """The peer means the same merge, where that does not hang on coins or the order of ties."""
    models = FP32.models(CHECKED)
    density = DENSITY if method == "ties" else 1.0
    want = merge(method, models, 1, density=density)["w"]
    base, *experts = (state["w"] for state in models)
    got = PEERS[method](base, experts, torch.float32, density)
    different = float(((got - want).abs() > 1e-6).float().mean())
    if different > DIFFERENT:
        raise WrongResult(f"{method} in torch: {100 * different:.3f} % of the elements differ")


def run(settings: Settings) -> list[Row]:
    models = HEAVY.models(settings.numel)
    base, *experts = (state["w"] for state in models)
    check_peer("ties")
    check_merge("ties", models, settings.threads, density=DENSITY)
    ours = partial(merge, "ties", models, settings.threads, density=DENSITY)
    mine = measure(ours, settings.repetitions, 1)
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        peer = measure(partial(PEERS["ties"], base, experts, dtype, DENSITY), 1)
        name = str(dtype).removeprefix("torch.")
        what = f"exact TIES, K = {EXPERTS}, against mergekit's operations, {name} deltas"
        rows.append(less_cpu(what, peer, mine, 400))
    return rows

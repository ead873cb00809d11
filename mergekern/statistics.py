"""From a spec to a fused op: the thresholds and sums that a method needs before its fused pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mergekern.backends import Backend
from mergekern.fused import KEEP_ALL, Combine, ExpertScalars, FusedOp, Window, name_hash
from mergekern.plan import Step
from mergekern.selection import Search, expert_numels, last_index, select
from mergekern.spec import Spec
from mergekern.tiles import TileSource

NO_SCALE_BELOW = 1e-7  # mergekit's guard of the l1 rescale: sums below it leave the delta as it is

ModelWindows = dict[str, tuple[Window, ...]]  # output tensor -> one window per expert of its step


def model_windows(backend: Backend, sources: Sequence[TileSource]) -> ModelWindows:
    """The trimming windows of scope="model" for every given tensor.

    One read, another where a bracket failed or where ties="index" must tell many equal magnitudes
    apart that no count has singled out.
    """
    trimmed = [s for s in sources if s.step.spec is not None and s.step.spec.whole_model]
    return _windows(backend, trimmed)


def resolve(backend: Backend, source: TileSource, windows: ModelWindows | None) -> FusedOp:
    """The fused op of a merge step; reads the tensor only if its spec needs statistics of it."""
    step, spec = source.step, source.step.spec
    assert spec is not None, f"{step.name}: not a merge step"
    if spec.whole_model:
        assert windows is not None, f"{step.name}: needs the windows of the whole model"
        mine = windows[step.name]
    elif spec.trims:
        mine = _windows(backend, [source])[step.name]
    else:
        mine = (Window(),) * len(step.experts)
    scales = _scales(backend, source, mine)
    return _fused(step, spec, mine, scales)


# trimming


def kept_ranks(spec: Spec, place: int, numel: int) -> tuple[int, int]:
    """(top, stop): of magnitudes in descending order, ranks top + 1 … stop are kept.

    int(density * n) elements, at least one, below the int(gamma * n) largest; where that leaves too
    few, density wins.
    """
    target = max(1, int(spec.density[place] * numel))
    top = min(int(spec.gamma[place] * numel), numel - target)
    return top, top + target


def _windows(backend: Backend, sources: Sequence[TileSource]) -> ModelWindows:
    """One window per expert and tensor, for magnitudes ranked over all given tensors together."""
    numels = expert_numels([source.step for source in sources])
    wanted: dict[int, tuple[int, int]] = {}
    by_index = True
    for source in sources:
        spec = source.step.spec
        assert spec is not None
        by_index = spec.ties == "index"
        for place, expert in enumerate(source.step.expert_index):
            if spec.density[place] < 1 and numels[expert]:
                wanted[expert] = kept_ranks(spec, place, numels[expert])
    # With ties "keep", what equals a kept magnitude is kept: the upper cut is the largest kept one.
    upper = {e: top if by_index else top + 1 for e, (top, _) in wanted.items() if top}
    lower = {e: stop for e, (_, stop) in wanted.items()}
    ranks = {*upper.items(), *lower.items()}
    work = sources[0].step.work if sources else torch.float32
    found = {(s.expert, s.rank): s for s in select(backend, sources, work, ranks, locate=by_index)}
    cuts = {key: _cuts(backend, sources, search, by_index) for key, search in found.items()}
    windows: ModelWindows = {}
    for source in sources:
        row = []
        for expert in source.step.expert_index:
            low = cuts.get((expert, lower.get(expert, 0)))
            high = cuts.get((expert, upper.get(expert, 0)))
            row.append(_window(low, high, source.step.name, by_index))
        windows[source.step.name] = tuple(row)
    return windows


@dataclass(frozen=True)
class _Cut:
    """A magnitude, and per tensor the index up to which its ties belong to the larger ones."""

    magnitude: int
    last: dict[str, int | None]


def _cuts(backend: Backend, sources: Sequence[TileSource], search: Search, by_index: bool) -> _Cut:
    last: dict[str, int | None] = {}
    if by_index and search.wanted < search.equal:
        before = 0
        for source in sources:
            counts = search.chunks.get(source.step.name)
            if counts is not None:
                last[source.step.name] = last_index(backend, source, search, before)
                before += int(counts.sum())
    return _Cut(search.magnitude, last)


def _window(low: _Cut | None, high: _Cut | None, tensor: str, by_index: bool) -> Window:
    default = Window()
    if low is None:
        return default
    lo_last = low.last.get(tensor)
    hi, hi_last = default.hi, None
    if high is not None:
        hi = high.magnitude if by_index else high.magnitude + 1
        hi_last = high.last.get(tensor)
    return Window(
        lo=low.magnitude,
        lo_last=default.lo_last if lo_last is None else lo_last,
        hi=hi,
        hi_last=default.hi_last if hi_last is None else hi_last,
    )


# scalars


def _scales(backend: Backend, source: TileSource, windows: tuple[Window, ...]) -> tuple[float, ...]:
    """What rescaling multiplies each expert's kept deltas by."""
    step, spec = source.step, source.step.spec
    assert spec is not None
    if spec.rescale == "drop_rate":
        return tuple(1.0 / (d * k) for d, k in zip(spec.density, spec.keep, strict=True))
    if spec.rescale == "none" or not spec.whole_tensor_sums:
        return (1.0,) * len(step.experts)
    op = _fused(step, spec, windows, (1.0,) * len(step.experts))
    total = np.zeros((1, len(step.experts), 2))
    for tile in source.tiles():
        sums = backend.masked_sums(op, tile).numpy()
        # accumulate adds in order, one block after the other, however the tiles fall
        total = np.add.accumulate(np.concatenate([total, sums]))[-1:]
    return tuple(_ratio(float(before), float(after)) for before, after in total[0])


def _ratio(before: float, after: float) -> float:
    """What restores the sum of magnitudes; 1 for sums too small to tell, or not finite: the fused
    pass finds the NaN or Inf behind those."""
    usable = min(before, after) >= NO_SCALE_BELOW and max(before, after) < float("inf")
    return before / after if usable else 1.0


def _fused(
    step: Step, spec: Spec, windows: tuple[Window, ...], scales: tuple[float, ...]
) -> FusedOp:
    experts = []
    for place, index in enumerate(step.expert_index):
        coef = spec.weight[place] * scales[place]
        keep = spec.keep[place]
        experts.append(
            ExpertScalars(
                index=index,
                coef=coef,
                vote=coef if spec.ballot == "weighted" else scales[place],
                share=spec.weight[place] if spec.normalize else 1.0,
                window=windows[place],
                keep_below=KEEP_ALL if keep >= 1 else int(keep * KEEP_ALL),
            )
        )
    combine, divisor = _combination(spec)
    return FusedOp(
        rule=spec.rule,
        experts=tuple(experts),
        elect=spec.elect,
        combine=combine,
        scale=spec.lambda_,
        divisor=divisor,
        seed=spec.seed,
        name_hash=name_hash(step.name),
        work=step.work,
    )


def _combination(spec: Spec) -> tuple[Combine, float]:
    """How values combine, and the divisor where it is the same for every element."""
    averaged = spec.normalize or spec.combine == "mean"
    if not averaged or spec.combine == "max":
        return spec.combine, 1.0
    if spec.elect != "none":
        return "mean", 1.0
    return "sum", sum(spec.weight) if spec.normalize else float(len(spec.weight))

"""The compiled loops on this machine's processor: checks at the door, then csrc/ through _C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mergekern import _C, huge
from mergekern.arrays import HOST, Array, address, dtype_of, host_view
from mergekern.backends import BLOCK, CHUNK, Bracket, Counts, Margin, Speculation, Sums, nothing
from mergekern.backends.checks import (
    check_batch,
    check_inputs,
    check_margins,
    check_open,
    check_out,
    check_pruning,
    check_put,
    check_tile,
    check_unified,
)
from mergekern.backends.cores import available_cores
from mergekern.backends.formulas import spelled
from mergekern.backends.functions import run
from mergekern.backends.rooms import rooms_for
from mergekern.cdtypes import C_DTYPES
from mergekern.dtypes import FLOAT64, INT64, UINT8, DType
from mergekern.fused import (
    KEEP_ALL,
    Batch,
    ExpertScalars,
    Findings,
    FusedOp,
    Pruning,
    Tile,
    Unified,
    Window,
)

_PLAIN = ExpertScalars(index=0, coef=1.0)


class CpuBackend:
    """C++ loops on a pool of threads. Bits do not depend on `threads` or `instruction_set`.

    instruction_set: one of `instruction_sets()`; the widest that this processor runs if not given.
    """

    name = "cpu"
    ranked = CHUNK
    together = False
    batched = 4 * CHUNK  # larger ones are worth a call each

    def __init__(self, threads: int | None = None, instruction_set: str = "") -> None:
        self.threads = self.lanes = threads or available_cores()
        self.instruction_set = instruction_set or instruction_sets()[-1]

    def share(self, count: int) -> CpuBackend:
        return CpuBackend(max(1, self.threads // count), self.instruction_set)

    def pin(self, memory: np.ndarray) -> Callable[[], None]:
        return nothing

    def fuse(self, op: FusedOp, tile: Tile, out: Array) -> Findings:
        check_tile(tile, op.work, HOST, deltas=op.rule == "task_vector")
        check_out(tile, out, HOST)
        how, written = self._how(op.work), (address(out), C_DTYPES[dtype_of(out)])
        if op.rule != "function":
            found = _C.fuse(how, _native(op), _inputs(tile, op.experts), *written)
        elif (formula := spelled(op)) is not None:
            found = _C.elementwise(how, formula[0], _inputs(tile, formula[1]), *written)
        else:
            one = CpuBackend(1, self.instruction_set)
            return run(op, tile, out, one.fuse, all_finite, self.threads)
        return Findings(tuple(found.non_finite), found.overflow)

    def overlaps(self, tile: Tile, work: DType, epsilon: float) -> np.ndarray:
        """int64 [2, K]: how often methods.elementwise.overlaps is true."""
        check_tile(tile, work, HOST)
        counts = _C.overlaps(self._how(work), _inputs(tile), epsilon)
        return np.array(counts, np.int64).reshape(2, len(tile.experts))

    def speculate(
        self, op: FusedOp, tile: Tile, margins: Sequence[Margin], out: Array | None
    ) -> Speculation:
        check_tile(tile, op.work, HOST)
        check_margins(op, tile, margins)
        if out is not None:
            check_out(tile, out, HOST)
        kept = np.zeros((len(margins), 2, 2), np.int64)
        marked = np.empty(-(-tile.numel // 8), np.uint8)
        found = _C.speculate(
            self._how(op.work),
            _native(op),
            _inputs(tile, op.experts * len(tile.experts) if tile.spread else op.experts),
            [(_cuts(m.strict), _cuts(m.wide)) for m in margins],
            0 if out is None else address(out),
            _C.DType.bf16 if out is None else C_DTYPES[dtype_of(out)],
            address(kept),
            address(marked),
        )
        return Speculation(Findings(tuple(found.non_finite), found.overflow), kept, marked)

    def compact(self, tile: Tile, open_: Array, most: int) -> tuple[np.ndarray, Tile] | None:
        check_inputs(tile, HOST)
        check_open(tile, open_)
        starts = _C.open_starts(self.threads, address(open_), tile.numel)
        if starts[-1] > most:
            return None
        index = huge.empty(starts[-1], INT64)
        base = None if tile.base is None else huge.empty(starts[-1], dtype_of(tile.base))
        experts = tuple(huge.empty(starts[-1], dtype_of(x)) for x in tile.experts)
        _C.compact(
            self.threads,
            _inputs(tile),
            address(open_),
            starts,
            address(index),
            0 if base is None else address(base),
            [address(x) for x in experts],
        )
        return index, replace(tile, offset=0, base=base, experts=experts)

    def put(self, values: Array, index: Array, out: Array) -> None:
        check_put(values, index, out, HOST)
        dtype, n = C_DTYPES[dtype_of(out)], len(index)
        _C.put(self.threads, dtype, address(values), address(index), n, address(out))

    def fuse_batch(self, op: FusedOp, batch: Batch) -> dict[int, Findings]:
        check_batch(op, batch)
        columns = (batch.inputs, batch.outs, batch.offset, batch.numel, batch.name_hash)
        optional = (batch.windows, batch.ranks)
        found = _C.fuse_batch(
            self._how(op.work),
            _native(op),
            [_expert(0, dtype, e) for dtype, e in zip(batch.experts, op.experts, strict=True)],
            _C.DType.f32 if batch.base is None else C_DTYPES[batch.base],
            C_DTYPES[batch.out],
            len(batch),
            [
                *(column.ctypes.data for column in columns),
                *(0 if column is None else column.ctypes.data for column in optional),
            ],
            batch.by_index,
        )
        return {tile: Findings(tuple(inputs), overflow) for tile, inputs, overflow in found}

    def magnitudes(self, tile: Tile, expert: int, work: DType) -> np.ndarray:
        check_tile(tile, work, HOST)
        out = huge.empty(tile.numel, INT64)
        _C.magnitudes(self._how(work), _inputs(tile), expert, address(out))
        return out

    def count(
        self, tile: Tile, brackets: list[Bracket], work: DType, tallies: list[np.ndarray]
    ) -> list[Counts]:
        check_tile(tile, work, HOST)
        if [t.shape for t in tallies] != [(self.lanes, b.bins) for b in brackets]:
            raise ValueError(f"{tile.tensor}: a tally is [{self.lanes}, bins]")
        chunks = np.zeros((len(brackets), -(-tile.numel // CHUNK)), np.int64)
        above = _C.count(
            self._how(work),
            _inputs(tile),
            [_C.Bracket(expert=b.expert, low=b.low, shift=b.shift, bins=b.bins) for b in brackets],
            [address(t) for t in tallies],
            [address(c) for c in chunks],
        )
        return [Counts(*found) for found in zip(above, chunks, strict=True)]

    def masked_sums(self, op: FusedOp, tile: Tile, *, keep: bool = False) -> Sums:
        return self._sums(_C.masked_sums, op, tile, (2,), keep)

    def energies(self, op: FusedOp, tile: Tile, *, keep: bool = False) -> Sums:
        return self._sums(_C.energies, op, tile, (), keep)

    def _sums(
        self, add: Callable[..., None], op: FusedOp, tile: Tile, shape: tuple[int, ...], keep: bool
    ) -> Sums:
        check_tile(tile, op.work, HOST)
        out = np.empty((-(-tile.numel // BLOCK), len(tile.experts), *shape))
        masks, fresh = rooms_for(op, tile) if keep else ((), [0] * len(tile.experts))
        add(self._how(op.work), _native(op), _inputs(tile, op.experts), address(out), fresh)
        return Sums(out, masks)

    def prune(self, pruning: Pruning, tile: Tile) -> tuple[np.ndarray | None, ...]:
        check_tile(tile, pruning.work, HOST)
        check_pruning(pruning, tile)
        nbytes = -(-tile.numel // 8)
        masks = tuple(
            huge.empty(nbytes, UINT8) if odds.smallest < KEEP_ALL else None for odds in pruning.odds
        )
        rows = _C.Pruning(
            length=pruning.length,
            stride=pruning.stride,
            seed=pruning.seed,
            name_hash=pruning.name_hash,
        )
        odds = [
            _C.Odds(index=o.index, smallest=o.smallest, largest=o.largest) for o in pruning.odds
        ]
        addresses = [0 if mask is None else address(mask) for mask in masks]
        _C.prune(self._how(pruning.work), rows, odds, _inputs(tile), addresses)
        return masks

    def unify(self, tile: Tile, work: DType, into: Unified) -> Findings:
        check_tile(tile, work, HOST)
        check_unified(tile, into, HOST)
        found = _C.unify(
            self._how(work),
            _inputs(tile),
            0 if into.out is None else address(into.out),
            C_DTYPES[into.stored],
            [0 if mask is None else address(mask) for mask in into.masks],
            0 if into.sums is None else address(into.sums),
        )
        return Findings(tuple(found.non_finite), found.overflow)

    def gram(self, tile: Tile, work: DType) -> np.ndarray:
        check_tile(tile, work, HOST, deltas=False)
        shape = (-(-tile.numel // BLOCK), len(tile.experts), len(tile.experts))
        out = np.empty(shape)
        _C.gram(self._how(work), _inputs(tile), address(out))
        return out

    def _how(self, work: DType) -> _C.How:
        wide = work == FLOAT64
        return _C.How(isa=self.instruction_set, threads=self.threads, wide=wide)


def instruction_sets() -> list[str]:
    """The instruction sets that this build has loops for and this processor runs, widest last."""
    return _C.instruction_sets()


def all_finite(array: Array, threads: int = 1) -> bool:
    """Whether floats hold neither NaN nor Inf, at the speed of reading them."""
    floats = host_view(array)
    if floats.dtype not in C_DTYPES or not floats.flags.c_contiguous:
        raise ValueError(f"want contiguous floats, not {floats.dtype}, strides {floats.strides}")
    return _C.all_finite(address(floats), C_DTYPES[floats.dtype], floats.size, threads)


def _inputs(tile: Tile, scalars: tuple[ExpertScalars, ...] | None = None) -> _C.Inputs:
    scalars = scalars or (_PLAIN,) * len(tile.experts)
    masks = tile.masks or (None,) * len(tile.experts)
    return _C.Inputs(
        base=0 if tile.base is None else address(tile.base),
        base_dtype=_C.DType.f32 if tile.base is None else C_DTYPES[dtype_of(tile.base)],
        experts=[
            _expert(address(t), dtype_of(t), s, 0 if mask is None else address(mask))
            for t, s, mask in zip(tile.experts, scalars, masks, strict=True)
        ],
        offset=tile.offset,
        numel=tile.numel,
        spread=tile.spread,
    )


def _expert(address: int, dtype: DType, scalars: ExpertScalars, mask: int = 0) -> _C.Expert:
    return _C.Expert(
        data=address,
        dtype=C_DTYPES[dtype],
        index=scalars.index,
        coef=scalars.coef,
        vote=scalars.vote,
        share=scalars.share,
        window=_cuts(scalars.window),
        keep_below=scalars.keep_below,
        mask=mask,
    )


def _cuts(window: Window) -> tuple[int, int, int, int]:
    return window.lo, window.lo_last, window.hi, window.hi_last


def _native(op: FusedOp) -> _C.FusedOp:
    return _C.FusedOp(
        rule=getattr(_C.Rule, op.rule),
        elect=getattr(_C.Elect, op.elect),
        combine=getattr(_C.Combine, op.combine),
        scale=op.scale,
        divisor=op.divisor,
        seed=op.seed,
        name_hash=op.name_hash,
        ballots_are_values=all(e.coef == e.vote for e in op.experts),
        trim_by=getattr(_C.TrimBy, op.trim_by),
        least=op.least,
    )

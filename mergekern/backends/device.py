"""What the backends for GPUs have in common: checks at the door, launches, and what they found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mergekern.arrays import Array, as_tensor
from mergekern.backends import BLOCK, CHUNK, Bracket, Counts, Margin, Speculation, Sums, nothing
from mergekern.backends.checks import (
    check_batch,
    check_inputs,
    check_margins,
    check_open,
    check_out,
    check_put,
    check_tile,
    check_unified,
)
from mergekern.backends.functions import run
from mergekern.backends.hosted import Host, count_on, on_host, wants_host
from mergekern.backends.launch import (
    Kernels,
    Pass,
    batch_of,
    findings,
    tabulate,
    upload,
    windows_of,
)
from mergekern.backends.ranked import fuse_ranked
from mergekern.dtypes import FLOAT64, DType, to_torch
from mergekern.fused import (
    EVERY_INDEX,
    Batch,
    ExpertScalars,
    Findings,
    FusedOp,
    Pruning,
    Tile,
    Unified,
)
from mergekern.lazily import torch


class DeviceBackend:
    """Merges what lies in the memory of one device. Same bits as every other backend."""

    lanes = 1
    ranked = EVERY_INDEX
    together = True
    batched = EVERY_INDEX  # a launch each is what costs

    def __init__(self, kernels: Kernels, device: torch.device) -> None:
        self.name = kernels.name
        self.device = device
        self._where = str(device)
        self._kernels = kernels
        self._host = Host()

    def share(self, count: int) -> DeviceBackend:
        return self

    def pin(self, memory: np.ndarray) -> Callable[[], None]:
        return nothing

    def fuse(self, op: FusedOp, tile: Tile, out: Array) -> Findings:
        check_tile(tile, op.work, self._where, deltas=op.rule == "task_vector")
        check_out(tile, out, self._where)
        if op.rule == "function":
            return run(op, tile, out, self.fuse, lambda x: bool(as_tensor(x).isfinite().all()))
        if wants_host(op, tile):
            return self._host.fuse(op, tile, out)
        todo = self.start(op, batch_of(op, tile, out), windows_of(op))
        return findings(todo.found).get(0, Findings())

    def speculate(
        self, op: FusedOp, tile: Tile, margins: Sequence[Margin], out: Array | None
    ) -> Speculation:
        check_tile(tile, op.work, self._where)
        check_margins(op, tile, margins)
        if out is not None:
            check_out(tile, out, self._where)
        if tile.spread or wants_host(op, tile):
            seen = self._host.loops.speculate(op, on_host(tile), margins, None)
            found = Findings() if out is None else self.fuse(op, tile, out)
            return Speculation(found, seen.kept, as_tensor(seen.open).to(self.device))
        marks = torch.empty(-(-tile.numel // 8), dtype=torch.uint8, device=self.device)
        batch = batch_of(op, tile, out)
        todo = self.start(op, batch, windows_of(op, margins), np.array([marks.data_ptr()]))
        found = Findings() if out is None else findings(todo.found).get(0, Findings())
        return Speculation(found, todo.kept[0].cpu().numpy(), marks)

    def compact(self, tile: Tile, open_: Array, most: int) -> tuple[Array, Tile] | None:
        check_inputs(tile, self._where)
        check_open(tile, open_)
        marks = as_tensor(open_)
        byte = marks.nonzero()[:, 0]  # most are 0: only the others become eight places each
        if byte.numel() - 1 > most:  # bits of the last one may lie behind the end
            return None
        bit = torch.arange(8, dtype=torch.uint8, device=self.device)
        is_set = (marks[byte, None] >> bit) & 1 == 1
        index = (byte[:, None] * 8 + bit)[is_set]
        index = index[index < tile.numel]
        if index.numel() > most:
            return None
        base = None if tile.base is None else as_tensor(tile.base)[index]
        experts = tuple(as_tensor(x)[index] for x in tile.experts)
        return index, replace(tile, offset=0, base=base, experts=experts)

    def put(self, values: Array, index: Array, out: Array) -> None:
        check_put(values, index, out, self._where)
        as_tensor(out)[as_tensor(index)] = as_tensor(values)

    def fuse_batch(self, op: FusedOp, batch: Batch) -> dict[int, Findings]:
        check_batch(op, batch, self.ranked, together=True)
        if batch.ranks is not None:
            return fuse_ranked(self, op, batch)
        windows = windows_of(op) if batch.windows is None else batch.windows[:, :, None]
        return findings(self.start(op, batch, windows).found)

    def start(
        self,
        op: FusedOp,
        batch: Batch,
        windows: np.ndarray | torch.Tensor | None,
        marks: np.ndarray | None = None,
    ) -> Pass:
        """Launch an op over tiles on this device, and do not wait for it; see tabulate()."""
        todo = self.tables(op, batch, windows, marks)
        if todo.blocks:
            self._kernels.fuse(todo)
        return todo

    def gather(
        self, todo: Pass, index: torch.Tensor, starts: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Base and experts at some places of the tiles; see Kernels.gather()."""
        assert todo.base is not None, "deltas need a base"
        lines = [
            torch.empty(len(index), dtype=to_torch(dtype), device=self.device)
            for dtype in (todo.base, *todo.experts)
        ]
        addresses = np.array([line.data_ptr() for line in lines], np.int64)
        self._kernels.gather(todo, index, starts, upload(addresses, self.device))
        return lines[0], lines[1:]

    def scatter(
        self, todo: Pass, index: torch.Tensor, starts: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Outputs to their places in the tiles; see Kernels.scatter()."""
        address = upload(np.array([values.data_ptr()], np.int64), self.device)
        self._kernels.scatter(todo, index, starts, address)

    def magnitudes(self, tile: Tile, expert: int, work: DType) -> np.ndarray:
        check_tile(tile, work, self._where)
        if tile.spread:
            return self._host.loops.magnitudes(on_host(tile), expert, work)
        assert tile.base is not None
        wide = to_torch(work)
        base, mine = (as_tensor(x).to(wide) for x in (tile.base, tile.experts[expert]))
        bits = (mine - base).abs().view(torch.int64 if work == FLOAT64 else torch.int32)
        return bits.cpu().long().numpy()

    def count(
        self, tile: Tile, brackets: list[Bracket], work: DType, tallies: list[np.ndarray]
    ) -> list[Counts]:
        check_tile(tile, work, self._where)
        if [t.shape for t in tallies] != [(self.lanes, b.bins) for b in brackets]:
            raise ValueError(f"{tile.tensor}: a tally is [{self.lanes}, bins]")
        if tile.spread:
            return count_on(self._host.loops, on_host(tile), brackets, work, tallies)
        sizes = [b.bins for b in brackets]
        first = np.cumsum([0, *sizes])
        table = np.array(
            [
                (b.expert, b.low, b.shift, b.bins, at)
                for b, at in zip(brackets, first, strict=False)
            ],
            np.int64,
        )
        chunks = -(-tile.numel // CHUNK)
        seen = torch.zeros((2, chunks, len(brackets)), dtype=torch.int64, device=self.device)
        bins = torch.zeros(int(first[-1]), dtype=torch.int64, device=self.device)
        todo = self._looking(tile, work)
        self._kernels.count(todo, upload(table, self.device), seen[0], seen[1], bins)
        above, inside = seen.cpu().numpy()
        for tally, counted in zip(tallies, bins.cpu().split(sizes), strict=True):
            tally[0] += counted.numpy()
        return [Counts(int(above[:, q].sum()), inside[:, q].copy()) for q in range(len(brackets))]

    def masked_sums(self, op: FusedOp, tile: Tile, *, keep: bool = False) -> Sums:
        check_tile(tile, op.work, self._where)
        if wants_host(op, tile):
            return self._host.loops.masked_sums(op, on_host(tile))
        shape = (-(-tile.numel // BLOCK), len(tile.experts), 2)
        out = torch.empty(shape, dtype=torch.float64, device=self.device)
        todo = self.tables(op, batch_of(op, tile, None), windows_of(op))
        self._kernels.masked_sums(todo, out)
        return Sums(out.cpu().numpy())

    def energies(self, op: FusedOp, tile: Tile, *, keep: bool = False) -> Sums:
        check_tile(tile, op.work, self._where)
        return self._host.loops.energies(op, on_host(tile))

    def prune(self, pruning: Pruning, tile: Tile) -> tuple[torch.Tensor | None, ...]:
        check_tile(tile, pruning.work, self._where)
        return self._host.prune(pruning, tile)

    def unify(self, tile: Tile, work: DType, into: Unified) -> Findings:
        check_tile(tile, work, self._where)
        check_unified(tile, into, self._where)
        return self._host.unify(tile, work, into)

    def gram(self, tile: Tile, work: DType) -> np.ndarray:
        check_tile(tile, work, self._where, deltas=False)
        experts = len(tile.experts)
        shape = (-(-tile.numel // BLOCK), experts, experts)
        out = torch.empty(shape, dtype=torch.float64, device=self.device)
        self._kernels.gram(self._looking(tile, work), out)
        return out.cpu().numpy()

    def _looking(self, tile: Tile, work: DType) -> Pass:
        """A pass that merges nothing and trims nothing."""
        experts = tuple(ExpertScalars(k, 1.0) for k in range(len(tile.experts)))
        op = FusedOp("task_vector", experts, work=work)
        return self.tables(op, batch_of(op, tile, None), None)

    def tables(
        self,
        op: FusedOp,
        batch: Batch,
        windows: np.ndarray | torch.Tensor | None,
        marks: np.ndarray | None = None,
    ) -> Pass:
        """What a launch would take."""
        return tabulate(op, batch, windows, marks, self._kernels.span, self.device)

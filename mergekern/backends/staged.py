"""A device for what lies in the host's memory: stretches are copied in, merged there, copied out.

    for each stretch: copy in (one stream) -> kernels (another) -> copy out (a third)

Three stretches are under way at a time; where the host's memory is pinned, the three overlap. What
is too little to be worth the way (samples, open elements) is done on the host: bits are the same.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mergekern.arrays import HOST, Array, address, as_tensor
from mergekern.backends import CHUNK, Backend, Bracket, Counts, Margin, Speculation, Sums, nothing
from mergekern.backends.checks import check_batch, check_out, check_tile
from mergekern.backends.device import DeviceBackend
from mergekern.backends.hosted import count_on, wants_host
from mergekern.backends.launch import batch_of, findings, windows_of
from mergekern.backends.slots import Slot, stretches
from mergekern.dtypes import DType
from mergekern.fused import EVERY_INDEX, Batch, Findings, FusedOp, Masks, Pruning, Tile, Unified
from mergekern.lazily import torch
from mergekern.tiles import cut

SLOTS = 3
LARGEST_SLOT = 64 << 20  # more does not make copies faster

log = logging.getLogger(__name__)


class StagedBackend:
    """Backend for tensors in the host's memory that are merged on a device.

    host: does what is not worth the way
    room: bytes of the device's memory that copies may take; BudgetError, once something is merged,
          where the inputs of CHUNK elements do not fit into a third of it
    """

    lanes = 1
    ranked = CHUNK
    together = False
    batched = EVERY_INDEX

    def __init__(self, inner: DeviceBackend, host: Backend, room: int) -> None:
        self.name = inner.name
        self.device = inner.device
        self._inner = inner
        self._host = host
        self._slots = [Slot(inner, min(LARGEST_SLOT, room // SLOTS)) for _ in range(SLOTS)]

    def share(self, count: int) -> StagedBackend:
        return self

    def pin(self, memory: np.ndarray) -> Callable[[], None]:
        """Page-locked, so that copies run beside kernels."""
        if self.device.type != "cuda":
            return nothing
        runtime, begin = torch.cuda.cudart(), address(memory)
        with torch.cuda.device(self.device):
            refused = int(runtime.cudaHostRegister(begin, memory.nbytes, 0))
        if refused:
            log.warning("%s: memory cannot be pinned (CUDA error %d): slower", self.device, refused)
            self._forget_error()
            return nothing
        return lambda: runtime.cudaHostUnregister(begin)

    def _forget_error(self) -> None:
        """CUDA keeps the error of a call for the next launch, which would fail by it."""
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device=self.device)

    def fuse(self, op: FusedOp, tile: Tile, out: Array) -> Findings:
        check_tile(tile, op.work, HOST, deltas=op.rule == "task_vector")
        check_out(tile, out, HOST)
        if op.rule == "function":
            return self._call(op, tile, out)
        if wants_host(op, tile):
            return self._host.fuse(op, tile, out)
        found, _ = self._run(op, batch_of(op, tile, out), windows_of(op))
        return found.get(0, Findings())

    def speculate(
        self, op: FusedOp, tile: Tile, margins: Sequence[Margin], out: Array | None
    ) -> Speculation:
        check_tile(tile, op.work, HOST)
        if out is not None:
            check_out(tile, out, HOST)
        if tile.spread or wants_host(op, tile):
            return self._host.speculate(op, tile, margins, out)
        marks = np.empty(-(-tile.numel // 8), np.uint8)
        found, kept = self._run(op, batch_of(op, tile, out), windows_of(op, margins), marks)
        return Speculation(found.get(0, Findings()), kept, marks)

    def compact(self, tile: Tile, open_: Array, most: int) -> tuple[Array, Tile] | None:
        return self._host.compact(tile, open_, most)

    def put(self, values: Array, index: Array, out: Array) -> None:
        self._host.put(values, index, out)

    def fuse_batch(self, op: FusedOp, batch: Batch) -> dict[int, Findings]:
        if batch.ranks is not None:  # small tensors, whose windows are not known yet
            return self._host.fuse_batch(op, batch)
        check_batch(op, batch)
        windows = windows_of(op) if batch.windows is None else batch.windows[:, :, None]
        found, _ = self._run(op, batch, windows)
        return found

    def magnitudes(self, tile: Tile, expert: int, work: DType) -> np.ndarray:
        return self._host.magnitudes(tile, expert, work)

    def count(
        self, tile: Tile, brackets: list[Bracket], work: DType, tallies: list[np.ndarray]
    ) -> list[Counts]:
        if tile.spread:
            return count_on(self._host, tile, brackets, work, tallies)
        counted = [self._inner.count(t, brackets, work, tallies) for t in self._copies(tile)]
        return [
            Counts(sum(c.above for c in mine), np.concatenate([c.chunks for c in mine]))
            for mine in zip(*counted, strict=True)
        ]

    def masked_sums(self, op: FusedOp, tile: Tile, *, keep: bool = False) -> Sums:
        if wants_host(op, tile):
            return self._host.masked_sums(op, tile, keep=keep)
        found = [self._inner.masked_sums(op, t).sums for t in self._copies(tile)]
        return Sums(np.concatenate(found))

    def energies(self, op: FusedOp, tile: Tile, *, keep: bool = False) -> Sums:
        return self._host.energies(op, tile, keep=keep)

    def prune(self, pruning: Pruning, tile: Tile) -> Masks:
        return self._host.prune(pruning, tile)

    def unify(self, tile: Tile, work: DType, into: Unified) -> Findings:
        return self._host.unify(tile, work, into)

    def gram(self, tile: Tile, work: DType) -> np.ndarray:
        return np.concatenate([self._inner.gram(t, work) for t in self._copies(tile)])

    def _run(
        self,
        op: FusedOp,
        batch: Batch,
        windows: np.ndarray | None,
        marks: np.ndarray | None = None,
    ) -> tuple[dict[int, Findings], np.ndarray]:
        """What was found, by tile of the batch; what was counted, in all."""
        found: dict[int, Findings] = {}
        kept = np.zeros((len(batch.experts), 2, 2), np.int64)

        def land(slot: Slot) -> None:
            nonlocal kept
            seen = slot.land()
            if seen is None:
                return
            rows, flags, counts = seen
            for place, news in findings(flags).items():
                row = int(rows[place])
                found[row] = found.get(row, Findings()) | news
            kept += counts.sum(0).numpy()

        try:
            for number, stretch in enumerate(stretches(batch, self._slots[0].nbytes)):
                slot = self._slots[number % SLOTS]
                land(slot)
                mine = windows if windows is None or len(windows) == 1 else windows[stretch.rows]
                slot.start(op, stretch, mine, marks)
            for slot in self._slots:
                land(slot)
        except BaseException:
            for slot in self._slots:
                slot.abandon()
            raise
        return dict(sorted(found.items())), kept

    def _call(self, op: FusedOp, tile: Tile, out: Array) -> Findings:
        """A function is called on copies, one stretch after the other."""
        found, stop, there = Findings(), 0, as_tensor(out)
        for part in self._copies(tile):
            start, stop = stop, stop + part.numel
            made = torch.empty(part.numel, dtype=there.dtype, device=self.device)
            found |= self._inner.fuse(op, part, made)
            there[start:stop].copy_(made)
        return found

    def _copies(self, tile: Tile) -> Iterator[Tile]:
        """The tile in stretches, on the device; one, where it is empty."""
        for slot in self._slots:
            slot.release()  # copies take as much as all of them
        batch = batch_of(FusedOp("task_vector", ()), tile, None)
        every = stretches(batch, SLOTS * self._slots[0].nbytes)
        parts = [
            (start, start + numel)
            for stretch in every
            for start, numel in zip(
                stretch.start.tolist(), stretch.batch.numel.tolist(), strict=True
            )
        ]
        for start, stop in parts or [(0, 0)]:
            part = cut(tile, start, stop)
            base = None if part.base is None else as_tensor(part.base).to(self.device)
            experts = tuple(as_tensor(x).to(self.device) for x in part.experts)
            yield Tile(tile.tensor, tile.offset + start, base, experts)

"""Stretches of host memory on their way through a device's: cut to size, copied, merged, copied."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mergekern.arrays import address
from mergekern.backends import CHUNK
from mergekern.backends.device import DeviceBackend
from mergekern.backends.launch import Pass
from mergekern.backends.streams import Stream
from mergekern.errors import BudgetError
from mergekern.fused import Batch, FusedOp
from mergekern.lazily import torch
from mergekern.sizes import format_size

ALIGN = 256  # of what is copied, on the device
NEAR = 4095  # inputs with no more than this between them are copied as one: less than a page, all
# of which might be unmapped


@dataclass(frozen=True)
class Stretch:
    """Parts of some tiles of a batch: which tiles, and from which of their elements on."""

    rows: np.ndarray
    start: np.ndarray
    batch: Batch


def stretches(batch: Batch, nbytes: int) -> Iterator[Stretch]:
    """Cut a batch into stretches that need no more than `nbytes` each on a device."""
    dtypes = [batch.base, *batch.experts, batch.out]
    element = sum(dtype.itemsize for dtype in dtypes if dtype is not None)
    slack = (len(dtypes) + 1) * (ALIGN + NEAR)  # what marks take is an eighth of a byte an element
    longest = 8 * (nbytes - slack) // (8 * element + 1) // CHUNK * CHUNK
    if longest <= 0:
        least = slack + (8 * element + 1) * CHUNK // 8
        raise BudgetError(
            f"max_device_memory leaves {format_size(nbytes)} for a stretch of {len(batch.experts)} "
            f"models, of which three are under way; it takes {format_size(least)}: give more"
        )
    pieces = -(-batch.numel // longest)
    rows = np.repeat(np.arange(len(batch)), pieces)
    start = (np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * longest
    numel = np.minimum(batch.numel[rows] - start, longest)
    size = slack + numel * element + numel // 8
    reached = np.cumsum(size)
    sizes = np.array([0 if dtype is None else dtype.itemsize for dtype in dtypes], np.uint64)
    first = 0
    while first < len(rows):
        before = reached[first] - size[first]
        stop = max(first + 1, int(np.searchsorted(reached, before + nbytes, side="right")))
        chosen, at = rows[first:stop], start[first:stop]
        moved = at[:, None].astype(np.uint64) * sizes
        yield Stretch(
            chosen,
            at,
            replace(
                batch,
                inputs=batch.inputs[chosen] + moved[:, :-1],
                outs=np.where(batch.outs[chosen], batch.outs[chosen] + moved[:, -1], 0),
                offset=batch.offset[chosen] + at,
                numel=numel[first:stop],
                name_hash=batch.name_hash[chosen],
                windows=None,
            ),
        )
        first = stop


class Seen(NamedTuple):
    """What a stretch has to tell: its tiles, and Pass.found and Pass.kept of them."""

    rows: np.ndarray
    found: torch.Tensor
    kept: torch.Tensor


class Slot:
    """Room for one stretch on a device."""

    def __init__(self, backend: DeviceBackend, nbytes: int) -> None:
        self.nbytes = nbytes
        self._backend = backend
        self._memory: torch.Tensor | None = None
        self._flying: tuple[np.ndarray, Pass, torch.Tensor, torch.Tensor] | None = None
        self._landed: torch.cuda.Event | None = None
        self._into, self._out = Stream(backend.device), Stream(backend.device)
        self._merging = Stream(backend.device, current=True)

    def start(
        self,
        op: FusedOp,
        stretch: Stretch,
        windows: np.ndarray | None,
        marks: np.ndarray | None,
    ) -> None:
        """Copy in, merge and copy out, as soon as can be; the slot is free. Does not wait.

        marks: of the one tile that the stretch is part of
        """
        assert self._flying is None, "the slot is not free"
        batch = stretch.batch
        sizes = np.array([0 if d is None else d.itemsize for d in (batch.base, *batch.experts)])
        lengths = batch.numel[:, None] * sizes
        inputs = _Spans(batch.inputs.reshape(-1), lengths.reshape(-1), NEAR)
        outs = [_Spans(batch.outs, batch.numel * batch.out.itemsize, 0)]
        if marks is not None:
            starts = address(marks) + (stretch.start // 8).astype(np.uint64)
            outs.append(_Spans(starts, -(-batch.numel // 8), 0))
        at = self._place([inputs, *outs])
        with self._into.on():
            inputs.copy_in(self._bytes, at[0])
            arrived = self._into.mark()
        self._merging.wait(arrived)
        there = replace(
            batch,
            inputs=inputs.moved(self._address + at[0]).reshape(batch.inputs.shape),
            outs=outs[0].moved(self._address + at[1]),
        )
        marked = outs[1].moved(self._address + at[2]) if marks is not None else None
        with self._merging.on():  # the caller's stream may have become another since
            todo = self._backend.start(op, there, windows, marked)
        self._out.wait(self._merging.mark())
        with self._out.on():
            for spans, begin in zip(outs, at[1:], strict=True):
                spans.copy_out(self._bytes, begin)
            # What was launched lives until it has landed: its tables must not be used again.
            self._flying = stretch.rows, todo, _to_host(todo.found), _to_host(todo.kept)
            self._landed = self._out.mark()

    def land(self) -> Seen | None:
        """Wait for the stretch that was started; None where none was."""
        if self._flying is None:
            return None
        rows, _, found, kept = self._flying
        if self._landed is not None:
            self._landed.synchronize()
        self._flying = None
        return Seen(rows, found, kept)

    def abandon(self) -> None:
        """Wait for whatever is under way, which after an error nobody wants: what was copied from
        and to may be let go then."""
        for stream in (self._into, self._merging, self._out):
            stream.finish()
        self._flying = None

    def release(self) -> None:
        """Give the memory back; the slot is free."""
        assert self._flying is None, "the slot is not free"
        self._memory, self._bytes = None, torch.empty(0, dtype=torch.uint8, device="cpu")

    def _place(self, groups: Sequence[_Spans]) -> list[int]:
        """Where each group of spans begins in the slot."""
        ends = np.cumsum([group.nbytes for group in groups]).tolist()
        if self._memory is None or self._memory.numel() < ends[-1] + ALIGN:
            assert ends[-1] <= self.nbytes, "stretches() makes them fit"
            size = (self.nbytes + ALIGN,)
            with self._merging.on():
                self._memory = torch.empty(size, dtype=torch.uint8, device=self._backend.device)
            # What had this memory before may still be under way, on that stream.
            self._into.wait(self._merging.mark())
            skip = -self._memory.data_ptr() % ALIGN
            self._bytes = self._memory[skip:]
            self._address = self._bytes.data_ptr()
        return [0, *ends[:-1]]


class _Spans:
    """Runs of host bytes that are copied as one, and where they lie behind one another."""

    def __init__(self, address: np.ndarray, length: np.ndarray, near: int) -> None:
        """near: what may lie between two items of one run; items of address 0 are in none"""
        self._item = address.astype(np.int64)
        order = np.argsort(self._item, kind="stable")
        order = order[(self._item[order] != 0) & (length[order] > 0)]
        begin, end = self._item[order], (self._item + length)[order]
        reached = np.maximum.accumulate(end)
        opens = np.ones(len(order), bool)
        opens[1:] = begin[1:] > reached[:-1] + near
        firsts = np.flatnonzero(opens)
        self._begin = begin[firsts]
        closes = np.append(firsts[1:], len(order)) - 1
        self._length = reached[closes] - self._begin if len(firsts) else reached
        # On the device a run begins where the host's does, modulo ALIGN: aligned stays aligned.
        room = -(-(self._begin % ALIGN + self._length) // ALIGN) * ALIGN
        self._at = np.cumsum(room) - room + self._begin % ALIGN
        self.nbytes = int(room.sum())
        self._run = np.zeros(len(self._item), np.int64)
        self._run[order] = np.cumsum(opens) - 1
        self._there = np.zeros(len(self._item), bool)
        self._there[order] = True

    def moved(self, to: int) -> np.ndarray:
        """The items' addresses where the runs lie from `to` on; 0 for those in none."""
        if not self._there.any():
            return np.zeros(len(self._item), np.uint64)
        shift = self._at[self._run] - self._begin[self._run] + to
        return np.where(self._there, self._item + shift, 0).astype(np.uint64)

    def copy_in(self, device: torch.Tensor, to: int) -> None:
        for there, host in self._pairs(device, to):
            there.copy_(host, non_blocking=True)

    def copy_out(self, device: torch.Tensor, begin: int) -> None:
        for there, host in self._pairs(device, begin):
            host.copy_(there, non_blocking=True)

    def _pairs(self, device: torch.Tensor, to: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        columns = (self._begin.tolist(), self._length.tolist(), (self._at + to).tolist())
        for begin, length, at in zip(*columns, strict=True):
            raw = (ctypes.c_char * length).from_address(begin)
            yield device[at : at + length], torch.frombuffer(raw, dtype=torch.uint8)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", non_blocking=True)

"""Where the bytes of a unit lie: in the inputs' files, in its stretch of memory, in the output.

Bytes are moved in whole blocks, straight between disk and memory. A tensor begins anywhere in its
file, so what is read is rounded out to blocks and the tensor is a view into it; neighbours in a
file are one extent and one read. Output bytes lie in memory as they do in their file, modulo a
block, so that whole blocks are written from where they were computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mergekern.budget import PADDING
from mergekern.checkpoint.direct import BLOCK
from mergekern.table import NONE, READ, Table, Target
from mergekern.units import Pieces, needed

GAP = PADDING  # bytes between two tensors that are read with them rather than seeked over


@dataclass(frozen=True)
class Extent:
    """Blocks of one input file, read to `begin` of the unit and then moved up by `shift` bytes.

    Formats that do not align their tensors need the shift: kernels take elements at addresses that
    are multiples of their size.
    """

    file: int
    offset: int
    nbytes: int
    begin: int
    shift: int


@dataclass(frozen=True)
class Span:
    """Output bytes that lie together in the unit and in their shard."""

    shard: int
    offset: int  # in the file
    begin: int  # in the unit
    length: int

    def cut(self, nbytes: int) -> list[Span]:
        """In parts of at most `nbytes`, cut where the file has multiples of them."""
        found = []
        at, end = self.offset, self.offset + self.length
        while at < end:
            stop = min(at // nbytes * nbytes + nbytes, end)
            found.append(Span(self.shard, at, self.begin + at - self.offset, stop - at))
            at = stop
        return found


@dataclass(frozen=True)
class Share:
    """What a unit holds for one target.

    inputs: where each input of each piece begins in the stretch, in the target's own columns
    outs:   where each piece's output begins
    """

    pieces: Pieces
    inputs: np.ndarray
    outs: np.ndarray
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Unit:
    """What is read, computed and written as one, in one stretch of memory.

    inputs:  where each input of each piece begins in the stretch; a column per slot, as in Table
    decoded: piece and slot of what has to come through Checkpoint.read()
    shares:  by the number of the target, for all that want any of it
    """

    pieces: Pieces
    inputs: np.ndarray
    extents: tuple[Extent, ...]
    decoded: tuple[tuple[int, int], ...]
    shares: dict[int, Share]
    nbytes: int
    bytes_read: int


def lay_out(table: Table, pieces: Pieces, *, output: bool) -> Unit:
    """Give every input and output of a unit its place; `output`: with room for what is written."""
    row = pieces.row
    file = np.where(needed(table, pieces), table.file[row], NONE)
    width = table.width[row]
    nbytes = pieces.numel[:, None] * width
    begin = table.begin[row] + pieces.start[:, None] * width
    inputs = np.zeros(file.shape, np.int64)
    planned = file >= 0
    extents, inputs[planned], used = _extents(
        file[planned], begin[planned], nbytes[planned], width[planned]
    )
    apart = file == READ
    room = _up(nbytes[apart], 64)
    inputs[apart] = used + np.cumsum(room) - room
    used = -(-(used + int(room.sum())) // BLOCK) * BLOCK
    shares = {}
    for number in np.flatnonzero(pieces.wants.any(axis=0)).tolist():
        target = table.targets[number]
        chosen = np.flatnonzero(pieces.wants[:, number])
        slots = target.slots[row[chosen]]
        mine = np.take_along_axis(inputs[chosen], slots, axis=1)
        outs = np.zeros(len(chosen), np.int64)
        spans: tuple[Span, ...] = ()
        if output:
            first = np.take_along_axis(begin[chosen], slots, axis=1)
            placed = np.where(_shared(target, pieces[chosen], first[:, 1]), mine[:, 1], -1)
            outs, spans, used = _outputs(target, pieces[chosen], placed, used)
        shares[number] = Share(pieces[chosen], mine, outs, spans)
    return Unit(
        pieces=pieces,
        inputs=inputs,
        extents=extents,
        decoded=tuple(zip(*(found.tolist() for found in np.nonzero(apart)), strict=True)),
        shares=shares,
        nbytes=used,
        bytes_read=int(nbytes[file >= READ].sum()),
    )


def _extents(
    file: np.ndarray, begin: np.ndarray, nbytes: np.ndarray, width: np.ndarray
) -> tuple[tuple[Extent, ...], np.ndarray, int]:
    """What to read, where each input will begin, and how much memory that takes."""
    if not len(file):
        return (), begin, 0
    shift = -begin % width
    order = np.lexsort((begin, file))
    f, b, s = file[order], begin[order], shift[order]
    stop = np.maximum.accumulate(f * _FILE + b + nbytes[order])  # of all that begins before, too
    new = np.ones(len(f), bool)
    new[1:] = (f[1:] * _FILE + b[1:] > stop[:-1] + GAP) | (s[1:] != s[:-1])
    heads = np.flatnonzero(new)
    tails = np.append(heads[1:], len(f)) - 1
    offset = _down(b[heads], BLOCK)
    size = _up(stop[tails] - f[heads] * _FILE + s[heads], BLOCK) - offset
    place = np.cumsum(size) - size
    which = np.cumsum(new) - 1
    where = np.empty_like(begin)
    where[order] = place[which] + b - offset[which] + s
    columns = (column.tolist() for column in (f[heads], offset, size, place, s[heads]))
    return tuple(map(Extent, *columns)), where, int(size.sum())


def _shared(target: Target, pieces: Pieces, begin: np.ndarray) -> np.ndarray:
    """True for copies that lie alike in input and output: they are written from where they are."""
    row = pieces.row
    offset, _ = target.places(row, pieces.start, pieces.stop)
    alike = (begin - offset) % BLOCK == 0
    aligned = begin % target.itemsize[row] == 0  # a copy's bytes are as wide as its input's
    found: np.ndarray = target.copied[row] & (target.file[row, 1] >= 0) & alike & aligned
    return found


def _outputs(
    target: Target, pieces: Pieces, placed: np.ndarray, used: int
) -> tuple[np.ndarray, tuple[Span, ...], int]:
    """Where outputs lie: in memory behind `used` (`placed`, unless that is -1), and in shards."""
    row = pieces.row
    at, behind = target.places(row, pieces.start, pieces.stop)
    order = np.lexsort((at, target.shard[row]))
    row, offset = row[order], at[order]
    shard, size = target.shard[row], (behind - at)[order]
    place, known = placed[order], placed[order] >= 0
    new = np.ones(len(row), bool)
    new[1:] = (shard[1:] != shard[:-1]) | (offset[1:] != (offset + size)[:-1])
    new[1:] |= known[1:] | known[:-1]
    heads = np.flatnonzero(new)
    tails = np.append(heads[1:], len(row)) - 1
    length = (offset + size)[tails] - offset[heads]
    within = offset[heads] % BLOCK
    room = np.where(known[heads], 0, _up(within + length, BLOCK))
    begin = np.where(known[heads], place[heads], used + np.cumsum(room) - room + within)
    which = np.cumsum(new) - 1
    outs = np.empty_like(placed)
    outs[order] = begin[which] + offset - offset[heads][which]
    columns = (column.tolist() for column in (shard[heads], offset[heads], begin, length))
    return outs, tuple(map(Span, *columns)), used + int(room.sum())


_FILE = 1 << 44  # more bytes than a file has, so that file and offset are one number


def _down(value: np.ndarray, multiple: int) -> np.ndarray:
    found: np.ndarray = value // multiple * multiple
    return found


def _up(value: np.ndarray, multiple: int) -> np.ndarray:
    return -(-value // multiple) * multiple

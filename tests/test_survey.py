"""Surveys: what they find is what it means, and the same however a tensor is cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch

from mergekern.backends.cpu import CpuBackend
from mergekern.backends.reference import ReferenceBackend
from mergekern.function import PerColumn, PerRow
from mergekern.fused import Tile
from mergekern.plan import Input, Step
from mergekern.sources import Resident
from mergekern.spec import Spec
from mergekern.survey import Survey
from mergekern.tiles import TILE_ALIGN, Part, Tensors, cut

SHAPES = [(), (1,), (70_001,), (300_000, 1), (7, 40_000), (260, 1001), (3, 5, 9001), (1, 200_000)]
BACKENDS = [CpuBackend(1), CpuBackend(3), ReferenceBackend()]


class Cut:
    """One tensor, read tile by tile; every tile is let go of when the next one comes."""

    stretch = 1000

    def __init__(self, step: Step, tile: Tile, length: int) -> None:
        self.steps, self._tile, self._length = [step], tile, length

    def tiles(self) -> Iterator[tuple[Step, Tile]]:
        for start in range(0, self._tile.numel, self._length):
            tile = cut(self._tile, start, min(start + self._length, self._tile.numel))
            copies = [x.clone() for x in (tile.base, *tile.experts) if x is not None]
            yield self.steps[0], Tile("w", start, copies[0], tuple(copies[1:]))
            for copy in copies:
                copy.fill_(math.nan)

    def parts(self, parts: Sequence[Part]) -> Iterator[tuple[Sequence[Part], Tile]]:
        for part in parts:
            yield [part], cut(self._tile, part.start, part.stop)


def tensor_of(shape: tuple[int, ...]) -> tuple[Step, Tile]:
    g = torch.Generator().manual_seed(1)
    numel = math.prod(shape)
    base, *experts = (torch.randn(numel, generator=g).bfloat16() for _ in range(3))
    experts[0] = experts[0].float()
    inputs = [Input(model, "w") for model in range(3)]
    spec = Spec("function")
    step = Step("w", "merge", torch.float32, shape, inputs[0], tuple(inputs[1:]), (0, 1), spec=spec)
    return step, Tile("w", 0, base, tuple(experts))


def cuts_of(shape: tuple[int, ...]) -> list[Tensors]:
    step, tile = tensor_of(shape)
    return [Resident([(step, tile)]), *(Cut(step, tile, n * TILE_ALIGN) for n in (1, 3))]


def products(base: torch.Tensor | None, experts: list[torch.Tensor]) -> torch.Tensor:
    """What is changed in place is a copy."""
    assert base is not None
    first = experts[0].sub_(base)
    return torch.stack([first, first * experts[1], base.abs_()])


def wanted(shape: tuple[int, ...]) -> torch.Tensor:
    _, tile = tensor_of(shape)
    assert tile.base is not None
    base, first, second = (x.float() for x in (tile.base, *tile.experts))
    return torch.stack([first - base, (first - base) * second, base.abs()]).double()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums(shape: tuple[int, ...]) -> None:
    found = [Survey(b, t).sums(products) for b in BACKENDS for t in cuts_of(shape)]
    assert all(torch.equal(each, found[0]) for each in found)
    torch.testing.assert_close(found[0], wanted(shape).sum(-1), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_counts(shape: tuple[int, ...]) -> None:
    found = [
        Survey(BACKENDS[0], t).sums(lambda *inputs: products(*inputs) > 0) for t in cuts_of(shape)
    ]
    assert all(each.tolist() == (wanted(shape) > 0).sum(-1).tolist() for each in found)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows(shape: tuple[int, ...]) -> None:
    width = shape[-1] if shape else 1

    def largest(base: torch.Tensor | None, experts: list[torch.Tensor]) -> torch.Tensor:
        assert experts[0].shape[1] == width
        return products(base, experts).amax(-1).T

    found = [Survey(b, t).rows(largest) for b in BACKENDS for t in cuts_of(shape)]
    assert all(torch.equal(each, found[0]) for each in found)
    assert torch.equal(found[0], wanted(shape).view(3, -1, width).amax(-1).T)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_column_sums(shape: tuple[int, ...]) -> None:
    found = [Survey(b, t).column_sums(products) for b in BACKENDS for t in cuts_of(shape)]
    assert all(torch.equal(each, found[0]) for each in found)
    columns = wanted(shape).view(3, shape[0] if shape else 1, -1)
    torch.testing.assert_close(found[0], columns.sum(1), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS[1:], ids=lambda backend: backend.name)
def test_what_stands_where_when_sorted(backend, shape: tuple[int, ...]) -> None:
    width = shape[-1] if shape else 1
    numel = math.prod(shape)
    rows = {"row": PerRow(torch.rand(numel // width).double(), width)}

    def size(base, experts, found) -> torch.Tensor:
        return (experts[0] - base).abs() * found["row"]

    per_element = rows["row"].values.float().repeat_interleave(width)
    ordered = (wanted(shape)[0].abs().float() * per_element).sort().values
    places = [0, numel // 3, numel - 1]
    for tensors in cuts_of(shape):
        found = Survey(backend, tensors).ascending(size, places, rows)
        assert found == ordered[places].tolist()


@pytest.mark.parametrize("width", [1, 3, 1000, 5000])
def test_numbers_of_rows_and_columns_for_any_run(width: int) -> None:
    values = torch.rand(5000 // width).double()
    row, column = PerRow(values, width), PerColumn(torch.rand(width).double())
    rows, columns = values.repeat_interleave(width), column.values.repeat(5000 // width)
    for start, stop in ((0, len(rows)), (0, 1), (999, 2001), (len(rows) - 1, len(rows))):
        stop = min(stop, len(rows))
        assert torch.equal(row.at(start, stop - start), rows[start:stop])
        assert torch.equal(column.at(start, stop - start), columns[start:stop])

"""Selection by variance: exactly the largest, by index where equal, however the tensor is read."""

from __future__ import annotations

import pytest
import torch
from cases import tile
from tiled import spec_of, tensors_of

from mergekern import variance as selection
from mergekern.backends.choose import get_backend
from mergekern.backends.reference import ReferenceBackend
from mergekern.backends.thinned import reached, variance
from mergekern.keys import Key
from mergekern.methods.sce import LEAST_ENERGY
from mergekern.statistics import numbers_of
from mergekern.tiles import TILE_ALIGN
from mergekern.variance import NOTHING, largest_variances, shares_of

BACKEND = get_backend("cpu")


def wanted(spread: torch.Tensor, fraction: float) -> torch.Tensor:
    count = int(int((spread != 0).sum()) * fraction)
    order = spread.sort(descending=True, stable=True).indices
    mask = torch.zeros(spread.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask


@pytest.mark.parametrize("kind", ["near", "equal", "zeros"])
@pytest.mark.parametrize("numel", [1, 77, 70_001, 300_000])
@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("length", [0, TILE_ALIGN])
def test_exactly_the_largest_are_kept(kind, numel, fraction, length) -> None:
    t = tile(numel, [torch.bfloat16] * 4, kind, seed=numel)
    assert t.base is not None
    spread = variance([x.float() - t.base.float() for x in t.experts])
    window = largest_variances(BACKEND, tensors_of([t], spec_of(3), length), fraction)
    low, high = reached(spread, window, 0)
    assert torch.equal(low & ~high, wanted(spread, fraction))


def test_a_lost_bet_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    t = tile(200_000, [torch.float32] * 3, "near")
    tensors = tensors_of([t], spec_of(2))
    want = largest_variances(BACKEND, tensors, 0.3)

    def mislead(*_, **__):
        return {(selection.ALL, 0): (Key(9, -1), Key(8, 0))}

    monkeypatch.setattr(selection, "guess", mislead)
    assert largest_variances(BACKEND, tensors, 0.3) == want


def test_nothing_varies() -> None:
    t = tile(5000, [torch.float32] * 3, "near")
    same = tensors_of([t.__class__("w", 0, t.base, (t.experts[0],) * 2)], spec_of(2))
    assert largest_variances(BACKEND, same, 0.9) == NOTHING


@pytest.mark.parametrize("length", [0, TILE_ALIGN])
def test_numbers_do_not_depend_on_backend_and_tiles(length: int) -> None:
    t = tile(200_000, [torch.bfloat16] * 3, "near")
    spec = spec_of(2, select=0.4, by_energy="tensor")
    found = [
        numbers_of(backend, tensors_of([t], spec, cut))
        for backend in (ReferenceBackend(), BACKEND)
        for cut in (0, length)
    ]
    assert len({(numbers.window, numbers.weights) for numbers in found}) == 1
    # Masks are of tensors that are held whole.
    assert [len(numbers.masks) for numbers in found] == [2, 0 if length else 2] * 2


def test_shares() -> None:
    assert shares_of([3.0, 1.0], [4, 4], LEAST_ENERGY) == (0.75, 0.25)
    assert shares_of([3.0, 2.0], [4, 8], LEAST_ENERGY) == (0.75, 0.25)
    for small in ([1e-7, 2e-7], [float("inf"), 1.0], [float("nan"), 1.0], [0.0, 0.0]):
        assert shares_of(small, [1, 1], LEAST_ENERGY) == (0.5, 0.5)
    assert shares_of([3 * 2**-99, 2**-99], [4, 4], 0.0) == (0.75, 0.25)
    assert shares_of([0.0, 0.0], [4, 4], 0.0) == (0.5, 0.5)

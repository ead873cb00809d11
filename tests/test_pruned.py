"""Drops by rank: the rule given the coins, their statistics, and merges that are cut in any way."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import buffers, hashes, write_model
from oracle import coins

import mergekern
from mergekern.backends.cpu import CpuBackend
from mergekern.errors import BudgetError, RecipeError
from mergekern.fused import Odds, Pruning, Tile

SHAPES = {"matrix": (40, 33), "vector": (50,), "kernel": (6, 10, 3), "scalar": (), "thin": (7, 1)}


def kept(shape: tuple[int, ...], d: np.ndarray, name: str, density: float, epsilon: float, seed):
    """The rule, row by row, in whole numbers."""
    rows = d.reshape(1, -1, 1) if d.ndim < 2 else d.reshape(d.shape[0], d.shape[1], -1)
    mask = np.zeros(rows.shape, bool)
    thrown = coins(seed, name, 0, d.size).reshape(rows.shape)
    low, high = int((density - epsilon) * 2**32), int((density + epsilon) * 2**32)
    for panel in range(rows.shape[0]):
        for lane in range(rows.shape[2]):
            order = np.argsort(np.abs(rows[panel, :, lane]), kind="stable")
            for rank, place in enumerate(order.tolist()):
                last = len(order) - 1
                bound = low + (high - low) * rank // last if last else (low + high) // 2
                mask[panel, place, lane] = thrown[panel, place, lane] < bound
    return mask.reshape(shape)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rescale", ["none", "l1"])
def test_the_rule_given_the_coins(name: str, rescale: str) -> None:
    g = torch.Generator().manual_seed(1)
    base = {name: torch.randn(SHAPES[name], generator=g, dtype=torch.float64)}
    # few values: ties go by index
    delta = torch.randint(-4, 5, SHAPES[name], generator=g).double() / 64
    expert = {name: base[name] + delta}
    d = (expert[name] - base[name]).numpy()
    merged = mergekern.merge(
        "della_linear",
        base=base,
        models=[expert],
        density=0.5,
        epsilon=0.3,
        rescale=rescale,
        seed=9,
    )
    mask = kept(SHAPES[name], d, name, 0.5, 0.3, 9)
    left = np.abs(d * mask).sum()
    scale = np.abs(d).sum() / left if rescale == "l1" and left > 0 else 1.0
    want = base[name].numpy() + d * mask * scale
    np.testing.assert_allclose(merged[name].numpy(), want, rtol=1e-12, atol=1e-15)


def test_larger_deltas_are_kept_more_often() -> None:
    rows, length = 64, 4096
    g = torch.Generator().manual_seed(3)
    x = torch.randn(rows * length, generator=g)
    t = Tile("w", 0, torch.zeros_like(x), (x,))
    ranks = x.abs().view(rows, length).argsort(1).argsort(1).flatten()
    total = np.zeros(8)
    for seed in range(8):
        pruning = Pruning((Odds(0, int(0.2 * 2**32), int(0.8 * 2**32)),), length, 1, seed, 5)
        (mask,) = CpuBackend(1).prune(pruning, t)
        assert mask is not None
        bits = np.unpackbits(mask, count=x.numel(), bitorder="little")
        total += [bits[(ranks // 512 == band).numpy()].mean() for band in range(8)]
    middle = 0.2 + 0.6 * (np.arange(8) + 0.5) / 8
    np.testing.assert_allclose(total / 8, middle, atol=5 * (0.25 / (8 * rows * 512)) ** 0.5)


def test_divided_by_their_odds_deltas_are_unbiased() -> None:
    length, seeds = 64, 2000
    x = torch.randn(length, generator=torch.Generator().manual_seed(4))
    t = Tile("w", 0, torch.zeros_like(x), (x,))
    odds = 0.35 + 0.3 * x.abs().argsort().argsort().double().numpy() / (length - 1)
    share = np.zeros(length)
    for seed in range(seeds):
        ends = Odds(0, int(0.35 * 2**32), int(0.65 * 2**32))
        (mask,) = CpuBackend(1).prune(Pruning((ends,), length, 1, seed, zlib.crc32(b"w")), t)
        assert mask is not None
        share += np.unpackbits(mask, count=length, bitorder="little")
    errors = (share / seeds - odds) / np.sqrt(odds * (1 - odds) / seeds)
    assert np.abs(errors).max() < 4.5 and 0.6 < errors.std() < 1.5


@pytest.mark.parametrize(("density", "epsilon"), [(0.9, 0.15), (0.1, 0.1), (0.5, 0.5)])
def test_odds_that_are_no_probabilities(density: float, epsilon: float) -> None:
    base, expert = {"w": torch.zeros(4)}, {"w": torch.ones(4)}
    with pytest.raises(RecipeError, match="both must lie between 0 and 1"):
        mergekern.merge("della", base=base, models=[expert], density=density, epsilon=epsilon)


def test_density_one_keeps_everything() -> None:
    base, expert = {"w": torch.zeros(4, 9)}, {"w": torch.arange(36.0).view(4, 9)}
    merged = mergekern.merge("della_linear", base=base, models=[expert])
    assert torch.equal(merged["w"], expert["w"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("pruned")
    g = torch.Generator().manual_seed(0)
    shapes = {"large": (1500, 512), "norm": (512,), "kernel": (8, 64, 3), "odd": (30, 77)}
    base = {n: torch.randn(s, generator=g).bfloat16() for n, s in shapes.items()}
    folders = [write_model(root / "base", base)]
    for k in range(2):
        near = {
            n: (x + 0.01 * torch.randn(x.shape, generator=g)).bfloat16() for n, x in base.items()
        }
        folders.append(write_model(root / str(k), near))
    return folders


METHODS = {
    "della": {"density": [0.5, 0.3], "seed": 3},
    "della_linear": {"density": 0.4, "epsilon": 0.1, "rescale": "none"},
    "sce": {"select_topk": 0.3},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("nbytes", [1_200_000, 3_000_000, 30_000_000])
def test_buffers_and_threads_do_not_change_a_byte(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, nbytes: int
) -> None:
    """At the smallest, the largest tensor is read tile by tile, several times."""
    where = {"base": models[0], "models": models[1:], **METHODS[method]}
    mergekern.merge(method, output=tmp_path / "wanted", threads=1, **where)
    mergekern.merge(method, output=tmp_path / "plain", backend="reference", **where)
    buffers(monkeypatch, nbytes)
    mergekern.merge(method, output=tmp_path / "cut", threads=2, **where)
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "wanted") == hashes(tmp_path / "plain")


def test_rows_longer_than_the_buffers(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(0)
    folders = [
        write_model(tmp_path / str(k), {"w": torch.randn(400_000, generator=g)}) for k in range(2)
    ]
    buffers(monkeypatch, 1_200_000)
    with pytest.raises(BudgetError, match="w: its smallest tile takes"):
        mergekern.merge(
            "della", base=folders[0], models=folders[1:], density=0.5, output=tmp_path / "o"
        )

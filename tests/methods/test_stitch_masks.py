"""stitch: the formula in float64; masks are paired with model and base, checked, and streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from folders import buffers, hashes, load, write_model
from masked import bits, known, mask_file, write
from torch import Tensor

import mergekern
from mergekern.errors import CheckpointError, MismatchError, NonFiniteError, RecipeError

State = dict[str, Tensor]
SHAPES = {"a": (37, 11), "b": (5,), "c": (64, 33), "empty": (0, 3)}


def states(count: int, shapes: dict[str, Any] = SHAPES) -> list[State]:
    """The base, then fine-tunes of it."""
    g = torch.Generator().manual_seed(3)
    base = {n: torch.randn(s, generator=g) for n, s in shapes.items()}
    tuned = [
        {n: b + 0.1 * torch.randn(b.shape, generator=g) for n, b in base.items()}
        for _ in range(count)
    ]
    return [{n: x.bfloat16() for n, x in state.items()} for state in [base, *tuned]]


def masks(count: int, share: float = 0.4, shapes: dict[str, Any] = SHAPES) -> list[State]:
    g = torch.Generator().manual_seed(4)
    return [
        {n: torch.rand(s, generator=g) < share for n, s in shapes.items()} for _ in range(count)
    ]


def numbers(marks: list[State]) -> list[State]:
    return [{n: m.bfloat16() for n, m in one.items()} for one in marks]


def run(base: State, models: list[State], marks: list[State], **options: Any) -> State:
    merged = mergekern.merge(
        "stitch", base=base, models=models, statistics=numbers(marks), **options
    )
    assert isinstance(merged, dict)
    return merged


def stitched(b: Tensor, xs: list[Tensor], ms: list[Tensor], weight: list[float]) -> Tensor:
    """sum_i (m_i / sum_j m_j) weight_i (x_i - b) in float64, element by element."""
    out = torch.zeros(b.numel(), dtype=torch.float64)
    flat = [x.double().reshape(-1) for x in xs]
    for place, own in enumerate(b.double().reshape(-1)):
        held = [k for k, m in enumerate(ms) if m.reshape(-1)[place]]
        for k in held:
            out[place] += weight[k] * (flat[k][place] - own) / len(held)
    return out.reshape(b.shape)


def test_the_formula() -> None:
    base, *experts = states(3)
    marks, weight = masks(3), [1.0, 0.5, -0.7]
    options: dict[str, Any] = {"weight": weight, "lambda_": 0.9, "dtype": "float32"}
    got = run(base, experts, marks, **options)
    slow = run(base, experts, marks, backend="reference", **options)
    for name, b in base.items():
        parts = [x[name] for x in experts], [m[name] for m in marks]
        want = b.double() + 0.9 * stitched(b, *parts, weight)
        torch.testing.assert_close(got[name].double(), want, rtol=1e-6, atol=1e-7)
        assert torch.equal(got[name], slow[name])


def test_one_model_and_equal_ones() -> None:
    base, expert = states(1)
    (mask,) = masks(1)
    alone = run(base, [expert], [mask])
    for name in SHAPES:
        assert torch.equal(alone[name], torch.where(mask[name], expert[name], base[name]))
    equals = run(base, [dict(expert) for _ in range(3)], [dict(mask) for _ in range(3)])
    assert all(torch.equal(equals[n], alone[n]) for n in SHAPES)


def test_full_and_empty_masks_and_masks_that_never_meet() -> None:
    base, *experts = states(2)
    (first,) = masks(1)
    second = {n: ~m for n, m in first.items()}
    apart = run(base, experts, [first, second])
    whole = run(base, experts, masks(2, share=2.0), dtype="float32")
    none = run(base, experts, masks(2, share=0.0))
    for name in SHAPES:
        one, other = (x[name] for x in experts)
        assert torch.equal(apart[name], torch.where(first[name], one, other))
        assert torch.equal(none[name], base[name])
        mean = (one.double() + other.double()) / 2
        torch.testing.assert_close(whole[name].double(), mean, rtol=1e-6, atol=1e-7)


def test_nothing_changed() -> None:
    base, _ = states(1)
    got = run(base, [dict(base), dict(base)], masks(2))
    assert all(torch.equal(got[n], base[n]) for n in SHAPES)


def test_masks_of_the_largest_deltas_are_the_variant_without_data() -> None:
    base, *experts = states(2)
    want = mergekern.merge(
        "localize_and_stitch", base=base, models=experts, density=0.3, ties="keep", dtype="float32"
    )
    assert isinstance(want, dict)
    marks = []
    for expert in experts:
        deltas = {n: (x.float() - base[n].float()).abs() for n, x in expert.items()}
        ordered = torch.cat([d.flatten() for d in deltas.values()]).sort(descending=True).values
        least = ordered[int(0.3 * len(ordered)) - 1]
        marks.append({n: d >= least for n, d in deltas.items()})
    got = run(base, experts, marks, dtype="float32")
    assert all(torch.equal(got[n], want[n]) for n in SHAPES)


LARGE = {"flat": (70_001,), "large": (301, 1031), "norm": (77,), "one": ()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The base, two models, and their masks, which leave one tensor out."""
    root = tmp_path_factory.mktemp("stitch")
    models = states(2, LARGE)
    found = [write_model(root / f"model{place}", state) for place, state in enumerate(models)]
    for place, marks in enumerate(masks(2, shapes=LARGE), 1):
        del marks["norm"]
        found.append(mask_file(root / f"{place}.safetensors", marks, found[place], found[0]))
    return found


def merge(folders: list[Path], output: Path, **options: Any) -> Any:
    base, first, second, *marks = folders
    return mergekern.merge(
        "stitch", base=base, models=[first, second], statistics=marks, output=output, **options
    )


def test_the_same_bytes_from_packed_masks(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tiles of any size and any number of threads, as from memory; all is accounted for."""
    base, *experts = (load(folder) for folder in folders[:3])
    want = run(base, experts, masks(2, shapes=LARGE), backend="reference", weight=[1.0, 0.5])
    report = merge(folders, tmp_path / "0", weight=[1.0, 0.5], threads=1)
    assert {each.tensor for each in report.dropped} == {"norm"}
    merge(folders, tmp_path / "1", weight=[1.0, 0.5], threads=3, max_shard_size="200KB")
    buffers(monkeypatch, 1_900_000)  # large tensors are read in tiles
    merge(folders, tmp_path / "2", weight=[1.0, 0.5])
    for place in range(3):
        got = load(tmp_path / str(place))
        assert torch.equal(got["norm"], base["norm"])
        assert all(torch.equal(got[n], want[n]) for n in LARGE if n != "norm")
    assert hashes(tmp_path / "0") == hashes(tmp_path / "2")


def test_files_that_are_refused(folders: list[Path], tmp_path: Path) -> None:
    base, first, second, *marks = folders
    with pytest.raises(MismatchError, match=r"made from another model, .*model2, than .*model1"):
        merge([base, first, second, *marks[::-1]], tmp_path / "out")
    other = write_model(tmp_path / "other", load(second))
    with pytest.raises(MismatchError, match=r"made from another base, .*model0, than .*other"):
        merge([other, first, second, *marks], tmp_path / "out")
    without = {"kind": "masks", "shapes": {"one": []}, "question": {"identity": known(first)}}
    write(tmp_path / "s.safetensors", {"one": bits(torch.ones(1))}, without | {"kind": "fisher"})
    with pytest.raises(CheckpointError, match="holds fisher; want a file of masks: `mergekern"):
        merge([base, first, second, tmp_path / "s.safetensors", marks[1]], tmp_path / "out")
    with pytest.raises(RecipeError, match=r"stitch needs statistics of model .*model2"):
        mergekern.plan("stitch", base=base, models=[first, second], statistics=[marks[0], None])
    with pytest.raises(RecipeError, match="stitch needs a base model"):
        mergekern.plan("stitch", models=[first, second], statistics=marks)


def test_masks_that_do_not_fit(folders: list[Path], tmp_path: Path) -> None:
    base, first, second, *marks = folders
    turned = {**masks(1, shapes=LARGE)[0], "large": torch.ones(1031, 301)}
    path = mask_file(tmp_path / "turned.safetensors", turned, first, base)
    with pytest.raises(
        MismatchError, match=r"tensor large: .* \[1031, 301\]; want .*\[301, 1031\]"
    ):
        merge([base, first, second, path, marks[1]], tmp_path / "out")
    fewer = {n: torch.ones(s) for n, s in LARGE.items() if n not in ("norm", "flat")}
    path = mask_file(tmp_path / "fewer.safetensors", fewer, first, base)
    with pytest.raises(MismatchError, match=r"tensor flat: .* have it and .* lack it"):
        merge([base, first, second, path, marks[1]], tmp_path / "out")
    state = load(first)
    state["large"][0, 0] = float("nan")
    broken = write_model(tmp_path / "broken", state)
    marks_of = {n: m for n, m in masks(1, shapes=LARGE)[0].items() if n != "norm"}
    path = mask_file(tmp_path / "broken.safetensors", marks_of, broken, base)
    with pytest.raises(NonFiniteError, match="large: NaN or Inf in"):
        merge([base, broken, second, path, marks[1]], tmp_path / "out")

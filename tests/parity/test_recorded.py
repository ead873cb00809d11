"""The recipes of `make parity` against mergekit's recorded outputs, on the smallest models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import TINY, write_models
from compare import DTYPES, RULED, Run, operands_of, run_mergekern
from difference import Difference, difference
from edges import edges
from folders_alike import Tensors, load
from random_drop import by_the_rule, drop_faults
from recipes import METHODS, Case
from record import KEPT, MODELS, RECORDED, described, methods, sampled, structures
from safetensors.torch import load_file

Models = Mapping[str, Mapping[str, Path]]
CASES = [(dtype, case) for dtype in MODELS for case in methods(dtype)]
OTHERS = [(dtype, case) for dtype, cases in structures().items() for case in cases]
DROPS = [c for c in METHODS if c.random and len(c.documents[0]["models"]) == 1]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("parity")
    return {
        dtype: write_models(root / dtype, "llama", DTYPES[dtype], TINY, names)
        for dtype, names in MODELS.items()
    }


@pytest.fixture(scope="session")
def recorded() -> dict[str, Tensors]:
    return {path.stem: load_file(path) for path in RECORDED.glob("*.safetensors")}


def merged(case: Case, dtype: str, made: Models, folder: Path) -> Run:
    run = Run(case, "llama", dtype, made[dtype], folder, False)
    run_mergekern(run)
    assert not run.found.faults, run.found.faults
    return run


def cut(flat: torch.Tensor, like: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of KEPT, which lie one behind the other."""
    sizes = [like[name].numel() for name in KEPT]
    for name, part in zip(KEPT, flat.split(sizes), strict=True):
        yield name, part.view(like[name].shape)


@pytest.mark.parametrize(("dtype", "case"), CASES, ids=lambda x: getattr(x, "name", x))
def test_methods(
    dtype: str, case: Case, made: Models, recorded: dict[str, Tensors], tmp_path: Path
) -> None:
    run = merged(case, dtype, made, tmp_path)
    got = load(run.ours)
    exact = dict(cut(recorded[f"exact.{dtype}"][case.name], got))
    names = {entry["model"] for entry in case.documents[0]["models"]} | {"base"}
    models = {name: load(made[dtype][name]) for name in names}
    total = Difference()
    for name, want in cut(recorded[f"methods.{dtype}"][case.name], got):
        inputs = {model: tensors[name] for model, tensors in models.items()}
        total.add(
            difference(
                got[name],
                want,
                operands=operands_of(case, inputs, want),
                exact=exact[name],
                edges=edges(case, inputs),
                dtype=got[name].dtype,
            )
        )
    assert total.settled, f"{total.why['?']} of {total.elements} elements, {total.at_operand} ulps"


@pytest.mark.parametrize(("dtype", "case"), OTHERS, ids=lambda x: getattr(x, "name", x))
def test_structures(
    dtype: str, case: Case, made: Models, recorded: dict[str, Tensors], tmp_path: Path
) -> None:
    run = merged(case, dtype, made, tmp_path)
    want: Any = json.loads((RECORDED / "structures.json").read_text())[case.name]
    got = described(run.ours)
    assert got["config"] == want["config"]
    assert got["template"] == want["template"]
    assert got["vocabulary"] == want["vocabulary"]
    assert got["tensors"] == want["tensors"]
    got, want = sampled(run.ours), recorded["structures"][case.name]
    # Where models in bf16 are merged in another dtype, mergekit rounds to bf16 in between.
    close = {"rtol": 1e-5, "atol": 1e-7} if dtype == "float32" else {"rtol": 2e-2, "atol": 2e-4}
    torch.testing.assert_close(got, want, **close)


@pytest.mark.parametrize("dtype", list(MODELS))
@pytest.mark.parametrize("case", DROPS, ids=lambda case: case.name)
def test_what_is_dropped(dtype: str, case: Case, made: Models, tmp_path: Path) -> None:
    run = merged(case, dtype, made, tmp_path)
    out, base, expert = load(run.ours), *(load(made[dtype][name]) for name in ("base", "a"))
    assert not drop_faults(case, base, expert, out)
    if dtype == "float32":
        assert not by_the_rule(case, base, expert, out, RULED["mergekern"]).faults

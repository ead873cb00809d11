"""Weights that tensors have in common: VaRM by module, layer and model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from folders import buffers, hashes
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergekern
from mergekern.layers import layers_of

State = dict[str, Tensor]
PARTS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "input_layernorm")
NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{n}.{part}.weight" for n in range(3) for part in PARTS),
    "model.norm.weight",
]
POOLS = {
    "model": lambda name: "",
    "layer": lambda name: ".".join(name.split(".")[:3]),
    "module": lambda name: ".".join(name.split(".")[:4]),
}


def states(dtype: torch.dtype, count: int = 3) -> list[State]:
    """A base, and models each of which changed other tensors most. One is larger than a tile."""
    g = torch.Generator().manual_seed(2)
    shapes = {name: (7, 11 + place) for place, name in enumerate(NAMES)} | {NAMES[0]: (300, 700)}
    base = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    made = [base]
    for _ in range(count):
        sizes = {name: 0.1 * float(torch.rand((), generator=g)) for name in base}
        made.append({n: b + sizes[n] * torch.randn(b.shape, generator=g) for n, b in base.items()})
    return [{name: x.to(dtype) for name, x in state.items()} for state in made]


def expected(base: State, experts: list[State], granularity: str) -> State:
    """The formula in float64; models that lack a tensor have no part in it."""
    pools: dict[str, list[str]] = {}
    for name in base:
        pools.setdefault(POOLS[granularity](name), []).append(name)
    out = {}
    for names in pools.values():
        change = []
        for expert in experts:
            mine = [name for name in names if name in expert]
            deltas = [expert[n].double() - base[n].double() for n in mine]
            change.append(torch.cat([d.flatten() for d in deltas]).square().mean())
        for name in names:
            having = [k for k, expert in enumerate(experts) if name in expert]
            total = torch.stack([change[k] for k in having]).sum()
            weighted = [change[k] / total * experts[k][name].double() for k in having]
            out[name] = torch.stack(weighted).sum(0)
    return out


@pytest.mark.parametrize("granularity", POOLS)
def test_the_formula(granularity: str) -> None:
    base, *experts = states(torch.float64)
    got = mergekern.merge("varm", base=base, models=experts, granularity=granularity)
    assert isinstance(got, dict)
    torch.testing.assert_close(
        got, expected(base, experts, granularity), rtol=1e-9, atol=1e-12, check_dtype=False
    )


def test_models_that_lack_a_tensor() -> None:
    base, *experts = states(torch.float64)
    del experts[1]["model.layers.1.mlp.up_proj.weight"]
    got = mergekern.merge(
        "varm", base=base, models=experts, granularity="layer", mismatch="skip-model"
    )
    assert isinstance(got, dict)
    torch.testing.assert_close(got, expected(base, experts, "layer"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("granularity", POOLS)
def test_nothing_changed(granularity: str) -> None:
    base, *_ = states(torch.float32)
    got = mergekern.merge("varm", base=base, models=[base, dict(base)], granularity=granularity)
    assert isinstance(got, dict)
    assert all(torch.equal(got[name], base[name]) for name in base)


@pytest.mark.parametrize("granularity", POOLS)
def test_the_same_bytes_however_it_is_merged(
    granularity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    loaded = states(torch.bfloat16)
    for number, state in enumerate(loaded):
        folder = tmp_path / f"model{number}"
        folder.mkdir()
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "test", "num_hidden_layers": 3}')
        folders.append(folder)
    base, *experts = folders
    found = set()
    for nbytes, threads in ((9_000_000, 1), (1_700_000, 2)):
        buffers(monkeypatch, nbytes)
        out = tmp_path / f"out-{threads}"
        result = mergekern.merge(
            "varm",
            base=base,
            models=experts,
            output=out,
            granularity=granularity,
            threads=threads,
        )
        assert not isinstance(result, dict)
        found.add(str(hashes(out)))
    assert len(found) == 1
    merged = load_file(out / "model.safetensors")
    for backend in ("cpu", "reference"):
        state = mergekern.merge(
            "varm", base=loaded[0], models=loaded[1:], granularity=granularity, backend=backend
        )
        assert isinstance(state, dict)
        assert all(torch.equal(state[name], merged[name]) for name in merged)
    assert "2 passes\n" in str(
        mergekern.plan("varm", base=base, models=experts, granularity="model")
    )


def test_what_a_tensor_is_a_part_of() -> None:
    names = [f"h.{n}.{rest}" for n in (0, 1) for rest in ("layer.0.q.weight", "layer.1.w", "scale")]
    layers = layers_of([*names, "wte.weight", "bias"], {})
    assert [layers.around(name, "module") for name in names[:3]] == [
        "h.0.layer.0",
        "h.0.layer.1",
        "h.0.",
    ]
    assert {layers.around(name, "layer") for name in names} == {"h.0.", "h.1."}
    assert [layers.around(name, "layer") for name in ("wte.weight", "bias")] == ["wte", "bias"]

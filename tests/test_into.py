"""Merging in place, into tensors that are there already."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mergekern
from mergekern.errors import OutputError

Change = dict[str, torch.Tensor]


def state(seed: int, dtype: torch.dtype = torch.bfloat16) -> Change:
    g = torch.Generator().manual_seed(seed)
    shapes = {"large": (700, 1000), "small": (33,), "empty": (0, 4)}
    return {name: torch.randn(shape, generator=g).to(dtype) for name, shape in shapes.items()}


def call(**more: Any) -> dict[str, Any]:
    return {"base": state(0), "models": [state(1), state(2)], "density": 0.3, **more}


def test_what_is_there_takes_the_merge() -> None:
    want = mergekern.merge("ties", **call())
    out = {name: torch.full_like(x, 7) for name, x in state(0).items()}
    places = {name: x.data_ptr() for name, x in out.items()}
    for _ in range(2):  # a search merges again and again
        got = mergekern.merge("ties", out=out, **call())
        for name, x in want.items():
            assert torch.equal(out[name], x) and got[name].data_ptr() == places[name]


def test_a_module_in_use() -> None:
    def layer(seed: int) -> torch.nn.Linear:
        torch.manual_seed(seed)
        return torch.nn.Linear(300, 200)

    base, one, two, live = (layer(seed) for seed in range(4))
    mergekern.merge("linear", models=[one, two], out=live)
    assert torch.equal(live.weight, (one.weight * 0.5 + two.weight * 0.5))
    assert live.weight.requires_grad and live(torch.ones(300)).shape == (200,)
    assert not torch.equal(base.weight, live.weight)


def test_autograd_is_told() -> None:
    live, one, two = (torch.nn.Linear(30, 20) for _ in range(3))
    loss = live(torch.ones(30, requires_grad=True)).sum()
    mergekern.merge("linear", models=[one, two], out=live)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        other = torch.nn.Linear(30, 20)
    mergekern.merge("linear", models=[one, two], out=other)
    assert torch.equal(other.weight, live.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.pop("small"), "has no small, which the merged model has"),
        (lambda o: o.update(more=torch.ones(1)), "has more, which the merged model has not"),
        (lambda o: o.update(small=torch.ones(33)), "'small' is float32, the merge gives bfloat16"),
        (lambda o: o.update(small=o["small"][:5]), r"'small' has shape \[5\], wanted \[33\]"),
        (lambda o: o.update(large=o["large"].new_zeros(1000, 700).T), "'large' is not contiguous"),
    ],
)
def test_what_does_not_fit(change: Any, message: str) -> None:
    out = state(3)
    change(out)
    before = {name: x.clone() for name, x in out.items()}
    with pytest.raises(OutputError, match=message):
        mergekern.merge("ties", out=out, **call())
    assert all(torch.equal(out[name], x) for name, x in before.items())


def test_not_over_an_input() -> None:
    models = call()
    out = state(3) | {"large": models["models"][1]["large"]}
    with pytest.raises(OutputError, match="'large' is in the memory of an input"):
        mergekern.merge("ties", out=out, **models)


def test_not_over_a_strided_input_or_a_slice_of_one() -> None:
    memory = torch.randn(40 * 50 + 8)
    models = call(base={"w": memory[:2000].view(50, 40).t()}, models=[{"w": torch.ones(40, 50)}])
    out = {"w": torch.frombuffer(memory.numpy()[8:], dtype=torch.float32).view(40, 50)}
    with pytest.raises(OutputError, match="'w' is in the memory of an input"):
        mergekern.merge("ties", out=out, **models)


def test_outputs_lie_apart() -> None:
    memory = torch.zeros(2999)
    states = [{"a": torch.randn(10, 100), "b": torch.randn(2000)} for _ in range(3)]
    models = call(base=states[0], models=states[1:])
    with pytest.raises(OutputError, match="'a' and 'b' share memory"):
        out = {"a": memory[:1000].view(10, 100), "b": memory[999:]}
        mergekern.merge("ties", out=out, **models)
    memory = torch.zeros(3000)
    out = {"a": memory[:1000].view(10, 100), "b": memory[1000:]}
    got = mergekern.merge("ties", out=out, **models)
    assert all(torch.equal(got[n], x) for n, x in mergekern.merge("ties", **models).items())


def test_not_beside_a_folder(tmp_path: Any) -> None:
    with pytest.raises(OutputError, match="give one of them"):
        mergekern.merge("ties", output=tmp_path / "m", out=state(3), **call())

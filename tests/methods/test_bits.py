"""Whole merges against formulas written a second time, in numpy: the same bits."""

from __future__ import annotations

import os

import pytest
import torch
from cases import FLOATS, INTEGERS, tile
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import merged

import mergekern
from mergekern.errors import MergeError

ELECTING = ("ties", "dare_ties", "breadcrumbs_ties")


@st.composite
def recipes(draw: st.DrawFn, experts: int) -> tuple[str, dict, dict]:
    """A method's name, its arguments, and the same for the oracle."""
    name = draw(st.sampled_from(["ties", "dare_linear", "dare_ties", *("breadcrumbs",) * 2]))
    name = draw(st.sampled_from([name, "breadcrumbs_ties"]))
    weights, densities = [1.0, 0.5, -0.3, 0.0, 1.7], [1.0, 0.5, 0.2, 1e-9, 1 / 3]
    given = {
        "weight": [draw(st.sampled_from(weights)) for _ in range(experts)],
        "density": [draw(st.sampled_from(densities)) for _ in range(experts)],
        "lambda_": draw(st.sampled_from([1.0, 0.4, -2.0])),
        "rescale": draw(st.sampled_from(["none", "drop_rate"])),
        "normalize": draw(st.booleans()),
    }
    if name in ELECTING:
        given["elect"] = draw(st.sampled_from(["mass", "count"]))
        given["ballot"] = draw(st.sampled_from(["weighted", "unweighted"]))
        kinds = ["sum"] if given["normalize"] else ["sum", "mean", "max"]
        given["disjoint"] = draw(st.sampled_from(kinds))
    if name.startswith("dare"):
        given["seed"] = draw(st.sampled_from([0, 2**32, 2**64 - 1]))
    else:
        given["ties"] = draw(st.sampled_from(["index", "keep"]))
    if name.startswith("breadcrumbs"):
        given["gamma"] = draw(st.sampled_from([0.0, 0.01, 0.95]))
    defaults = {"elect": "none", "ballot": "weighted", "disjoint": "sum", "gamma": 0.0}
    sparsify = "drop" if name.startswith("dare") else "trim"
    return name, given, defaults | given | {"sparsify": sparsify}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["near", "equal", "denormal", "zeros", "bits"]))
def test_merges_are_their_formulas(data, kind) -> None:
    dtypes = data.draw(st.lists(st.sampled_from(FLOATS), min_size=2, max_size=10))
    if data.draw(st.booleans()):
        dtypes = [torch.bfloat16] * len(dtypes)
    numel, dtype = data.draw(st.sampled_from([1, 9, 530])), data.draw(st.sampled_from(FLOATS))
    t = tile(numel, dtypes, kind, data.draw(st.integers(0, 99)))
    assert t.base is not None
    name, given, written_out = data.draw(recipes(len(t.experts)))
    models = [{"w": x} for x in t.experts]
    try:
        got = mergekern.merge(name, base={"w": t.base}, models=models, out_dtype=dtype, **given)
    except MergeError:  # weights that cancel, results that overflow
        return
    assert isinstance(got, dict)
    want = merged(t.base, list(t.experts), "w", written_out, dtype)
    integer = INTEGERS[dtype.itemsize]
    assert torch.equal(got["w"].view(integer), want.view(integer))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_merges() -> None:
    """The child has none of the threads that its parent merged with."""
    t = tile(300_000, [torch.bfloat16] * 3, "near")

    def once() -> bytes:
        models = [{"w": x} for x in t.experts]
        got = mergekern.merge("ties", base={"w": t.base}, models=models, density=0.3, threads=3)
        return got["w"].view(torch.int16).numpy().tobytes()

    want = once()
    child = os.fork()
    if child == 0:
        os._exit(0 if once() == want else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

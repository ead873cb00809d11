"""Merging with guessed thresholds gives what merging with counted ones gives, bit for bit."""

from __future__ import annotations

import pytest
import torch
from cases import INTEGERS, tile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergekern import sampling, trimming
from mergekern.arrays import dtype_of
from mergekern.backends.cpu import CpuBackend, instruction_sets
from mergekern.dtypes import FLOAT16, FLOAT32, DType, of_torch, to_torch, work_dtype
from mergekern.fused import Tile
from mergekern.keys import Key
from mergekern.onepass import Merging, OnePass
from mergekern.plan import Input, Step
from mergekern.sources import Resident
from mergekern.spec import Spec
from mergekern.statistics import fused_op
from mergekern.tiles import TILE_ALIGN, cut
from mergekern.trimming import counted_windows

BACKENDS = [CpuBackend(threads, name) for name in instruction_sets() for threads in (1, 2, 8)]
PIECE = 2 * TILE_ALIGN
CASES = {
    "ties": {"elect": "mass", "combine": "sum", "normalize": True},
    "count": {"elect": "count", "combine": "mean", "ballot": "unweighted"},
    "max": {"elect": "mass", "combine": "max"},
    "plain": {"rescale": "drop_rate", "lambda_": 0.7},
}


def tensors_of(tiles: list[Tile], spec: Spec, work: DType) -> Resident:
    pairs = []
    for number, t in enumerate(tiles):
        name, places = f"w{number}", tuple(range(len(t.experts)))
        experts = tuple(Input(i + 1, name) for i in places)
        dtype = dtype_of(t.experts[0])
        shape = (t.numel,)
        step = Step(name, "merge", dtype, shape, Input(0, name), experts, places, work, spec)
        pairs.append((step, Tile(name, 0, t.base, t.experts)))
    return Resident(pairs)


def merge_in_one_pass(backend, tensors: Resident, outs, room: int | None = None):
    merge = Merging({step.name: step for step in tensors.steps}, outs, {})
    one_pass = OnePass(backend, tensors, [merge], room)
    for step, t in tensors.tiles():
        for start in range(0, t.numel, PIECE):
            one_pass.take(step, t, cut(t, start, min(t.numel, start + PIECE)))
    one_pass.finish()
    return merge.found


def merged_in_two(backend: CpuBackend, tensors: Resident) -> dict[str, torch.Tensor]:
    windows = counted_windows(backend, tensors)
    outs = empty(tensors)
    for step, t in tensors.tiles():
        backend.fuse(fused_op(step, windows[step.name]), t, outs[step.name])
    return outs


def empty(tensors: Resident) -> dict[str, torch.Tensor]:
    return {
        step.name: torch.empty(step.numel, dtype=to_torch(step.dtype)) for step in tensors.steps
    }


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    for name, tensor in want.items():
        integer = INTEGERS[tensor.itemsize]
        assert torch.equal(got[name].view(integer), tensor.view(integer)), name


def spec(case: str, experts: int, ties: str, gamma: float = 0.0) -> Spec:
    row = (1.0,) * experts
    weight = tuple(0.3 + 0.1 * k for k in range(experts))
    density = tuple((0.2, 0.5, 0.9, 1.0)[k % 4] for k in range(experts))
    shared = {"gamma": (gamma,) * experts, "keep": row, "ties": ties, "scope": "model"}
    return Spec("task_vector", weight, density, **shared, **CASES[case])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    case=st.sampled_from(sorted(CASES)),
    experts=st.sampled_from([1, 3, 9]),
    ties=st.sampled_from(["index", "keep"]),
    gamma=st.sampled_from([0.0, 0.01]),
    kind=st.sampled_from(["near", "equal", "denormal", "zeros"]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    numels=st.sampled_from([[300_001], [7, 200_000, 0, 65_536], [40, 9]]),
    backend=st.sampled_from(BACKENDS),
)
def test_one_pass_gives_what_two_give(
    case, experts, ties, gamma, kind, dtype, numels, backend
) -> None:
    wanted = spec(case, experts, ties, gamma)
    if not wanted.one_pass:
        return
    tiles = [tile(n, [dtype] * (experts + 1), kind, seed=n) for n in numels]
    tensors = tensors_of(tiles, wanted, work_dtype([of_torch(dtype)]))
    outs = empty(tensors)
    merge_in_one_pass(backend, tensors, outs)
    assert_same(outs, merged_in_two(BACKENDS[0], tensors))


@pytest.mark.parametrize("ties", ["index", "keep"])
@pytest.mark.parametrize("why", ["misled", "too much open"])
def test_a_lost_trial_costs_a_pass_and_no_bits(why: str, ties: str, monkeypatch) -> None:
    tiles = [tile(n, [torch.float32] * 3, "near", seed=n) for n in (200_000, 70_000)]
    tensors = tensors_of(tiles, spec("ties", 2, ties), FLOAT32)
    trials = []
    honest = trimming.guess

    class Watched(trimming.Trial):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            trials.append(self)

    def mislead(*arguments, **options):
        guesses = honest(*arguments, **options).items()
        return {wanted: (Key(high.magnitude + 99, 0),) * 2 for wanted, (high, _) in guesses}

    monkeypatch.setattr(trimming, "Trial", Watched)
    if why == "misled":
        monkeypatch.setattr(trimming, "guess", mislead)
    outs = empty(tensors)
    merge_in_one_pass(BACKENDS[0], tensors, outs, room=10 if why == "too much open" else None)
    assert [trial.lost for trial in trials] == [True]
    assert_same(outs, merged_in_two(BACKENDS[0], tensors))


def test_few_ties_leave_few_elements_open() -> None:
    tiles = [tile(2_000_000, [torch.float32] * 5, "near")]
    tensors = tensors_of(tiles, spec("ties", 4, "index"), FLOAT32)
    trial = trimming.start_trial(BACKENDS[0], tensors)
    trial.scan(tensors)
    assert trial.verdict(tensors) is not None
    open_ = sum(size for _, size in trial.doubts.sizes())
    assert 0 < open_ < sampling.most_open(2_000_000, 3)


def test_an_open_element_that_would_overflow_is_no_error(monkeypatch) -> None:
    """What goes by a guess may be too large where the right result is not."""
    base = torch.zeros(100_000)
    expert = torch.linspace(1, 70_000, 100_000)
    wanted = Spec("task_vector", (1.0,), (0.5,), (0.0645,), (1.0,), scope="model", ties="index")
    inputs = (Input(0, "w"), (Input(1, "w"),), (0,))
    step = Step("w", "merge", FLOAT16, (100_000,), *inputs, FLOAT32, wanted)
    tensors = Resident([(step, Tile("w", 0, base, (expert,)))])
    seen = []
    honest = CpuBackend.speculate

    def watched(*arguments):
        seen.append(honest(*arguments))
        return seen[-1]

    monkeypatch.setattr(CpuBackend, "speculate", watched)
    outs = empty(tensors)
    found = merge_in_one_pass(BACKENDS[0], tensors, outs)
    assert seen[0].findings.overflow and not found["w"].overflow
    assert outs["w"].isfinite().all()

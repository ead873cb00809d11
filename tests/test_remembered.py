"""What is merged again is planned once; whatever makes another plan makes another one here."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

import mergekern
from mergekern import remembered
from mergekern.plan import Plan

State = dict[str, torch.Tensor]


def state(seed: int, dtype: torch.dtype = torch.float32, **more: torch.Tensor) -> State:
    g = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(3, 4, generator=g).to(dtype),
        "b": torch.randn(7, generator=g).to(dtype),
        **more,
    }


def plan(base: int = 0, *experts: State, **options: Any) -> Plan:
    models = list(experts) or [state(1), state(2)]
    return mergekern.plan("task_arithmetic", base=state(base), models=models, **options)


def steps(found: Plan) -> tuple[Any, ...]:
    return found.steps


def test_the_same_again() -> None:
    assert steps(plan()) is steps(plan(5)) is steps(plan(0, state(3), state(4)))
    assert steps(plan(weight=0.5)) is steps(plan(weight=0.5)) is not steps(plan())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (plan, lambda: plan(lambda_=0.5)),
        (plan, lambda: plan(dtype="float64")),
        (plan, lambda: plan(out_dtype="bfloat16")),
        (plan, lambda: plan(0, state(1), state(2), state(3))),
        (plan, lambda: plan(0, state(1), state(2, torch.bfloat16))),
        (plan, lambda: plan(0, state(1), state(2, b=torch.zeros(8)), mismatch="base")),
        (plan, lambda: plan(mismatch="skip-model")),
        (plan, lambda: plan(max_shard_size=64)),
    ],
)
def test_what_differs_is_planned(one: Any, other: Any) -> None:
    first, second = one(), other()
    assert steps(first) is not steps(second)
    assert steps(one()) is steps(first) and steps(other()) is steps(second)


def test_what_is_shared_counts() -> None:
    def models(tied: bool) -> list[State]:
        found = [state(seed, c=torch.zeros(3, 4)) for seed in range(3)]
        return [x | {"c": x["a"]} if tied else x for x in found]

    for tied in (False, True, False):
        base, *experts = models(tied)
        merged = mergekern.merge("task_arithmetic", base=base, models=experts)
        assert (merged["c"].data_ptr() == merged["a"].data_ptr()) == tied


def test_only_so_many_are_kept_and_no_models() -> None:
    oldest, tensor = plan(lambda_=100.0), torch.zeros(3, 4)
    gone = weakref.ref(tensor)
    mergekern.merge("task_arithmetic", base=state(0), models=[state(1, a=tensor)])
    del tensor
    gc.collect()
    assert gone() is None
    for number in range(remembered.KEPT):
        plan(lambda_=float(number))
    assert len(remembered._plans) == remembered.KEPT
    assert steps(plan(lambda_=100.0)) is not steps(oldest)

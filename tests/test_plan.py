"""Plans: every input tensor accounted for, mismatches decided by their option, ties and aliases."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import EMBED, HEAD, State, left_out, plan_of, reads, tied, zeros

from mergekern.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, INT64
from mergekern.errors import CheckpointError, MergeError, MismatchError, RecipeError
from mergekern.plan import Equations, Plan, Records, Step


def test_one_step_per_tensor_in_the_bases_order() -> None:
    state = {"z": zeros(2, 3), "a": zeros(4), "empty": zeros(0, 5), "scalar": zeros()}
    plan = plan_of("ties", [state, dict(sorted(state.items())), state])
    assert [step.name for step in plan.steps] == ["z", "a", "empty", "scalar"]
    assert {step.action for step in plan.steps} == {"merge"}
    assert [step.shape for step in plan.steps] == [(2, 3), (4,), (0, 5), ()]
    first = plan.steps[0]
    assert first.base is not None and (first.base.model, first.base.name) == (0, "z")
    assert [(read.model, read.name) for read in first.experts] == [(1, "z"), (2, "z")]
    assert first.expert_index == (0, 1)
    assert plan.input_bytes == 3 * 2 * (6 + 4 + 0 + 1)
    assert plan.passes == 1
    assert not plan.dropped


def test_linear_reads_all_as_experts() -> None:
    plan = plan_of("linear", [{"w": zeros(2)}, {"w": zeros(2)}])
    assert plan.steps[0].base is None
    assert plan.steps[0].expert_index == (0, 1)
    assert plan.base is None and plan.donor == 0


def test_output_dtype_and_work_dtype() -> None:
    base = {"w": zeros(2), "x": zeros(2, dtype=torch.float16)}
    wide = {"w": zeros(2, dtype=torch.float64), "x": zeros(2, dtype=torch.float32)}
    plan = plan_of("ties", [base, wide])
    assert [step.dtype for step in plan.steps] == [BFLOAT16, FLOAT16]
    assert [step.work for step in plan.steps] == [FLOAT64, FLOAT32]
    assert plan.out_dtype is None
    plan = plan_of("ties", [base, wide], dtype="float32")
    assert {step.dtype for step in plan.steps} == {FLOAT32}
    plan = plan_of("ties", [base, wide], dtype="float64", out_dtype=torch.float16)
    assert {step.dtype for step in plan.steps} == {FLOAT16}
    assert {step.work for step in plan.steps} == {FLOAT64}
    assert plan.out_dtype == FLOAT16
    plan = plan_of("ties", [base, wide], preset="paper")
    assert {step.work for step in plan.steps} == {FLOAT64}
    assert plan.whole_model and plan.passes == 1
    options = {"gamma": 0.1, "density": 0.5, "scope": "model", "ties": "keep"}
    assert plan_of("breadcrumbs", [base, wide], parameters=options).passes == 2


def test_discrete_tensors_are_copied() -> None:
    state = {"w": zeros(2), "ids": zeros(3, dtype=torch.int64), "on": zeros(1, dtype=torch.bool)}
    plan = plan_of("ties", [state, state], out_dtype="float32")
    assert [step.action for step in plan.steps] == ["merge", "copy", "copy"]
    assert plan.steps[1].dtype == INT64
    assert [read.model for read in plan.steps[1].inputs] == [0, 1]
    with pytest.raises(MismatchError, match="m1 has dtype bfloat16, base has int64; --mismatch"):
        plan_of("ties", [state, {**state, "ids": zeros(3)}])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_dtypes_that_do_not_merge_are_named(dtype) -> None:
    state = {"w": zeros(2), "x": zeros(2, dtype=dtype)}
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(MismatchError, match=f"tensor x: model base has dtype {kind}, which does n"):
        plan_of("ties", [state, state])


def test_quantised_configs_are_refused() -> None:
    config = {"quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(CheckpointError, match=r"m1: .*quantization_config"):
        plan_of("ties", [{"w": zeros(2)}] * 2, configs=[{}, config])


def test_a_mismatch_names_model_tensor_shapes_and_option() -> None:
    base = {EMBED: zeros(8, 2), "w": zeros(2), "v": zeros(3)}
    with pytest.raises(
        MismatchError,
        match=rf"tensor {EMBED}: model m2 has shape \[9, 2\], base has \[8, 2\] \(vocabularies of "
        r"different size\); --mismatch base .*--mismatch skip-model .* \(2 more tensors do not",
    ):
        plan_of("ties", [base, base, {EMBED: zeros(9, 2), "w": zeros(3), "v": zeros(4)}])
    with pytest.raises(MismatchError, match=r"tensor v: model m1 lacks it, base has it with sh"):
        plan_of("ties", [base, {EMBED: zeros(8, 2), "w": zeros(2)}])
    with pytest.raises(MismatchError, match=r"extra: model m1 has it, \[2\], and the base base la"):
        plan_of("ties", [base, {**base, "extra": zeros(2)}])
    with pytest.raises(MismatchError, match=r"tensor v: model m1 lacks it, m0 has it.*skip-model"):
        plan_of("linear", [base, {EMBED: zeros(8, 2), "w": zeros(2)}])


def test_mismatch_base_takes_the_bases_tensor() -> None:
    base = {"w": zeros(2), "v": zeros(3)}
    states = [base, {"w": zeros(5), "v": zeros(3)}, {"w": zeros(2), "v": zeros(3), "x": zeros(1)}]
    plan = plan_of("ties", states, "base")
    assert [(step.name, step.action) for step in plan.steps] == [("w", "copy"), ("v", "merge")]
    assert left_out(plan) == {
        ("m1", "w"): "has shape [5], base has [2]",
        ("m2", "w"): "the base's is taken, because m1 has shape [5], base has [2]",
        ("m2", "x"): "the base base lacks it",
    }
    converted = plan_of("ties", states, "base", dtype="float32").steps[0]
    assert converted.action == "merge" and converted.base is None
    assert converted.spec is not None and converted.spec.rule == "linear_combination"
    assert [(read.model, read.name) for read in converted.experts] == [(0, "w")]
    with pytest.raises(RecipeError, match="mismatch base needs a base model and linear was given"):
        plan_of("linear", states, "base")


def test_mismatch_skip_model_merges_those_that_fit() -> None:
    states = [{"w": zeros(2)}, {"w": zeros(5)}, {"w": zeros(2), "x": zeros(1)}]
    plan = plan_of("ties", states, "skip-model", parameters={"weight": [3, 4]})
    (step,) = plan.steps
    assert step.expert_index == (1,)
    assert step.spec is not None and step.spec.weight == (4.0,)
    assert set(left_out(plan)) == {("m1", "w"), ("m2", "x")}
    plan = plan_of("ties", [{"w": zeros(2)}, {"w": zeros(5)}], "skip-model")
    assert plan.steps[0].action == "copy"
    plan = plan_of("linear", states, "skip-model")
    assert [(step.name, step.expert_index) for step in plan.steps] == [("w", (0, 2)), ("x", (2,))]
    with pytest.raises(RecipeError, match="w: weights 1, -1 sum to 0"):
        weights = {"weight": [1, 1, -1]}
        plan_of("linear", states, "skip-model", parameters=weights)


def test_options_and_architectures_are_checked() -> None:
    state = {"w": zeros(2)}
    with pytest.raises(RecipeError, match=r"mismatch is 'skip-models'; did you mean 'skip-model'"):
        plan_of("ties", [state, state], "skip-models")
    kinds = [{"model_type": "llama"}, {"model_type": "qwen2"}]
    with pytest.raises(MismatchError, match="m1 has model_type qwen2, base has llama"):
        plan_of("ties", [state, state], configs=kinds)
    heads = [{"num_attention_heads": 4}, {"num_attention_heads": 8}]
    with pytest.raises(MismatchError, match="m1 has num_attention_heads 8, base has 4"):
        plan_of("ties", [state, state], configs=heads)
    ropes = [{"rope_theta": 1e4}, {"rope_theta": 1e6}]
    plan = plan_of("ties", [state, state], configs=ropes, share=False)
    assert "m1 has rope_theta 1000000.0" in plan.notes[0]


def test_shards_and_digest() -> None:
    state = {f"w{i}": zeros(64) for i in range(4)}
    plan = plan_of("ties", [state, state])
    again = plan_of("ties", [state, state])
    assert plan.digest == again.digest
    assert len(plan_of("ties", [state, state], max_shard_size=256).shards) == 2
    different = [
        plan_of("ties", [state, state], max_shard_size=256),
        plan_of("ties", [state, state], parameters={"lambda": 0.5}),
        plan_of("ties", [state, state], out_dtype="float32"),
        plan_of("ties", [state, state, state]),
        plan_of("dare_ties", [state, state]),
        plan_of("dare_ties", [state, state], seed=1),
    ]
    assert len({plan.digest, *(other.digest for other in different)}) == 1 + len(different)
    assert json.loads(json.dumps(plan.to_dict()))["method"] == "ties"


def test_the_digest_is_of_all_that_decides_bytes() -> None:
    state = {"w": zeros(4), "v": zeros(4)}
    plan = plan_of("ties", [state, state])
    first, *others = plan.steps
    assert first.base is not None and first.spec is not None
    changes = {
        "name": "x",
        "action": "copy",
        "dtype": FLOAT32,
        "shape": (2, 2),
        "base": None,
        "experts": (first.base,),
        "expert_index": (1,),
        "work": FLOAT64,
        "spec": replace(first.spec, lambda_=0.5),
        "note": "other",
        "equations": Equations((first.base,), (first.base,), False),
        "records": Records(8),
    }
    assert changes.keys() == {each.name for each in fields(Step) if each.init}
    digests = {plan.digest}
    for name, value in changes.items():
        digests.add(replace(plan, steps=(replace(first, **{name: value}), *others)).digest)
    for name in ("weight", "keep", "seed"):
        spec = replace(first.spec, **{name: 7})
        digests.add(replace(plan, steps=(replace(first, spec=spec), *others)).digest)
    assert len(digests) == 1 + len(changes) + 3
    undecided = {"input_bytes", "notes", "memory"}
    assert plan.to_dict().keys() - {"specs"} == {each.name for each in fields(Plan)} - undecided


def test_equal_specs_are_one() -> None:
    """Tensors of which experts lack some: their specs are equal where the weights are."""
    states = [
        {"a": zeros(2), "b": zeros(2), "c": zeros(2), "d": zeros(2)},
        {"a": zeros(2), "b": zeros(9), "c": zeros(2), "d": zeros(9)},
        {"a": zeros(2), "b": zeros(2), "c": zeros(9), "d": zeros(9)},
    ]
    plan = plan_of("ties", states, "skip-model", out_dtype="float32")
    a, b, c, d = (step.spec for step in plan.steps)
    assert b is c and len({id(spec) for spec in (a, b, d)}) == 3
    assert plan.specs == (a, b, d)
    assert [step["spec"] for step in plan.to_dict()["steps"]] == [0, 1, 1, 2]
    apart = plan_of("ties", states, "skip-model", parameters={"weight": [1, 2]})
    assert apart.steps[1].spec is not apart.steps[2].spec
    copied = plan_of("ties", [{"ids": zeros(1, dtype=torch.int64)}] * 2)
    assert copied.specs == () and copied.to_dict()["steps"][0]["spec"] is None


def test_the_text_names_what_matters() -> None:
    base = {"w": zeros(2), "v": zeros(3), "ids": zeros(1, dtype=torch.int64)}
    plan = plan_of("ties", [base, base, {**base, "v": zeros(4)}], "skip-model", seed=3)
    text = str(plan)
    assert "3 tensors" not in text
    for line in (
        "method    ties  lambda=1  normalize=true",
        "base      base",
        "model     m1  weight=1  density=1",
        "          m2  weight=1  density=1",
        "tensors   2 merged, 1 copied, 1 left out",
        "copied    ids: equal in every model",
        "merged    v: m2 has shape [4], base has [3]",
        "left out  v of m2: has shape [4], base has [3]",
        "note      seed has no effect: ties draws no random numbers",
    ):
        assert line in text.splitlines() or any(row.startswith(line) for row in text.splitlines())


NAMES = [EMBED, HEAD, "a", "b"]
SHAPES = [(4, 2), (5, 2), (3,), ()]
DTYPES = [torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.float8_e5m2]


@st.composite
def checkpoints(draw: st.DrawFn) -> list[tuple[State, dict[str, object]]]:
    found = []
    for _ in range(draw(st.integers(2, 4))):
        names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
        state = {}
        for name in names:
            likely = st.just(((4, 2), torch.bfloat16))
            any_kind = st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES))
            shape, dtype = draw(st.one_of(likely, likely, any_kind))
            state[name] = zeros(*shape, dtype=dtype)
        if {EMBED, HEAD} <= set(state) and draw(st.booleans()):
            state[HEAD] = state[EMBED]
        found.append((state, tied(draw(st.sampled_from([True, False, None])))))
    return found


@settings(deadline=None, max_examples=200)
@given(
    models=checkpoints(),
    method=st.sampled_from(["linear", "ties"]),
    mismatch=st.sampled_from(["error", "base", "skip-model"]),
    dtype=st.sampled_from([None, "float32"]),
)
def test_every_input_tensor_is_read_or_left_out(models, method, mismatch, dtype) -> None:
    states = [state for state, _ in models]
    try:
        plan = plan_of(method, states, mismatch, [config for _, config in models], dtype=dtype)
    except MergeError:
        return
    read, gone = reads(plan), left_out(plan)
    assert len(gone) == len(plan.dropped)
    assert not read & set(gone)
    for label, state in zip(plan.models, states, strict=True):
        for name in state:
            assert (label, name) in read or (label, name) in gone or name in plan.aliases
    written = [step.name for step in plan.steps]
    assert len(set(written)) == len(written)
    for step in plan.steps:
        shapes = {tuple(states[read.model][read.name].shape) for read in step.inputs}
        assert shapes == {step.shape}
        assert len(step.experts) == len(step.expert_index) > 0
        assert (step.action == "merge") == (step.spec is not None)

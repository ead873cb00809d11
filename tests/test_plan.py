"""Plans: every input tensor accounted for, mismatches decided by their option, ties and aliases."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekern.checkpoint.memory import MemoryCheckpoint
from mergekern.errors import CheckpointError, MergeError, MismatchError, RecipeError
from mergekern.methods import get_method
from mergekern.plan import Plan
from mergekern.planner import build_plan
from mergekern.recipe import read

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
State = Mapping[str, torch.Tensor]


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def plan_of(
    method: str,
    states: list[State],
    mismatch: str = "error",
    configs: list[dict[str, object]] | None = None,
    max_shard_size: int = 10**9,
    share: bool = True,
    **options: object,
) -> Plan:
    """The plan over states called base, m1, m2 … (m0, m1 … for methods without a base)."""
    based = get_method(method).base
    labels = ["base" if based and not i else f"m{i}" for i in range(len(states))]
    opened = [
        MemoryCheckpoint(label, state, config=config)
        for label, state, config in zip(
            labels, states, configs or [{} for _ in states], strict=True
        )
    ]
    recipe = read(
        method, models=labels[1:] if based else labels, base="base" if based else None, **options
    )
    return build_plan(recipe, opened, mismatch=mismatch, max_shard_size=max_shard_size, share=share)


def reads(plan: Plan) -> set[tuple[str, str]]:
    return {(plan.models[read.model], read.name) for step in plan.steps for read in step.inputs}


def left_out(plan: Plan) -> dict[tuple[str, str], str]:
    return {(gone.model, gone.tensor): gone.reason for gone in plan.dropped}


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
    assert [step.dtype for step in plan.steps] == [torch.bfloat16, torch.float16]
    assert [step.work for step in plan.steps] == [torch.float64, torch.float32]
    assert plan.out_dtype is None
    plan = plan_of("ties", [base, wide], dtype="float32")
    assert {step.dtype for step in plan.steps} == {torch.float32}
    plan = plan_of("ties", [base, wide], dtype="float64", out_dtype=torch.float16)
    assert {step.dtype for step in plan.steps} == {torch.float16}
    assert {step.work for step in plan.steps} == {torch.float64}
    assert plan.out_dtype == torch.float16
    plan = plan_of("ties", [base, wide], preset="paper")
    assert {step.work for step in plan.steps} == {torch.float64}
    assert plan.whole_model and plan.passes > 1


def test_discrete_tensors_are_copied() -> None:
    state = {"w": zeros(2), "ids": zeros(3, dtype=torch.int64), "on": zeros(1, dtype=torch.bool)}
    plan = plan_of("ties", [state, state], out_dtype="float32")
    assert [step.action for step in plan.steps] == ["merge", "copy", "copy"]
    assert plan.steps[1].dtype == torch.int64
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


def tied(flag: bool | None) -> dict[str, object]:
    return {} if flag is None else {"tie_word_embeddings": flag}


def both() -> dict[str, torch.Tensor]:
    return {EMBED: zeros(4, 2), HEAD: zeros(4, 2)}


def only() -> dict[str, torch.Tensor]:
    return {EMBED: zeros(4, 2)}


@pytest.mark.parametrize("base_flag", [True, None])
def test_a_tied_donor_has_no_head_of_its_own(base_flag) -> None:
    plan = plan_of("ties", [only(), both()], configs=[tied(base_flag), tied(True)])
    assert [step.name for step in plan.steps] == [EMBED]
    assert left_out(plan) == {("m1", HEAD): f"tied to {EMBED}"}
    plan = plan_of("ties", [both(), only()], configs=[tied(True), tied(None)])
    assert [step.name for step in plan.steps] == [EMBED]
    assert left_out(plan) == {("base", HEAD): f"tied to {EMBED}"}


def test_an_untied_expert_does_not_fit_a_tied_donor() -> None:
    with pytest.raises(MismatchError, match=f"tensor {HEAD}: model m1 has it"):
        plan_of("ties", [only(), both()], configs=[tied(True), tied(False)])


@pytest.mark.parametrize("flag", [True, None])
def test_a_tied_expert_lends_its_embedding_to_an_untied_donor(flag) -> None:
    plan = plan_of("ties", [both(), only(), both()], configs=[tied(False), tied(flag), {}])
    head = plan.steps[1]
    assert head.name == HEAD
    assert [(read.model, read.name) for read in head.experts] == [(1, EMBED), (2, HEAD)]
    assert head.note == f"m1 gives {EMBED}"
    assert not plan.dropped


def test_an_expert_that_says_it_is_untied_must_have_a_head() -> None:
    with pytest.raises(MismatchError, match=f"tensor {HEAD}: model m1 lacks it"):
        plan_of("ties", [both(), only()], configs=[tied(False), tied(False)])


def test_t5_embeddings_are_one_whatever_the_config_says() -> None:
    shared, encoder = "shared.weight", "encoder.embed_tokens.weight"
    base = {shared: zeros(4, 2), HEAD: zeros(4, 2)}
    expert = {encoder: zeros(4, 2), **base}
    plan = plan_of("ties", [base, expert], configs=[tied(False)] * 2)
    assert [step.name for step in plan.steps] == [shared, HEAD]
    assert left_out(plan) == {("m1", encoder): f"tied to {shared}"}


def test_shared_storage_is_merged_once_and_stays_shared() -> None:
    def model() -> dict[str, torch.Tensor]:
        weight = torch.zeros(4, 2)
        return {EMBED: weight, HEAD: weight, "w": torch.zeros(2)}

    plan = plan_of("ties", [model(), model()])
    assert [step.name for step in plan.steps] == [EMBED, "w"]
    assert plan.aliases == {HEAD: EMBED}
    plan = plan_of("ties", [model(), {**model(), HEAD: torch.zeros(4, 2)}])
    assert [step.name for step in plan.steps] == [EMBED, HEAD, "w"]
    assert not plan.aliases
    plan = plan_of("ties", [{EMBED: torch.zeros(4, 2), "w": torch.zeros(2)}, model()])
    assert left_out(plan) == {("m1", HEAD): f"shares its storage with {EMBED}"}


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

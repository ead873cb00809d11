"""Tied embeddings: one tensor under two names, stored once or twice, in files and in memory."""

from __future__ import annotations

import pytest
import torch
from plans import EMBED, HEAD, left_out, plan_of, tied, zeros

from mergekern.errors import MismatchError


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


def test_t5_embeddings_are_one_unless_the_base_stores_them_untied() -> None:
    shared, encoder = "shared.weight", "encoder.embed_tokens.weight"
    base = {shared: zeros(4, 2), HEAD: zeros(4, 2)}
    expert = {encoder: zeros(4, 2), **base}
    plan = plan_of("ties", [base, expert], configs=[tied(False)] * 2)
    assert [step.name for step in plan.steps] == [shared, HEAD]
    assert left_out(plan) == {("m1", encoder): f"tied to {shared}"}
    plan = plan_of("ties", [expert, base], configs=[tied(False)] * 2)
    assert [step.name for step in plan.steps] == [encoder, shared, HEAD]
    assert not plan.dropped


BIAS, COPY = "lm_head.bias", "lm_head.decoder.bias"


def test_a_bias_is_one_with_its_decoders_unless_the_config_unties_it() -> None:
    """As in BERT and RoBERTa; transformers would make one up for an untied model without it."""
    one, two = {BIAS: zeros(4)}, {BIAS: zeros(4), COPY: zeros(4)}
    for config in (tied(None), tied(True)):
        plan = plan_of("ties", [two, one], configs=[config] * 2)
        assert [step.name for step in plan.steps] == [BIAS]
        assert left_out(plan) == {("base", COPY): f"tied to {BIAS}"}
    plan = plan_of("ties", [two, two, one], configs=[tied(False)] * 3)
    assert [step.name for step in plan.steps] == [BIAS, COPY]
    assert [read.name for read in plan.steps[1].experts] == [COPY, BIAS]
    assert not plan.dropped


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


def test_filters_go_by_the_name_that_is_served() -> None:
    weight = [{"filter": "lm_head", "value": 0.25}, {"value": 0.5}]
    states, configs = [both(), only()], [tied(False), tied(True)]
    plan = plan_of("task_arithmetic", states, configs=configs, parameters={"weight": weight})
    assert [step.spec.weight for step in plan.steps] == [(0.5,), (0.25,)]


def test_a_changed_prefix_is_said_once_and_filters_do_not_see_it() -> None:
    headed = {f"model.layers.{n}.up": zeros(2) for n in range(3)} | {"model.norm": zeros(2)}
    bare = {name.removeprefix("model."): x for name, x in headed.items()}
    weight = [{"filter": "model.layers", "value": 0.25}, {"value": 0.5}]
    plan = plan_of("task_arithmetic", [headed, bare], parameters={"weight": weight})
    assert [step.spec.weight for step in plan.steps] == [(0.25,)] * 3 + [(0.5,)]
    assert not any(step.note for step in plan.steps)
    assert str(plan).count("layers.0") == 0 and sum("with 'model.'" in n for n in plan.notes) == 1

"""Settings against a plain spelling of their rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekern.errors import RecipeError
from mergekern.methods import get_method
from mergekern.recipe.setting import NOTHING, constant, parse_setting

WEIGHT = get_method("ties").parameter("weight")
ELECT = get_method("ties").parameter("elect")
SEED = get_method("dare_ties").parameter("seed")

numbers = st.floats(-10, 10).map(lambda x: x + 0.0)
values = st.one_of(numbers, st.lists(numbers, min_size=1, max_size=5))
filters = st.sampled_from([None, "*", "mlp", "self_attn", "q_proj", "layers.1", ""])
cases = st.fixed_dictionaries({"value": values}, optional={"filter": filters})
written = st.one_of(values, cases, st.lists(cases, min_size=1, max_size=4))
names = st.sampled_from(
    ["model.layers.1.mlp.up_proj.weight", "model.layers.11.self_attn.q_proj.weight", "lm_head"]
)
places = st.floats(0, 1)


def plain(setting: Any, name: str, t: float) -> Any:
    """The rules, one after the other, on what the recipe has."""
    entries = setting if isinstance(setting, list) else [setting]
    if not isinstance(entries[0], dict):
        entries = [{"value": setting}]
    for entry in entries:
        only = entry.get("filter")
        if only is None or only == "*" or only in name:
            return interpolated(entry["value"], t)
    return None


def interpolated(value: Any, t: float) -> float:
    points = value if isinstance(value, list) else [value]
    s = t * (len(points) - 1)
    i = int(s)
    f = s - i
    return (1 - f) * points[i] + f * points[min(i + 1, len(points) - 1)]


@given(written, names, places)
def test_a_setting_is_its_plain_spelling(setting, name, t) -> None:
    assert parse_setting(WEIGHT, setting, "").at(name, t) == plain(setting, name, t)


@given(st.lists(written, min_size=1, max_size=4), names, places)
def test_levels_joined_are_asked_one_after_the_other(levels, name, t) -> None:
    joined = NOTHING
    for level in levels:
        joined = joined.or_else(parse_setting(WEIGHT, level, ""))
    found = [v for level in levels if (v := plain(level, name, t)) is not None]
    assert joined.at(name, t) == (found[0] if found else None)
    if joined.total:
        assert joined.at(name, t) is not None
    if joined.constant:
        assert joined.at(name, t) == joined.at("", 0.0)


@given(written, names, places)
def test_what_is_written_out_means_the_same(setting, name, t) -> None:
    made = parse_setting(WEIGHT, setting, "")
    assert parse_setting(WEIGHT, made.written, "").at(name, t) == made.at(name, t)


def test_gradients_begin_and_end_with_their_points() -> None:
    made = parse_setting(WEIGHT, [0, "5e-1", 1e-5], "")
    assert [made.at("x", t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)] == [
        0.0,
        0.25,
        0.5,
        0.5 * 0.5 + 0.5 * 1e-5,
        1e-5,
    ]


def test_words_and_flags_are_chosen_not_blended() -> None:
    made = parse_setting(ELECT, ["mass", "count", "mass"], "")
    assert [made.at("x", t) for t in (0.0, 0.49, 0.5, 0.99, 1.0)] == [
        "mass",
        "mass",
        "count",
        "count",
        "mass",
    ]


def test_an_unfiltered_case_hides_those_behind_it() -> None:
    made = parse_setting(WEIGHT, [{"value": 1}, {"filter": "mlp", "value": 2}], "")
    assert made == constant(1.0)


def test_nothing_is_said_by_nothing() -> None:
    for empty in (None, []):
        assert parse_setting(WEIGHT, empty, "") is NOTHING
    assert NOTHING.at("x", 0.5) is None and NOTHING.written is None


@pytest.mark.parametrize(
    ("parameter", "setting", "message"),
    [
        (WEIGHT, [{"value": 1}, 2], "here: weight: 2 stands among entries with `value`"),
        (WEIGHT, [1, {"value": 2}], "here: weight is {'value': 2}; want a finite number"),
        (WEIGHT, {"filter": "mlp"}, "here: weight: {'filter': 'mlp'} has no value"),
        (WEIGHT, {"value": []}, "has no value"),
        (WEIGHT, {"value": 1, "filter": 3}, "filter is 3; want a part of tensors' names"),
        (WEIGHT, [1, "x"], "weight is 'x'; want a finite number"),
        (WEIGHT, [[1, 2]], r"weight is \[1, 2\]; want"),
        (ELECT, ["mass", "loud"], "elect is 'loud'; want one of mass, count"),
        (SEED, [1, 2], r"seed is \[1, 2\]; want a whole number"),
    ],
)
def test_settings_that_cannot_be_meant(parameter, setting, message) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_setting(parameter, setting, "here: ")

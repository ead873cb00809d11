"""A recipe written out in full makes the same specs when it is read again."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import yaml

from mergekern.recipe import Recipe, read

FILTERED = [{"filter": "mlp", "value": [0.25, 0.5]}, {"value": 0.75}]

SLICES = """
merge_method: breadcrumbs
base_model: org/base
slices:
- sources:
  - model: org/a+org/l
    layer_range: [0, 4]
    parameters: {weight: 0.5, gamma: {filter: mlp, value: 0.125}}
  - {model: org/base, layer_range: [0, 4]}
  parameters: {lambda: 2, density: [1, 0.5]}
- sources:
  - {model: org/other@v, layer_range: [2, 6]}
  - {model: org/b, layer_range: [2, 6]}
  base_model: org/other@v
- sources:
  - {model: org/base, layer_range: [7, 7]}
parameters: {weight: [{filter: attn, value: 0.25}], normalize: true}
dtype: bfloat16
out_dtype: float16
"""

MODULES = """
merge_method: linear
modules:
  text:
    slices:
    - sources: [{model: org/a, layer_range: [0, 2]}, {model: org/b, layer_range: [0, 2]}]
      parameters: {weight: [1, 2]}
  vision:
    models:
    - {model: org/b, parameters: {weight: 3}}
    - {model: {model: org/a, override_architecture: X}}
    parameters: {normalize: false}
"""

WHOLE: dict[str, Any] = {
    "merge_method": "ties",
    "models": [{"model": "org/a", "parameters": {"weight": FILTERED}}, {"model": "org/base"}],
    "base_model": "org/base",
    "parameters": {"density": FILTERED, "normalize": {"filter": "attn", "value": False}},
    "preset": "paper",
}

NAMES = ("layers.1.mlp.up", "layers.1.self_attn.q", "lm_head")


def specs(recipe: Recipe) -> list[Any]:
    """Of every part, for some names and places."""
    return [
        recipe.spec(place, name, [name] * len(part.experts), range(len(part.experts)), t)
        for place, part in enumerate(recipe.parts)
        if part.experts
        for name, t in itertools.product(NAMES, (0.0, 0.3, 1.0))
    ]


@pytest.mark.parametrize("source", [SLICES, MODULES, WHOLE], ids=["slices", "modules", "models"])
@pytest.mark.parametrize("given", [{}, {"weight": 0.5}, {"normalize": False}])
def test_the_same_specs_from_what_is_written(source, given) -> None:
    made = read(source, parameters=given)
    text = yaml.safe_dump(made.to_dict(), sort_keys=False)
    again = read(text)
    assert again.notes == ()
    assert again.to_dict() == made.to_dict()
    assert specs(again) == specs(made)
    assert [
        [(entry.source.key, entry.layers) for entry in part.entries if entry.layers]
        for part in again.parts
    ] == [
        [(entry.source.key, entry.layers) for entry in part.entries if entry.layers]
        for part in made.parts
    ]
    assert [part.base and part.base.key for part in again.parts] == [
        part.base and part.base.key for part in made.parts
    ]
    assert [source.key for source in again.sources] == [source.key for source in made.sources]
    assert (again.dtype, again.out_dtype) == (made.dtype, made.out_dtype)


def test_a_calls_list_is_written_at_every_model() -> None:
    made = read(MODULES, parameters={"weight": [5, 6, 7]})
    again = read(made.to_dict())
    labels = [source.label for source in made.experts]
    assert labels == ["org/a", "org/b", "org/a"]
    assert specs(again) == specs(made)
    assert specs(made)[0].weight == (5.0, 6.0)
    assert specs(made)[-1].weight == (6.0, 7.0)


def test_the_summary_of_parameters() -> None:
    made = read(SLICES)
    assert made.parameters["lambda"] == "varies"
    assert made.parameters["normalize"] is True
    assert made.parameters["density"] == ([1.0, 0.5], 1.0)
    assert read(WHOLE).parameters["density"] == (
        [{"filter": "mlp", "value": [0.25, 0.5]}, {"value": 0.75}],
    )
    assert "seed" not in made.parameters


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_a_modules_own_base_is_written_with_it(method) -> None:
    module = {"base_model": "org/own", "models": [{"model": "org/a"}]}
    content = {"merge_method": method, "base_model": "org/base", "parameters": {"weight": 1}}
    made = read({**content, "modules": {"default": module}})
    again = read(made.to_dict())
    for recipe in (made, again):
        (part,) = recipe.parts
        assert part.base is not None and part.base.label == "org/own"
        assert recipe.base is not None and recipe.base.label == "org/base"
    assert again.to_dict() == made.to_dict()

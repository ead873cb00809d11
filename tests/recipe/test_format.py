"""mergekit's format: slices, modules, levels and their precedence, and what is without effect."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mergekern.dtypes import FLOAT16, FLOAT32
from mergekern.errors import RecipeError
from mergekern.recipe import Recipe, parse_recipe, read

UP = "model.layers.3.mlp.up_proj.weight"  # in the output
IN = "model.layers.7.mlp.up_proj.weight"  # where a slice takes it from


def ties(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "merge_method": "ties",
        "models": [{"model": "org/a"}, {"model": "org/b"}],
        "base_model": "org/base",
    }
    return content | changes


def slices(*runs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"merge_method": "ties", "base_model": "org/base", "slices": list(runs)} | changes


def run(*sources: tuple[str, int, int], **changes: Any) -> dict[str, Any]:
    listed = [{"model": model, "layer_range": [n, m]} for model, n, m in sources]
    return {"sources": listed} | changes


def spec_of(recipe: Recipe, tensor: str = UP, source: str = UP, t: float = 0.0, part: int = 0):
    count = len(recipe.parts[part].experts)
    return recipe.spec(part, tensor, [source] * count, range(count), t)


def test_slices_are_parts_of_their_own() -> None:
    made = read(
        slices(
            run(("org/a", 0, 8), ("org/base", 0, 8)),
            run(("org/b", 8, 16), ("org/other", 8, 16), base_model="org/other"),
            run(("org/base", 16, 16)),
        )
    )
    assert [entry.source.label for entry in made.parts[0].entries] == ["org/a", "org/base"]
    assert [[e.source.label for e in part.experts] for part in made.parts] == [
        ["org/a"],
        ["org/b"],
        [],
    ]
    assert [part.base and part.base.label for part in made.parts] == [
        "org/base",
        "org/other",
        "org/base",
    ]
    assert made.parts[2].entries[0].layers == (16, 16)
    assert made.parts[0].base is made.parts[2].entries[0].source
    assert [expert.label for expert in made.experts] == ["org/a", "org/b"]
    labels = [source.label for source in made.sources]
    assert labels == ["org/base", "org/a", "org/b", "org/other"]


def test_a_model_may_be_in_many_slices_and_the_base_only_lend_its_config() -> None:
    made = read(
        slices(run(("org/a", 0, 2)), run(("org/a", 1, 3)), merge_method="linear", dtype="fp16")
    )
    assert len(made.experts) == 1
    assert made.parts[0].entries[0].source is made.parts[1].entries[0].source
    assert [part.base for part in made.parts] == [None, None]
    assert [source.label for source in made.sources] == ["org/base", "org/a"]
    assert made.dtype == FLOAT16


def test_modules_hold_models_or_slices() -> None:
    made = read(
        {
            "merge_method": "linear",
            "modules": {
                "text_decoder": {"slices": [run(("org/a", 0, 2)), run(("org/b", 0, 2))]},
                "vision_tower": {
                    "models": [{"model": "org/a"}, {"model": "org/b"}],
                    "parameters": {"weight": 3},
                },
            },
            "parameters": {"weight": 2},
        }
    )
    assert [part.module for part in made.parts] == ["text_decoder", "text_decoder", "vision_tower"]
    assert spec_of(made, part=0).weight == (2.0,)
    assert spec_of(made, part=2).weight == (3.0, 3.0)
    alone = {"modules": {"default": {"models": [{"model": "org/a"}]}}, "merge_method": "linear"}
    assert read(alone).parts[0].module == ""


def test_precedence_of_levels() -> None:
    first = run(("org/a", 0, 8), ("org/base", 0, 8))
    content = slices(
        first,
        parameters={"weight": 1, "lambda": 1, "density": 0.1},
    )
    assert spec_of(read(content)).weight == (1.0,)
    module: dict[str, Any] = {"slices": [first], "parameters": {"weight": 2, "lambda": 2}}
    content = slices(parameters=content["parameters"], modules={"m": module})
    assert spec_of(read(content)).weight == (2.0,)
    first["parameters"] = {"weight": 3, "lambda": 3}
    made = spec_of(read(content))
    assert (made.weight, made.lambda_, made.density) == ((3.0,), 3.0, (0.1,))
    first["sources"][0]["parameters"] = {"weight": 4}
    assert spec_of(read(content)).weight == (4.0,)
    assert spec_of(read(content, parameters={"weight": 5})).weight == (5.0,)
    assert spec_of(read(content | {"preset": "paper"})).density == (0.1,)
    del content["parameters"]["density"]
    assert spec_of(read(content | {"preset": "paper"})).density == (0.2,)


def test_a_level_without_a_value_for_the_name_passes_it_on() -> None:
    own = {"weight": [{"filter": "mlp", "value": 0.5}]}
    made = read(
        ties(
            models=[{"model": "org/a", "parameters": own}],
            parameters={"weight": [{"filter": "attn", "value": 0.25}, {"value": 2}]},
        )
    )
    for name, weight in ((UP, 0.5), ("layers.1.self_attn.q", 0.25), ("lm_head", 2.0)):
        assert spec_of(made, name, name).weight == (weight,)
    made = read(ties(parameters={"weight": {"filter": "mlp", "value": 0.5}}))
    assert spec_of(made).weight == (0.5, 0.5)
    assert spec_of(made, "lm_head", "lm_head").weight == (1.0, 1.0)


def test_per_model_parameters_go_by_the_input_and_shared_ones_by_the_output() -> None:
    filtered = [{"filter": "layers.3.", "value": 0.5}, {"filter": "layers.7.", "value": 2}]
    made = read(ties(parameters={"weight": filtered, "lambda": filtered}))
    found = spec_of(made, tensor=UP, source=IN)
    assert found.weight == (2.0, 2.0)
    assert found.lambda_ == 0.5
    found = made.spec(0, UP, [IN, UP], (1, 0), 0.0)
    assert found.weight == (2.0, 0.5)


@pytest.mark.parametrize("level", ["source", "slice", "module", "top"])
def test_gradients_and_scientific_notation_at_every_level(level) -> None:
    first = run(("org/a", 0, 8), ("org/base", 0, 8))
    module: dict[str, Any] = {"slices": [first]}
    content: dict[str, Any] = slices(modules={"m": module})
    del content["slices"]
    place = {"source": first["sources"][0], "slice": first, "module": module, "top": content}
    place[level]["parameters"] = {"weight": ["1e-5", 1.0, "3e0"]}
    made = read(content)
    assert [spec_of(made, t=t).weight for t in (0.0, 0.5, 0.75, 1.0)] == [
        (1e-5,),
        (1.0,),
        (2.0,),
        (3.0,),
    ]
    assert not made.constant


def test_equal_values_are_one_spec_in_every_part() -> None:
    both = [run(("org/a", n, n + 8), ("org/base", n, n + 8)) for n in (0, 8)]
    made = read(slices(*both, parameters={"weight": [1, 1], "lambda": {"value": 1.0}}))
    assert spec_of(made, part=0, t=0.0) is spec_of(made, part=1, t=0.75)
    made = read(slices(*both))
    assert made.constant
    assert spec_of(made, part=0) is spec_of(made, part=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ties(slices=[run(("org/a", 0, 1))]), "models and slices are both given"),
        ({"merge_method": "linear"}, "lists no models to merge"),
        (ties(models=[], slices=[], modules={}), "lists no models to merge"),
        (slices(modules={"m": {}}, slices=None), "m lists no models to merge: want models or"),
        (slices({"sources": []}), r"slices\[0\].sources is \[\]; want at least one"),
        (slices({"sources": [{"model": "a"}]}), r"slices\[0\].sources\[0\] has no layer_range"),
        (slices(run(("a", 2, 1))), r"layer_range is \[2, 1\]; want \[first"),
        (slices(run(("a", -1, 1))), r"layer_range is \[-1, 1\]; want \[first"),
        (slices(run(("a", 0, 1), ("a", 1, 2))), "model a is listed twice"),
        (slices(run(("a", 0, 1), ("b", 0, 1)), base_model=None), r"slices\[0\]: ties needs a base"),
        (ties(modules=[1], models=None), r"modules is \[1\]; want a mapping of names"),
        (ties(modules={"m": 3}, models=None), "modules.m is 3; want a mapping with models"),
        (ties(parameters={"weight": {"value": 1, "filtre": "x"}}), "did you mean 'filter'"),
        (ties(parameters={"weihgt": 1}), "'parameters.weihgt'; did you mean 'weight'"),
        (ties(chat_template="chatlm"), "chat_template is 'chatlm'; did you mean 'chatml'"),
        (ties(chat_template="{{ x }}"), "a template in Jinja of 20 characters"),
        (ties(dtype="int64"), "recipe: dtype 'int64' is not one of"),
    ],
)
def test_recipes_that_cannot_be_meant(content, message) -> None:
    with pytest.raises(RecipeError, match=message):
        read(content)


WITHOUT_EFFECT = """\
merge_method: ties
base_model: org/base
name: first
embed_slerp: true
slices:
- sources:
  - model: org/a
    layer_range: [0, 4]
    parameters:
      weight: 1
      normalize: false
  - model: org/base
    layer_range: [0, 4]
    parameters: {weight: 1}
  residual_weight: 0.5
- sources:
  - {model: org/a, layer_range: [4, 8]}
  - {model: org/base, layer_range: [4, 8]}
  residual_weight: 0.5
parameters:
  int8_mask: true
  t: 0.5
  gamma: 0.1
  density: 0.5
dtype: bfloat16
"""


def test_what_has_no_effect_is_noted_with_its_line(tmp_path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(WITHOUT_EFFECT)
    made = read(path)
    notes = {note.partition(" has no effect: ")[0]: note for note in made.notes}
    assert sorted(notes) == [
        "recipe.yml:11: slices[0].sources[0].parameters.normalize",
        "recipe.yml:14: slices[0].sources[1].parameters",
        "recipe.yml:15: slices[0].residual_weight",
        "recipe.yml:21: parameters.int8_mask",
        "recipe.yml:22: parameters.t",
        "recipe.yml:23: parameters.gamma",
        "recipe.yml:3: name",
        "recipe.yml:4: embed_slerp",
    ]
    assert notes["recipe.yml:15: slices[0].residual_weight"].endswith("(and 1 more like it)")
    assert "top-level" in notes["recipe.yml:11: slices[0].sources[0].parameters.normalize"]
    assert spec_of(made).density == (0.5,)
    assert not any("/" in note for note in made.notes if "org/" not in note)


def test_unknown_keys_do_not_stop_a_published_recipe() -> None:
    made = read(ties(author="someone", models=[{"model": "org/a", "layer_range": [0, 4]}]))
    assert [note.partition(":")[0] for note in made.notes] == [
        "author has no effect",
        "models[0].layer_range has no effect",
    ]
    assert read(ties(author=None, embed_slerp=[])).notes == ()
    # What is given under its own name as well is not lost.
    assert read(ties(dtypes="float16", dtype="float32")).dtype == FLOAT32


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("residual_weight: 0.5", "base_mdel: x", ":15: .*'slices.0..base_mdel'; did you mean"),
        ("density: 0.5", "densty: 0.5", ":24: unknown key 'parameters.densty'; did you mean"),
        ("density: 0.5", "density: 1.5", ":24: density is 1.5; want a number in"),
        ("weight: 1\n", "weight: x\n", ":10: model org/a: weight is 'x'; want"),
        ("[4, 8]}", "[8, 4]}", r":17: slices\[1\].sources\[0\].layer_range is \[8, 4\]; want"),
        ("bfloat16", "bfloat17", ":25: dtype 'bfloat17' is not one of"),
        ("model: org/a\n", "model: org/a@\n", ":7: .*want hub/id@revision"),
        ("dtype: bfloat16", "tokenizer:\n  tokens:\n    <x>: {sorce: a}", ":27: .*did you mean"),
        ("dtype: bfloat16", "merge_method: linear", "'merge_method' is given twice.*line 25"),
    ],
)
def test_errors_name_the_line(old, new, message) -> None:
    with pytest.raises(RecipeError, match=message):
        read(WITHOUT_EFFECT.replace(old, new, 1))


def test_lines_follow_anchors_and_merged_keys() -> None:
    text = """\
merge_method: linear
models:
- &first
  model: org/a
  parameters: &own
    weight: 0.5
- model: org/b
  parameters:
    <<: *own
    scael: 2
"""
    made = read(text)
    assert spec_of(made).weight == (0.5, 0.5)
    assert made.notes == (
        "recipe:10: models[1].parameters.scael has no effect: linear takes weight, normalize",
    )


def test_an_object_that_dumps_what_mergekits_would() -> None:
    reference = {
        "model": {"path": "org/a", "revision": None},
        "lora": None,
        "override_architecture": None,
    }
    entry = {"model": reference, "layer_range": (0, 4), "parameters": None}
    dumped = {
        "modules": {"default": {"slices": [{"sources": [entry], "residual_weight": None}]}},
        "models": None,
        "slices": None,
        "merge_method": "linear",
        "parameters": {"weight": [{"value": [0.0, 1.0], "filter": "mlp"}, {"value": 1.0}]},
        "tokenizer": {"source": "union", "tokens": None, "pad_to_multiple_of": 8},
        "tokenizer_source": None,
        "chat_template": None,
    }
    made = read(SimpleNamespace(model_dump=lambda: dumped))
    assert made.notes == ()
    assert made.parts[0].entries[0].layers == (0, 4)
    assert spec_of(made, t=0.5).weight == (0.5,)


def test_the_rules_of_a_place_are_plain_data() -> None:
    file = parse_recipe(slices(run(("org/a", 0, 1)), parameters={"weight": [0, 1]}))
    assert [place.path for place in file.places()] == [
        (),
        ("slices", 0),
        ("slices", 0, "sources", 0),
    ]


def test_a_required_parameter_that_no_level_gives() -> None:
    """As in a method whose signature has no default for it."""

    def required(recipe: Recipe, *names: str) -> Recipe:
        parameters = tuple(
            replace(p, default=inspect.Parameter.empty) if p.name in names else p
            for p in recipe.method.parameters
        )
        return replace(recipe, method=replace(recipe.method, parameters=parameters))

    partly = read(ties(parameters={"weight": {"filter": "mlp", "value": 1}}))
    assert spec_of(required(partly, "weight")).weight == (1.0, 1.0)
    message = (
        "^ties needs weight of model org/a for tensor lm_head, and no value holds for it: write it "
        r"under the model's parameters, .* \(in a list with filters, an entry without one"
    )
    with pytest.raises(RecipeError, match=message):
        spec_of(required(partly, "weight"), "lm_head", "lm_head")
    with pytest.raises(RecipeError, match=r"^ties needs lambda: write it under the top-level"):
        required(read(ties()), "lambda").check()


def test_a_merged_mapping_may_have_merged_one_itself() -> None:
    made = read(
        """\
defaults: &defaults {normalize: true}
deep:
  changed: &changed {<<: *defaults, normalize: false}
merge_method: linear
models:
- {model: org/a, parameters: {weight: 1}}
parameters:
  <<: *changed
"""
    )
    assert made.parameters["normalize"] is False


def test_lines_of_what_is_written_over_a_merged_key() -> None:
    text = """\
merge_method: linear
models:
- &first
  model: org/a
  parameters: {weight: 1}
- <<: *first
  model: 5
"""
    with pytest.raises(RecipeError, match=r"^recipe:7: models\[1\] is 5; want a path"):
        read(text)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("&x {model: *x}", "recursive node .* line 3"),
        ("{model: a\a}", "not valid YAML: unacceptable character"),
        ("{model: 2024-05-40}", "not valid YAML: day"),
        ("{model: !!int ''}", "not valid YAML"),
        ("{model: 2024-05-04}", r"recipe:3: models\[0\] is datetime.date.* want a path"),
        ("{model: !!binary aGVsbG8=}", r"recipe:3: models\[0\] is b'hello'; want a path"),
        ("{model: {lora: a}}", r"recipe:3: models\[0\] is .*; want a path"),
    ],
)
def test_yaml_that_is_no_recipe(entry: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(f"merge_method: linear\nmodels:\n- {entry}\n")


def test_layer_ranges_are_whole_numbers_however_written() -> None:
    def ends(written: Any) -> tuple[int, int] | None:
        source = {"model": "org/a", "layer_range": written}
        made = read({"merge_method": "passthrough", "slices": [{"sources": [source]}]})
        return made.parts[0].entries[0].layers

    assert ends(["0", "8"]) == ends([0.0, 8.0]) == ends((0, 8)) == (0, 8)
    for wrong in ([False, True], [0, 1.5], ["0", "x"], [0], [-1, 4], None):
        with pytest.raises(RecipeError, match="layer_range"):
            ends(wrong)


def test_numbers_may_be_arrays_and_empty_ones_say_nothing() -> None:
    def weight(written: Any) -> Any:
        model = {"model": "org/a", "parameters": {"weight": written}}
        made = read({"merge_method": "linear", "models": [model], "parameters": {"weight": 2}})
        return made.parameters["weight"]

    assert weight(torch.tensor(0.5)) == (0.5,)
    assert weight(torch.tensor([0.5, 1.0])) == weight((0.5, 1)) == ([0.5, 1.0],)
    assert weight(()) == weight([]) == weight(torch.ones(0)) == (2.0,)


def test_messages_show_no_more_of_a_model_than_it_takes() -> None:
    state = {f"layers.{number}.weight": torch.ones(100) for number in range(100)}
    with pytest.raises(RecipeError, match=r"models\[0\] is \{.*want an entry") as caught:
        read({"merge_method": "linear", "models": [state]})
    assert len(str(caught.value)) < 1000

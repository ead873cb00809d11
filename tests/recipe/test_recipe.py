"""Recipes: the file format, precedence, references, and what wrong ones are told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mergekern.dtypes import BFLOAT16, FLOAT32
from mergekern.errors import RecipeError
from mergekern.recipe import parse_source, read

TIES = """
merge_method: ties
models:
- model: org/a
  parameters: {weight: 1e-5, density: 0.5}
- model: org/b
base_model: org/base
parameters: {density: 0.25, lambda: 2}
dtype: float32
out_dtype: bfloat16
"""


def recipe(**changes: object) -> dict[str, object]:
    content: dict[str, object] = {
        "merge_method": "ties",
        "models": [{"model": "org/a"}, {"model": "org/b"}],
        "base_model": "org/base",
    }
    return content | changes


def test_mergekits_simplest_shape(tmp_path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(TIES)
    for source in (str(path), path, TIES):
        made = read(source)
        assert made.method.name == "ties"
        assert [expert.label for expert in made.experts] == ["org/a", "org/b"]
        assert made.base is not None and made.base.label == "org/base"
        assert made.parameters["weight"] == (1e-5, 1.0)
        assert made.parameters["density"] == (0.5, 0.25)
        assert made.parameters["lambda"] == 2.0
        assert (made.dtype, made.out_dtype) == (FLOAT32, BFLOAT16)


def test_an_object_that_dumps_itself_as_mergekits_does() -> None:
    reference = {"model": {"path": "org/a", "revision": "v1"}, "lora": None}
    dumped = {
        "merge_method": "linear",
        "models": [{"model": reference, "parameters": {"weight": 2, "density": None}}],
        "slices": None,
        "tokenizer": None,
        "base_model": None,
        "dtype": None,
    }
    made = read(SimpleNamespace(model_dump=lambda: dumped), parameters={"normalize": False})
    assert made.experts[0].revision == "v1"
    assert made.parameters == {"weight": (2.0,), "normalize": False}


def test_precedence() -> None:
    content = recipe(
        models=[{"model": "org/a", "parameters": {"density": 0.1}}, {"model": "org/b"}],
        parameters={"density": 0.3, "scope": "tensor"},
        preset="paper",
    )
    made = read(content)
    assert made.parameters["density"] == (0.1, 0.3)
    assert made.parameters["scope"] == "tensor"
    assert made.parameters["disjoint"] == "mean"
    assert made.parameters["elect"] == "mass"
    assert read(content, parameters={"density": 0.9}).parameters["density"] == (0.9, 0.9)
    assert read(content, parameters={"density": [0.7, 0.8]}).parameters["density"] == (0.7, 0.8)
    array = torch.tensor([0.5, 0.25])
    assert read(content, parameters={"density": array}).parameters["density"] == (0.5, 0.25)
    assert read(recipe(preset="paper")).parameters["density"] == (0.2, 0.2)


def test_a_recipe_written_out_means_the_same() -> None:
    made = read("dare_ties", models=["org/a", "org/b"], base="org/base", preset="paper", seed=7)
    again = read(made.to_dict())
    assert again.parameters == made.parameters
    assert again.to_dict() == made.to_dict()
    assert again.seed == 7


def test_a_zero_has_no_sign() -> None:
    """Specs that compare equal are taken for one, so that their bits must be the same."""
    made = read(recipe(parameters={"weight": -0.0, "lambda": "-0"}))
    assert repr((made.parameters["weight"], made.parameters["lambda"])) == "((0.0, 0.0), 0.0)"


def test_seed() -> None:
    drop = recipe(merge_method="dare_ties", parameters={"seed": 3})
    assert read(drop).seed == 3
    assert read(drop, seed=4).seed == 4
    assert read(recipe(), seed=4).notes == ("seed has no effect: ties draws no random numbers",)
    assert read(recipe(), seed=0).notes == ()


def test_a_listed_base_is_no_expert_of_deltas() -> None:
    made = read(recipe(base_model="org/a"))
    assert [expert.label for expert in made.experts] == ["org/b"]
    assert [source.label for source in made.sources] == ["org/a", "org/b"]
    models = [{"model": "org/a", "parameters": {"weight": 2}}, {"model": "org/b"}]
    made = read(recipe(models=models, base_model="org/a"))
    assert made.notes == ("models[0].parameters has no effect: org/a is the base",)


def test_linear_averages_a_listed_base_and_needs_a_weight_for_another() -> None:
    made = read(recipe(merge_method="linear", base_model="org/b"))
    assert made.base is made.experts[1]
    assert made.sources == made.experts
    made = read(recipe(merge_method="linear", parameters={"weight": 1}))
    assert [expert.label for expert in made.experts] == ["org/a", "org/b", "org/base"]
    assert made.base is made.experts[2]
    with pytest.raises(RecipeError, match=r"org/base as one more input.*list it under models with"):
        read(recipe(merge_method="linear"))
    with pytest.raises(RecipeError, match="org/base as one more input"):
        read("linear", models=["org/a"], base="org/base", parameters={"weight": [1.0]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merge_method": "tie"}, "unknown method 'tie'; did you mean 'ties'?"),
        ({"base_modle": "x", "base_model": None}, "unknown key 'base_modle'; did you mean 'base_m"),
        (
            {"models": [{"model": "a", "paramters": {}}]},
            r"^recipe: unknown key 'models\[0\].paramters'; did you mean 'parameters'",
        ),
        ({"slices": [1], "models": []}, r"slices\[0\] is 1; want a mapping with sources"),
        ({"parameters": 3}, "parameters is 3; want a mapping"),
        ({"models": []}, "lists no models to merge: want models, slices or modules"),
        ({"models": None}, "lists no models to merge"),
        ({"models": {"a": 1}}, "want a list of entries"),
        ({"models": ["org/a"]}, r"models\[0\] is 'org/a'; want an entry `model: ...`"),
        ({"models": [{"model": "a"}, {"model": "a/"}]}, "model a/ is listed twice"),
        ({"models": [{"model": "org/base"}]}, "no models to merge besides the base org/base"),
        ({"base_model": None}, "ties needs a base model.*--base"),
        ({"dtype": "int64"}, "dtype 'int64' is not one of float64"),
        ({"merge_method": 3}, "merge_method is 3: "),
    ],
)
def test_wrong_recipes_are_told_what_to_mend(changes, message) -> None:
    with pytest.raises(RecipeError, match=message):
        read(recipe(**changes))


def test_files_that_are_no_recipes(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"recipe missing\.yml cannot be read: No such file"):
        read("missing.yml")
    path = tmp_path / "bad.yml"
    path.write_text("a: [1")
    with pytest.raises(RecipeError, match=r"bad\.yml: not valid YAML.*line"):
        read(path)
    path.write_text("just words")
    with pytest.raises(RecipeError, match=r"bad\.yml: want a mapping"):
        read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"bad\.yml cannot be read: not a text file"):
        read(path)
    with pytest.raises(RecipeError, match=r"recipe .* cannot be read: Is a directory"):
        read(tmp_path)
    with pytest.raises(RecipeError, match="want a method's name"):
        read(3)


def test_models_belong_to_a_methods_name() -> None:
    with pytest.raises(RecipeError, match="a recipe lists its own"):
        read(recipe(), models=["org/c"])
    with pytest.raises(RecipeError, match=r"no models to merge: give at least one .*--model"):
        read("ties", base="org/base")
    with pytest.raises(RecipeError, match="models is 'org/a'; want a list"):
        read("ties", base="org/base", models="org/a")
    with pytest.raises(RecipeError, match="no models to merge"):
        read("ties", base="org/base", models=[])


def test_one_folder_under_two_names_is_one_model(tmp_path, monkeypatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="listed twice"):
        read(recipe(models=[{"model": "a"}, {"model": str(tmp_path / "a") + "/"}]))


@pytest.mark.parametrize(
    "text",
    [TIES + "dtype: float16\n", TIES.replace("lambda: 2", "lambda: 2, density: 0.5")],
)
def test_a_key_given_twice_is_refused(text) -> None:
    with pytest.raises(RecipeError, match=r"the key '(dtype|density)' is given twice"):
        read(text)


def test_a_misspelt_key_is_named_before_the_missing_one() -> None:
    with pytest.raises(RecipeError, match="unknown key 'model'; did you mean 'models'"):
        read({"merge_method": "linear", "model": [{"model": "org/a"}]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": 3}, "models is int"),
        ({"models": {"a": torch.ones(1)}}, "models is dict"),
        ({"dtype": 3}, "dtype is 3"),
        ({"preset": 3}, "preset is 3"),
        ({"preset": "papr"}, "did you mean 'paper'"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"parameters": {"weight": 10**400}}, "weight is 1000"),
    ],
)
def test_arguments_of_the_wrong_kind(options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        read("ties", **{"models": ["org/a"], "base": "org/base"} | options)


def test_tensors_named_like_the_keys_of_a_reference_are_a_model() -> None:
    state = {"model": torch.ones(2, 2)}
    assert parse_source(state, "models[0]").where is state

"""A recipe with a grid: the recipes it stands for, their names, and what wrong ones are told."""

from __future__ import annotations

from typing import Any

import pytest

from mergekern.errors import RecipeError
from mergekern.recipe import has_grid, read, read_grid

PLAIN: dict[str, Any] = {
    "merge_method": "dare_ties",
    "models": [{"model": "org/a"}, {"model": "org/b"}],
    "base_model": "org/base",
}


def grid(**axes: Any) -> dict[str, Any]:
    return PLAIN | {"grid": axes}


def test_the_product_in_the_order_written() -> None:
    found = read_grid(grid(density=[0.1, "5e-1"], **{"lambda": [1, 0.25]}))
    assert list(found) == [
        "density=0.1,lambda=1",
        "density=0.1,lambda=0.25",
        "density=0.5,lambda=1",
        "density=0.5,lambda=0.25",
    ]
    last = found["density=0.5,lambda=0.25"]
    assert last.parameters["density"] == (0.5, 0.5)
    assert last.parameters["lambda"] == 0.25


def test_a_point_is_the_recipe_that_has_its_values_written_out() -> None:
    found = read_grid(grid(weight=[0.5, [0.3, 0.7]], seed=[3], normalize=[True], rescale=["l1"]))
    assert list(found) == [
        "weight=0.5,seed=3,normalize=true,rescale=l1",
        "weight=0.3_0.7,seed=3,normalize=true,rescale=l1",
    ]
    models = [
        {"model": label, "parameters": {"weight": weight}}
        for label, weight in (("org/a", 0.3), ("org/b", 0.7))
    ]
    shared = {"seed": 3, "normalize": True, "rescale": "l1"}
    plain = read(PLAIN | {"models": models, "parameters": shared})
    assert list(found.values())[1].to_dict() == plain.to_dict()
    assert "grid" not in plain.to_dict()


def test_names_tell_close_values_apart_and_are_safe() -> None:
    names = list(read_grid(grid(weight=[0.1, 0.10000001, 1e-7, -0.5, 20.0])))
    assert names == ["weight=0.1", "weight=0.10000001", "weight=1e-07", "weight=-0.5", "weight=20"]


def test_the_call_and_the_preset_reach_every_point() -> None:
    found = read_grid(
        grid(density=[0.1, 0.2]), preset="paper", dtype="float32", parameters={"lambda_": 3}
    )
    assert [recipe.parameters["lambda"] for recipe in found.values()] == [3, 3]
    assert [recipe.parameters["density"][0] for recipe in found.values()] == [0.1, 0.2]
    assert len({recipe.dtype for recipe in found.values()}) == 1


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "grid is {}; want a mapping of parameters to lists"),
        ([0.1], r"grid is \[0.1\]; want a mapping"),
        ({"densty": [0.1]}, "grid: dare_ties has no parameter 'densty'; did you mean 'density'?"),
        ({"density": []}, r"grid.density is \[\]; want a list of values, at least one"),
        ({"density": 0.1}, "grid.density is 0.1; want a list"),
        ({"density": "0.1,0.2"}, "grid.density is '0.1,0.2'; want a list"),
        ({"density": [0.1, "0.1"]}, "grid.density holds '0.1' twice"),
        ({"density": [None]}, "grid: density is None; want a number in"),
        ({"density": [2]}, "grid: density is 2; want a number in"),
        ({"density": [[0.1, 0.2, 0.3]]}, "density has 3 values for 2 models"),
        ({"seed": [[1, 2]]}, r"grid: seed is \[1, 2\]; want a whole number"),
        ({"weight": [1, [1, 1]]}, "weight=1 and weight=1_1 are the same merge"),
        ({"lambda": [1], "lambda_": [2]}, "grid.lambda is given twice, as lambda and lambda_"),
    ],
)
def test_wrong_grids_are_told_what_to_mend(axes, message) -> None:
    with pytest.raises(RecipeError, match=message):
        read_grid(PLAIN | {"grid": axes})


@pytest.mark.parametrize(
    ("recipe", "options", "where"),
    [
        ({"parameters": {"density": 0.3}}, {}, "the recipe's parameters"),
        ({}, {"parameters": {"density": 0.3}}, "the call's arguments"),
        ({"models": [{"model": "org/a", "parameters": {"density": 1}}]}, {}, "parameters of org/a"),
    ],
)
def test_a_parameter_is_given_once(recipe, options, where) -> None:
    with pytest.raises(RecipeError, match=f"grid.density: density is among .*{where} too"):
        read_grid(grid(density=[0.1, 0.2]) | recipe, **options)


def test_a_seed_is_given_once() -> None:
    with pytest.raises(RecipeError, match=r"grid.seed: .*the call's arguments"):
        read_grid(grid(seed=[1, 2]), seed=3)
    assert [r.seed for r in read_grid(grid(seed=[1, 2])).values()] == [1, 2]


def test_one_merge_takes_no_grid_and_many_need_one() -> None:
    with pytest.raises(RecipeError, match=r"has a grid.*merge_many\(\)"):
        read(grid(density=[0.1]))
    with pytest.raises(RecipeError, match=r"no grid.*merge\(\)"):
        read_grid(PLAIN)
    assert has_grid(grid(density=[0.1])) and not has_grid(PLAIN) and not has_grid("ties")

"""Methods: what each asks for, its parameters, presets and the errors of wrong ones."""

from __future__ import annotations

import pytest

from mergekern.errors import RecipeError
from mergekern.methods import all_methods, get_method
from mergekern.recipe import Recipe, read

TWO = {"models": ["org/a", "org/b"], "base": "org/base"}


def recipe(method: str, preset: str | None = None, **parameters: object) -> Recipe:
    inputs = TWO if get_method(method).takes_deltas(True) else {"models": TWO["models"]}
    return read(method, **inputs, preset=preset, parameters=parameters)


def spec(method: str, preset: str | None = None, **parameters: object):
    return recipe(method, preset, **parameters).spec(0, "t", "tt", (0, 1), 1.0)


def test_the_table_has_what_recipes_name() -> None:
    assert [method.name for method in all_methods()] == [
        "linear",
        "model_stock",
        "passthrough",
        "slerp",
        "nuslerp",
        "multislerp",
        "karcher",
        "task_arithmetic",
        "ties",
        "dare_linear",
        "dare_ties",
        "della_linear",
        "della",
        "breadcrumbs",
        "breadcrumbs_ties",
        "nearswap",
        "ram",
        "ramplus_tl",
        "consensus",
        "arcee_fusion",
        "emr",
        "fisher",
        "regmean",
        "regmean_plusplus",
        "sce",
        "localize_and_stitch",
        "stitch",
        "varm",
    ]


@pytest.mark.parametrize("method", all_methods(), ids=lambda method: method.name)
def test_every_method_is_documented(method) -> None:
    assert "out = " in method.doc
    assert method.paper
    for parameter in method.parameters:
        assert parameter.doc.text
        assert parameter.default_text


@pytest.mark.parametrize(
    ("method", "elect", "normalize", "rescale", "trims"),
    [
        ("task_arithmetic", "none", False, "none", False),
        ("ties", "mass", True, "none", True),
        ("dare_linear", "none", False, "l1", False),
        ("dare_ties", "mass", False, "l1", False),
        ("breadcrumbs", "none", False, "none", True),
        ("breadcrumbs_ties", "mass", False, "none", True),
    ],
)
def test_defaults_are_mergekits(method, elect, normalize, rescale, trims) -> None:
    made = spec(method, density=0.5)
    assert (made.rule, made.combine, made.ballot) == ("task_vector", "sum", "weighted")
    assert (made.elect, made.normalize, made.rescale) == (elect, normalize, rescale)
    assert (made.scope, made.ties, made.lambda_) == ("tensor", "index", 1.0)
    assert made.trims is trims
    assert made.keep == ((0.5, 0.5) if method.startswith("dare") else (1.0, 1.0))
    assert made.gamma == ((0.01, 0.01) if method.startswith("breadcrumbs") else (0.0, 0.0))


def test_linear_is_a_normalized_combination() -> None:
    made = spec("linear", weight=[1, 3])
    assert (made.rule, made.weight, made.normalize) == ("linear_combination", (1.0, 3.0), True)


def test_a_spec_holds_the_experts_that_take_part() -> None:
    made = recipe("ties", weight=[1, 2], density=[0.1, 0.2]).spec(0, "t", "t", (1,), 1.0)
    assert (made.weight, made.density) == ((2.0,), (0.2,))


def test_ties_paper() -> None:
    made = spec("ties", "paper")
    assert (made.scope, made.ties, made.elect, made.ballot) == (
        "model",
        "keep",
        "mass",
        "unweighted",
    )
    assert (made.combine, made.normalize, made.rescale) == ("mean", False, "none")
    assert made.density == (0.2, 0.2)


def test_peft_presets() -> None:
    made = spec("ties", "peft", density=0.4)
    assert (made.scope, made.ballot, made.combine, made.normalize) == (
        "tensor",
        "unweighted",
        "mean",
        False,
    )
    made = spec("dare_ties", "peft", density=0.4)
    assert (made.rescale, made.ballot, made.combine) == ("drop_rate", "unweighted", "mean")
    assert spec("dare_linear", "peft").rescale == "drop_rate"
    assert spec("dare_linear", "paper").rescale == "drop_rate"


def test_a_given_parameter_wins_over_the_preset() -> None:
    made = spec("ties", "paper", density=0.3, scope="tensor")
    assert (made.density, made.scope, made.combine) == ((0.3, 0.3), "tensor", "mean")


def test_an_unknown_preset_says_who_has_which() -> None:
    with pytest.raises(RecipeError, match=r"task_arithmetic has no preset 'paper'.*ties: paper, p"):
        spec("task_arithmetic", "paper")


@pytest.mark.parametrize("disjoint", ["mean", "max"])
def test_normalize_yields_to_disjoint(disjoint) -> None:
    assert recipe("ties", disjoint=disjoint).parameters["normalize"] is False
    with pytest.raises(RecipeError, match=f"normalize divides .* disjoint={disjoint}"):
        spec("ties", disjoint=disjoint, normalize=True)


@pytest.mark.parametrize(("given", "meant"), [(True, "l1"), (False, "none"), ("drop_rate",) * 2])
def test_rescale_takes_mergekits_booleans(given, meant) -> None:
    assert spec("dare_ties", rescale=given).rescale == meant


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("weight", [[1, -1], [0, 0], [0.1, -0.1000000001]])
def test_weights_that_cancel_cannot_be_normalized(method, weight) -> None:
    with pytest.raises(RecipeError, match=r"sum to .* set normalize to false"):
        spec(method, weight=weight, normalize=True)
    assert spec(method, weight=weight, normalize=False).normalize is False


def test_elected_weights_may_cancel() -> None:
    assert spec("ties", weight=[1, -1]).normalize is True


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("ties", {"density": -0.5}, r"^density is -0.5; want a number in \[0, 1\]"),
        ("ties", {"density": [0.5, 1.5]}, r"model org/b: density is 1.5; want a number in"),
        ("breadcrumbs", {"gamma": 1.1}, r"gamma is 1.1; want a number in \[0, 1\]"),
        ("ties", {"normalize": 0.5}, "normalize is 0.5; want true or false"),
        ("ties", {"lambda": "inf"}, "lambda is 'inf'; want a finite number"),
        ("ties", {"weight": float("nan")}, "weight is nan; want a finite number"),
        ("ties", {"weight": True}, "weight is True; want a finite number"),
        ("ties", {"weight": [1, 2, 3]}, r"weight has 3 values for 2 models \(org/a, org/b\)"),
        ("ties", {"densty": 0.2}, "ties has no parameter 'densty'; did you mean 'density'?"),
        ("ties", {"gamma": 0.1}, "no parameter 'gamma'; breadcrumbs, breadcrumbs_ties have it"),
        ("ties", {"elect": "loudest"}, "elect is 'loudest'; want one of mass, count"),
        ("ties", {"lambda": 1, "lambda_": 2}, "lambda is given twice"),
        ("ties", {"normalize": "maybe"}, "normalize is 'maybe'; want true or false"),
        ("dare_ties", {"seed": -1}, "seed is -1; want a whole number"),
        ("dare_ties", {"seed": 1.5}, "seed is 1.5; want a whole number"),
    ],
)
def test_wrong_parameters_are_named(method, parameters, message) -> None:
    with pytest.raises(RecipeError, match=message):
        spec(method, **parameters)


def test_strings_are_numbers_where_they_can_be() -> None:
    made = spec("ties", weight="1e-5", density=["0.5", "1"], lambda_="2", normalize="false")
    assert (made.weight, made.density) == ((1e-5, 1e-5), (0.5, 1.0))
    assert (made.lambda_, made.normalize) == (2.0, False)


def test_what_has_no_effect_is_noted() -> None:
    notes = recipe("task_arithmetic", density=0.5, int8_mask=True).notes
    assert notes == (
        "int8_mask has no effect: it changes no number",
        "density has no effect: task_arithmetic keeps every delta whole",
    )
    assert recipe("ties", density=0.5).notes == ()


MODELS = {
    "linear": {1, 2, 3},
    "model_stock": {2, 3},
    "passthrough": {1},
    "slerp": {1},  # and the base
    "nuslerp": {2},
    "multislerp": {1, 2, 3},
    "karcher": {1, 2, 3},
    "ties": {1, 2, 3},
}


@pytest.mark.parametrize("method", MODELS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_methods_say_how_many_models_they_merge(method, count) -> None:
    known, models = get_method(method), [f"org/{number}" for number in range(count)]
    base = "org/base" if known.takes_deltas(True) or known.base_role == "first" else None
    given = {"t": 0.5} if method == "slerp" else {}
    if count in MODELS[method]:
        assert len(read(method, base=base, models=models, parameters=given).sources) >= count
        return
    found = [*(["org/base"] if method == "slerp" else []), *models]
    wanted = rf"{method} merges (exactly|at least) .* given {len(found)}: {', '.join(found)}; "
    with pytest.raises(RecipeError, match=wanted):
        read(method, base=base, models=models, parameters=given)


def test_slerp_begins_with_the_base() -> None:
    for models in (["org/a"], ["org/a", "org/base"], ["org/base", "org/a"]):
        made = read("slerp", base="org/base", models=models, parameters={"t": 0.5})
        assert [source.label for source in made.experts] == ["org/base", "org/a"]
        assert made.base is made.experts[0]
    with pytest.raises(RecipeError, match="slerp needs a base model: name the one to begin with"):
        read("slerp", models=["org/a", "org/b"], parameters={"t": 0.5})
    with pytest.raises(RecipeError, match="slerp needs t: write it under the top-level parameters"):
        read("slerp", base="org/a", models=["org/b"])


def test_a_slice_of_one_model_alone_is_that_model() -> None:
    for name in ("slerp", "nuslerp"):
        get_method(name).check_models(["org/a"], "org/base", in_slice=True)
        get_method(name).check_models(["org/a"], None, in_slice=True)  # the base is elsewhere
    with pytest.raises(RecipeError, match="model_stock merges at least two models, besides the"):
        get_method("model_stock").check_models(["org/a"], "org/base", in_slice=True)


def test_a_base_is_an_input_where_no_deltas_are_taken() -> None:
    made = read("karcher", base="org/base", models=TWO["models"])
    assert [source.label for source in made.experts] == ["org/a", "org/b", "org/base"]
    with pytest.raises(RecipeError, match="passthrough merges exactly one model, the base among"):
        read("passthrough", base="org/base", models=["org/a"])


@pytest.mark.parametrize("name", ["tise", "Ties", "dare-ties", "task_arithmetics"])
def test_a_misspelt_method_suggests_the_nearest(name) -> None:
    with pytest.raises(RecipeError, match=f"unknown method '{name}'; did you mean "):
        read(name, **TWO)


@pytest.mark.parametrize("true", [True, 1, 1.0, "true"])
def test_flags_as_recipes_write_them(true) -> None:
    assert spec("breadcrumbs_ties", normalize=true).normalize is True
    assert spec("ties", rescale=true).rescale == "l1"


def test_whole_numbers_with_a_point() -> None:
    assert spec("dare_ties", seed=5.0).seed == 5

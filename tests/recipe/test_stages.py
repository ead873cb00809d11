"""Recipes of several documents: their order, their names, and what wrong ones are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekern.errors import RecipeError
from mergekern.recipe import has_stages, read, read_stages


def document(models: str, name: str = "", **keys: str) -> str:
    lines = [f"name: {name}"] if name else []
    lines += ["merge_method: linear", "models:", *(f"- model: {m}" for m in models.split())]
    return "\n".join([*lines, *(f"{key}: {value}" for key, value in keys.items())]) + "\n"


def text(*documents: str) -> str:
    return "---\n".join(documents)


def stages(*documents: str) -> dict[str, tuple[str, ...]]:
    return {stage.name: stage.needs for stage in read_stages(text(*documents), Path("mid"))}


def test_stages_come_behind_those_they_read() -> None:
    found = read_stages(
        text(
            document("second org/c first+org/l"),
            document("org/a first", "second"),
            document("org/a org/b", "first"),
        ),
        Path("mid"),
    )
    assert [(stage.name, stage.needs) for stage in found] == [
        ("first", ()),
        ("second", ("first",)),
        ("", ("second", "first")),
    ]
    assert [source.where for source in found[1].recipe.sources] == ["org/a", "mid/first"]
    last = [source.label for source in found[2].recipe.sources]
    assert last == ["mid/second", "org/c", "mid/first+org/l"]
    assert all(stage.recipe.notes == () for stage in found)


def test_the_result_has_no_name_or_is_read_by_no_other() -> None:
    assert list(stages(document("org/a", "x"), document("x", "y"))) == ["x", ""]
    assert list(stages(document("org/a"), document("org/b", "unused"))) == ["unused", ""]


def test_references_in_every_place_name_stages() -> None:
    block = "{source: x, tokens: {t: {source: {kind: model_token, model: y, token_id: 1}}}}"
    made = stages(
        document("org/a", "x"),
        document("org/a", "y"),
        document("org/a", "z"),
        document("org/b", base_model="z", parameters="{weight: 1}", tokenizer=block),
    )
    assert sorted(made[""]) == ["x", "y", "z"]


def test_one_document_has_no_stages() -> None:
    assert not has_stages("---\n" + document("org/a", "x") + "---\n")
    assert not has_stages("ties") and not has_stages({"merge_method": "ties"})
    assert has_stages(text(document("org/a", "x"), document("x")))
    with pytest.raises(RecipeError, match="recipe: holds 2 documents; want one"):
        read(text(document("org/a", "x"), document("x")))


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ((document("y", "x"), document("x", "y"), document("x")), "wait for one another: [xy] rea"),
        ((document("x", "x"), document("x")), "wait for one another: x reads x"),
        ((document("org/a", "x"), document("org/b", "x")), "^recipe:6: the name 'x' is given twi"),
        ((document("org/a"), document("org/b")), "documents without a name are given twice"),
        ((document("org/a", "x"), document("org/b", "y")), "no other stage reads x and y"),
        ((document("org/a", "../x"), document("x")), "^recipe:1: name is '../x'; want one that"),
        ((document("org/a", "3"), document("x")), "^recipe:1: name is 3; want one that"),
        ((document("org/a", "x"), document("x", grid="{weight: [1]}")), "^recipe:9: grid: a stage"),
        ((document("org/a", "x"), document("x", dtpe="float16")), "^recipe:9: .*mean 'dtype'"),
    ],
)
def test_stages_that_cannot_be_meant(documents, message) -> None:
    with pytest.raises(RecipeError, match=message):
        stages(*documents)

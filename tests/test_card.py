"""The model card."""

from __future__ import annotations

import torch
import yaml

from mergekern.card import model_card
from mergekern.checkpoint.memory import MemoryCheckpoint
from mergekern.options import Options
from mergekern.plan import Plan
from mergekern.planner import build_plan
from mergekern.recipe import Recipe, read


def made(models: list[str], base: str, **options: object) -> tuple[Recipe, Plan]:
    recipe = read("dare_ties", models=models, base=base, **options)
    state = {"w": torch.zeros(2), "ids": torch.zeros(1, dtype=torch.int64)}
    opened = [MemoryCheckpoint(source.label, state) for source in recipe.sources]
    opened[-1] = MemoryCheckpoint("last", {**state, "w": torch.zeros(3)})
    return recipe, build_plan(recipe, opened, Options(mismatch="skip-model"))


def test_the_card_tells_how_it_was_made(tmp_path) -> None:
    local = tmp_path / "experts" / "code"
    local.mkdir(parents=True)
    recipe, plan = made(["org/math@v1", str(local)], "org/base", seed=7)
    text = model_card(recipe, plan)
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": ["org/base", "org/math"],
        "library_name": "transformers",
        "tags": ["mergekern", "merge"],
    }
    assert "[arXiv:2311.03099](https://arxiv.org/abs/2311.03099)" in body
    assert "| [org/math@v1](https://huggingface.co/org/math) | 1 | 1 |" in body
    assert "| code | 1 | 1 |" in body
    assert "Random numbers come from seed 7." in body
    assert "- ids: equal in every model" in body
    assert "- w of code: has shape [3], org/base has [2]" in body
    assert str(tmp_path) not in text


def test_the_cards_recipe_is_a_recipe() -> None:
    recipe, plan = made(["org/a", "org/b"], "org/base", preset="paper")
    block = model_card(recipe, plan).split("```yaml\n")[1].split("```")[0]
    assert read(block).parameters == recipe.parameters


def test_a_card_without_hub_models_names_no_base() -> None:
    recipe = read("linear", models=[{"w": torch.zeros(2)}])
    opened = [MemoryCheckpoint("models[0]", {"w": torch.zeros(2)})]
    text = model_card(recipe, build_plan(recipe, opened))
    assert "base_model" not in text
    assert "## Left out" not in text


def test_folders_of_one_name_stay_apart_in_the_recipe() -> None:
    recipe, plan = made(["/x/math/last", "/x/code/last"], "/x/base")
    block = model_card(recipe, plan).split("```yaml\n")[1].split("```")[0]
    assert [source.label for source in read(block).sources] == ["x/base", "math/last", "code/last"]

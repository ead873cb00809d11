"""A recipe written out as plain data, so that it can be read, published and run again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergekern.dtypes import dtype_name

if TYPE_CHECKING:  # recipes write themselves with this module
    from mergekern.recipe.recipe import Recipe


def written(recipe: Recipe) -> dict[str, Any]:
    """The recipe in the format of recipe files, every parameter written out."""
    per_model = [p.name for p in recipe.method.parameters if p.per_model]
    content: dict[str, Any] = {
        "merge_method": recipe.method.name,
        "models": [
            {
                "model": source.label,
                "parameters": {name: recipe.parameters[name][place] for name in per_model},
            }
            for place, source in enumerate(recipe.experts)
        ],
    }
    if recipe.base is not None:
        content["base_model"] = recipe.base.label
    shared = {k: v for k, v in recipe.parameters.items() if k not in per_model}
    if shared:
        content["parameters"] = shared
    for key, dtype in (("dtype", recipe.dtype), ("out_dtype", recipe.out_dtype)):
        if dtype is not None:
            content[key] = dtype_name(dtype)
    return content

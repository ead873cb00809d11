"""What is compared: every method with every option, and every part of the recipe format.

Recipes are mergekit's; models have their names in architectures.SEEDS, for which text() puts paths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

WEIGHTS = {"base": 0.5, "a": 0.7, "b": 0.4, "c": 1.1, "far": 0.6}


@dataclass(frozen=True)
class Case:
    """One recipe, or several documents of one.

    main:    compared on every architecture, the rest on one
    random:  draws numbers, so that only distributions and the rule given the mask can agree
    wants:   models besides those that every architecture has
    on:      architectures, where not all can have it
    """

    method: str
    label: str
    documents: tuple[Mapping[str, Any], ...]
    main: bool = False
    random: bool = False
    wants: tuple[str, ...] = ()
    on: tuple[str, ...] = ("llama",)

    @property
    def name(self) -> str:
        return f"{self.method}: {self.label}" if self.label else self.method

    def text(self, folders: Mapping[str, Path], **more: Any) -> str:
        """The recipe as YAML; more: top-level keys, as dtype."""
        filled = [_with_paths(document, folders) | more for document in self.documents]
        return yaml.safe_dump_all(filled, sort_keys=False)

    def ours(self, folders: Mapping[str, Path]) -> str:
        """The same, without the padding that mergekit always drops where it builds a tokenizer."""
        filled = [_with_paths(document, folders) for document in self.documents]
        for document in filled:
            source = document.pop("tokenizer_source", None)
            if source is not None or "tokenizer" in document:
                asked = document.get("tokenizer") or {"source": source}
                document["tokenizer"] = {"padding": "drop", **asked}
        return yaml.safe_dump_all(filled, sort_keys=False)


def _with_paths(value: Any, folders: Mapping[str, Path], key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {k: _with_paths(v, folders, k) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_paths(v, folders) for v in value]
    named = key in ("model", "base_model", "source", "tokenizer_source") and value in folders
    return str(folders[value]) if named else value


def method(
    name: str,
    label: str = "",
    *,
    models: Sequence[str] = ("a", "b", "c"),
    base: bool = True,
    each: Mapping[str, Any] | None = None,
    weights: Mapping[str, float] | None = WEIGHTS,
    random: bool = False,
    **shared: Any,
) -> Case:
    """each: parameters that every model is given; shared: those of the recipe."""
    entries = []
    for model in models:
        parameters = dict(each or {}) | ({"weight": weights[model]} if weights else {})
        entries.append(
            {"model": model, "parameters": parameters} if parameters else {"model": model}
        )
    recipe: dict[str, Any] = {"merge_method": name, "models": entries}
    if base:
        recipe["base_model"] = "base"
    if shared:
        recipe["parameters"] = {key.removesuffix("_"): value for key, value in shared.items()}
    return Case(name, label, (recipe,), main=not label, random=random)


def trimmed(name: str, density: float = 0.3, **more: Any) -> list[Case]:
    """What all methods that trim can be told. more: what every one of them is given besides."""
    each = {"density": density, **more}
    return [
        method(name, each=each),
        method(name, "normalize true", each=each, normalize=True),
        method(name, "normalize false", each=each, normalize=False),
        method(name, "rescale", each=each, rescale=True),
        method(name, "lambda", each=each, lambda_=0.6),
        method(name, "whole", each={"density": 1.0}),
        method(name, "negative weight", each=each, weights=WEIGHTS | {"b": -0.4}),
        method(name, "weights cancel", each=each, weights={"a": 0.5, "b": -0.5}, models=("a", "b")),
        method(name, "one model", each=each, models=("a",)),
        method(name, "int8_mask", each=each, int8_mask=True),
    ]


def dropped(name: str, **more: Any) -> list[Case]:
    each = {"density": 0.5, **more}
    one = {"models": ("a",), "each": each, "random": True}
    return [
        method(name, each=each, random=True),
        method(name, "one model", **one),
        method(name, "not rescaled", **one, rescale=False),
        method(name, "whole", each={"density": 1.0}),
        method(name, "whole, normalize", each={"density": 1.0}, normalize=True),
        method(name, "whole, lambda", each={"density": 1.0}, lambda_=0.6),
    ]


PAIR, SPHERE = ("a", "b"), ("a", "far")
METHODS: tuple[Case, ...] = (
    method("linear", base=False),
    method("linear", "normalize false", base=False, normalize=False),
    method("linear", "negative weight", base=False, weights=WEIGHTS | {"b": -0.4}),
    method("linear", "with the base", models=("base", "a", "b")),
    method("linear", "one model", models=("a",), base=False),
    method("slerp", models=("base", "far"), weights=None, t=0.3),
    method("slerp", "fine-tune", models=("base", "a"), weights=None, t=0.6),
    method("slerp", "t 0", models=("base", "far"), weights=None, t=0),
    method("slerp", "t 1", models=("base", "far"), weights=None, t=1),
    method("slerp", "base not listed", models=("far",), weights=None, t=0.3),
    method("nuslerp", models=SPHERE, base=False),
    method("nuslerp", "deltas", models=SPHERE),
    method("nuslerp", "deltas of fine-tunes", models=PAIR),
    method("nuslerp", "by rows", models=SPHERE, base=False, nuslerp_flatten=False),
    method(
        *("nuslerp", "by columns"),
        **{"models": SPHERE, "base": False, "nuslerp_flatten": False, "nuslerp_row_wise": True},
    ),
    method("nuslerp", "deltas by rows", models=PAIR, nuslerp_flatten=False),
    method(
        *("nuslerp", "weights cancel"),
        **{"models": SPHERE, "base": False, "weights": {"a": 0.5, "far": -0.5}},
    ),
    method("multislerp", models=("a", "b", "far"), base=False),
    method("multislerp", "deltas"),
    method("multislerp", "not normalised", base=False, normalize_weights=False),
    method("multislerp", "eps", models=("a", "b", "far"), base=False, eps=1e-4),
    method("multislerp", "one model", models=("a",), base=False),
    method("karcher", models=("a", "b", "far"), base=False, weights=None),
    method("karcher", "fine-tunes", base=False, weights=None),
    method("karcher", "one step", models=SPHERE, base=False, weights=None, max_iter=1),
    method("karcher", "tol", models=("a", "b", "far"), base=False, weights=None, tol=1e-2),
    method("task_arithmetic"),
    method("task_arithmetic", "normalize", normalize=True),
    method("task_arithmetic", "lambda", lambda_=0.6),
    method("task_arithmetic", "density", each={"density": 0.3}),
    *trimmed("ties"),
    method("ties", "density 0.01", each={"density": 0.01}),
    method("ties", "density 0", each={"density": 0}),
    method("ties", "flags as numbers", each={"density": 0.3}, normalize=0, rescale=1.0),
    *trimmed("breadcrumbs", gamma=0.05),
    method("breadcrumbs", "default gamma", each={"density": 0.3}),
    method("breadcrumbs", "both do not fit", each={"density": 0.9, "gamma": 0.3}),
    method("breadcrumbs", "gamma 1", each={"density": 0.3, "gamma": 1.0}),
    *trimmed("breadcrumbs_ties", gamma=0.05),
    *dropped("dare_linear"),
    *dropped("dare_ties"),
    *dropped("della", epsilon=0.2),
    *dropped("della_linear", epsilon=0.2),
    method("sce", weights=None, select_topk=0.3),
    method("sce", "all", weights=None),
    method("sce", "far models", models=("a", "far"), weights=None, select_topk=0.3),
    method("sce", "int8_mask", weights=None, select_topk=0.3, int8_mask=True),
    method("model_stock", weights=None),
    method("model_stock", "two models", models=PAIR, weights=None),
    method("model_stock", "filter_wise", weights=None, filter_wise=True),
    method("model_stock", "far model", models=SPHERE, weights=None),
    method("nearswap", models=("a",), weights=None, t=0.0005),
    method("nearswap", "t 0", models=("a",), weights=None, t=0),
    method("nearswap", "t 1", models=("a",), weights=None, t=1),
    method("arcee_fusion", models=("a",), weights=None),
    method("arcee_fusion", "far model", models=("far",), weights=None),
    method("ram", weights=None),
    method("ram", "epsilon", weights=None, epsilon=1e-3),
    method("ramplus_tl", weights=None),
    method("ramplus_tl", "epsilon, r, alpha", weights=None, epsilon=1e-3, r=0.3, alpha=0.5),
    method("passthrough", models=("a",), base=False, weights=None),
    method(
        *("passthrough", "scale"),
        **{"models": ("a",), "base": False, "weights": None, "each": {"scale": 0.5}},
    ),
)

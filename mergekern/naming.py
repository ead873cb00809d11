"""Names that differ by how a model was saved: with a head or without, before and after a renaming.

layers.0.mlp.up_proj.weight          saved from LlamaModel
model.layers.0.mlp.up_proj.weight    saved from LlamaForCausalLM
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

_OLD = {"gamma": "weight", "beta": "bias"}  # of LayerNorm, in the first BERTs
_T = TypeVar("_T")


def renamed(stored: Mapping[str, _T], donor: Collection[str]) -> tuple[dict[str, _T], str]:
    """A model's tensors by the donor's names, and how names were changed, "" where they were not.

    Only where it makes more of them known to the donor, and no two the same.
    """
    found, how = dict(stored), ""
    if stored.keys() <= set(donor):
        return found, how
    prefix, adds = _prefix(stored, donor)
    for changed, text in (
        (_with_prefix(found, prefix, adds, donor), f"{'with' if adds else 'without'} {prefix!r}"),
        (_modern(found, donor), "LayerNorm's gamma and beta as weight and bias"),
    ):
        if len(changed) == len(found) and _known(changed, donor) > _known(found, donor):
            found, how = changed, text
    return found, how


def _known(names: Collection[str], donor: Collection[str]) -> int:
    return sum(name in donor for name in names)


def _prefix(stored: Mapping[str, _T], donor: Collection[str]) -> tuple[str, bool]:
    """What the donor's names begin with and these do not (True), or the other way round."""
    longest = max((name for name in stored if name not in donor), key=len, default="")
    for name in donor:
        if name.endswith("." + longest):
            return name.removesuffix(longest), True
    theirs = max(donor, key=len, default="")
    for name in stored:
        if name.endswith("." + theirs):
            return name.removesuffix(theirs), False
    return "", True


def _with_prefix(
    stored: Mapping[str, _T], prefix: str, adds: bool, donor: Collection[str]
) -> dict[str, _T]:
    if not prefix:
        return dict(stored)
    other = {name: prefix + name if adds else name.removeprefix(prefix) for name in stored}
    return {
        other[name]
        if name not in donor and other[name] in donor and other[name] not in stored
        else name: value
        for name, value in stored.items()
    }


def _modern(stored: Mapping[str, _T], donor: Collection[str]) -> dict[str, _T]:
    changed = {}
    for name, value in stored.items():
        head, dot, last = name.rpartition(".")
        modern = head + dot + _OLD.get(last, last)
        changed[modern if name not in donor and modern in donor else name] = value
    return changed

"""Models saved with and without a head have the same tensors under other names."""

from __future__ import annotations

from mergekern.naming import renamed

HEADED = ["model.embed.weight", "model.layers.0.up.weight", "lm_head.weight"]
BARE = ["embed.weight", "layers.0.up.weight"]


def names(stored, donor):
    found, how = renamed(dict.fromkeys(stored), donor)
    return list(found), how


def test_a_prefix_is_added_or_taken_off() -> None:
    assert names(BARE, HEADED) == (HEADED[:2], "with 'model.'")
    assert names(HEADED, BARE) == ([*BARE, "lm_head.weight"], "without 'model.'")


def test_equal_names_stay() -> None:
    assert names(HEADED, HEADED) == (HEADED, "")
    assert names(["a.b", "model.a.b"], ["a.b", "model.a.b"]) == (["a.b", "model.a.b"], "")
    assert names([], HEADED) == ([], "")


def test_two_tensors_never_become_one() -> None:
    both = ["a.b", "model.a.b", "longest.d"]
    donor = ["model.a.b", "model.longest.d"]
    assert names(both, donor)[0] == ["a.b", "model.a.b", "model.longest.d"]


def test_old_layer_norms_get_their_names_of_today() -> None:
    old = ["bert.LayerNorm.gamma", "bert.LayerNorm.beta"]
    new = ["bert.LayerNorm.weight", "bert.LayerNorm.bias"]
    assert names(old, new) == (new, "LayerNorm's gamma and beta as weight and bias")
    assert names(old, old) == (old, "")

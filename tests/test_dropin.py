"""mergekit's options are taken under their own names, and mean here what they can."""

from __future__ import annotations

import pytest
import torch

import mergekern
from mergekern.dropin import ours_of, translated
from mergekern.errors import RecipeError

OWN = {"--device", "--quiet", "--threads", "--seed"}


def test_a_command_line_of_mergekits() -> None:
    given = (
        "recipe.yml out --cuda --random-seed 7 -j 4 --out-shard-size 2B --lazy-unpickle "
        "--lora-merge-cache /tmp/x --no-low-cpu-memory --device cuda:1 --quiet"
    )
    ours, notes = translated(given.split(), OWN)
    assert " ".join(ours) == (
        "recipe.yml out --device cuda --seed 7 --threads 4 --max-shard-size 2GB "
        "--device cuda:1 --quiet"
    )
    assert [note.split()[0] for note in notes] == ["--lazy-unpickle", "--lora-merge-cache"]
    assert notes[0].endswith("no code in them is run")


def test_values_behind_an_equals_sign() -> None:
    assert translated(["--random-seed=3", "--num-threads=2"], OWN) == (
        ["--seed", "3", "--threads", "2"],
        [],
    )


def test_what_is_ours_or_unknown_is_left_alone() -> None:
    given = ["ties", "out", "--device", "cpu", "--param", "x=1", "--nonsense", "--", "--cuda"]
    assert translated(given, OWN) == (given, [])


def test_names_in_python() -> None:
    ours, notes = ours_of(
        {"cuda": False, "random_seed": 3, "async_write": True, "multi_gpu": False, "num_threads": 2}
    )
    assert ours == {"seed": 3, "threads": 2}
    assert notes == ["async_write has nothing to do: reading, merging and writing overlap anyway"]


def test_what_cannot_be_is_an_error() -> None:
    with pytest.raises(RecipeError, match="safetensors alone"):
        translated(["--no-safe-serialization"], OWN)
    with pytest.raises(RecipeError, match="--random-seed is 'x'; want a whole number"):
        translated(["--random-seed", "x"], OWN)
    with pytest.raises(RecipeError, match="--num-threads wants a value"):
        translated(["--num-threads"], OWN)


def test_short_flags_together_and_sizes_in_billions() -> None:
    ours, notes = translated(["-vvj2", "-j", "3", "--out-shard-size", "1.5b"], OWN)
    assert ours == ["--threads", "2", "--threads", "3", "--max-shard-size", "1.5GB"]
    assert len(notes) == 2
    given = ["--no-random-seed", "5", "--lazy-unpickle=1"]  # which are no flags
    assert translated(given, OWN) == (given, [])


MERGEKITS = {  # some of what MergeOptions().model_dump() has
    **{"allow_crimes": False, "cuda": False, "device": "cpu", "copy_tokenizer": True},
    **{"num_threads": 2, "out_shard_size": 5_000_000_000, "random_seed": None, "verbosity": 0},
}


def test_a_plan_takes_what_a_merge_takes() -> None:
    models = [{"a": torch.ones(2)}, {"a": torch.zeros(2)}]
    grid = {"merge_method": "linear", "models": [{"model": m} for m in models]}
    grid["grid"] = {"weight": [[1, 0], [0, 1]]}
    found = mergekern.plan("linear", models=models, weight=1, options=MERGEKITS)
    assert len(found.steps) == 1
    assert len(mergekern.plan_many(grid, options=MERGEKITS).plans) == 2
    with pytest.raises(RecipeError, match="no parameter 'threads'"):
        mergekern.plan("linear", models=models, weight=1, threads=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([1], "options is .*; want a mapping"),
        ({"recipe_or_method": "x"}, "no option 'recipe_or_method'"),
        ({"parameters": {}}, "no option 'parameters'"),
        ({"random_seed": [1]}, r"random_seed is \[1\]; want a whole number"),
        ({"mismatch": []}, r"mismatch is \[\]"),
    ],
)
def test_options_that_are_none(options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        mergekern.merge("linear", models=[{"a": torch.ones(2)}], weight=1, options=options)

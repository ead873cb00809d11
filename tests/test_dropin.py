"""mergekit's options are taken under their own names, and mean here what they can."""

from __future__ import annotations

import pytest

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

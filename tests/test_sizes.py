"""Sizes as people write them."""

from __future__ import annotations

import pytest

from mergekern.errors import RecipeError
from mergekern.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30),
        ("5GB", 5 * 10**9),
        ("5G", 5 * 10**9),
        (" 1.5 kib ", 1536),
        (4096, 4096),
        ("4096", 4096),
        ("100MB", 10**8),
    ],
)
def test_parse(text, size) -> None:
    assert parse_size(text, "max_memory") == size


@pytest.mark.parametrize("text", ["", "8 gigs", "-1GB", 0, True, "GB", "1e9", None])
def test_wrong_sizes_name_the_option(text) -> None:
    with pytest.raises(RecipeError, match=r"max_memory is .*; want a size like"):
        parse_size(text, "max_memory")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (2e12, "2.0 TB")]
)
def test_format(size, text) -> None:
    assert format_size(size) == text

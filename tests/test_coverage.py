"""Coverage: what is known to be there, however it came."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mergekern.coverage import Coverage

RANGES = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60), st.integers(1, 20)))


@given(before=RANGES, added=RANGES)
def test_one_by_one_is_all_at_once(
    before: list[tuple[str, int, int]], added: list[tuple[str, int, int]]
) -> None:
    coverage = Coverage(before)
    for found in added:
        coverage.add(*found)
    want = Coverage([*before, *added])
    assert sorted(coverage.ranges()) == want.ranges()
    assert coverage.nbytes == want.nbytes
    every = before + added
    there = {(f, byte) for f, begin, length in every for byte in range(begin, begin + length)}
    for file in "ab":
        missing = coverage.missing(file, 0, 90)
        assert {b for a, z in missing for b in range(a, z)} == {
            byte for byte in range(90) if (file, byte) not in there
        }

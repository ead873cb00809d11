"""Memory handed out in a ring, and bytes known to be right."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from mergekern.arena import Arena
from mergekern.coverage import Coverage

ARENA = Arena(1 << 20)


@given(st.lists(st.one_of(st.none(), st.integers(1, 1 << 20)), max_size=60))
def test_ring(requests: list[int | None]) -> None:
    """What is taken never overlaps, is aligned, and whatever fits an empty ring can be had."""
    taken: deque[tuple[int, int]] = deque()
    for nbytes in requests:
        begin = None if nbytes is None else ARENA.take(nbytes)
        if begin is None and taken:
            taken.popleft()
            ARENA.give()
        if nbytes is None:
            continue
        assert begin is not None or taken or ARENA.take(0) is not None
        if begin is not None:
            assert begin % 4096 == 0 and begin + nbytes <= ARENA.nbytes
            assert all(begin >= b + n or begin + nbytes <= b for b, n in taken)
            taken.append((begin, nbytes))
    for _ in range(len(ARENA._taken)):
        ARENA.give()


def test_arena_is_aligned() -> None:
    assert ARENA.address % (2 << 20) == 0
    ARENA.bytes[:3] = b"abc"
    assert bytes(ARENA.array[:3].tolist()) == b"abc"


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60), st.integers(1, 30))),
    st.integers(0, 80),
    st.integers(0, 80),
)
def test_coverage(ranges: list[tuple[str, int, int]], start: int, length: int) -> None:
    coverage = Coverage(ranges)
    known = {i for file, begin, size in ranges if file == "a" for i in range(begin, begin + size)}
    missing = coverage.missing("a", start, start + length)
    assert {start + i for first, last in missing for i in range(first, last)} == {
        i for i in range(start, start + length) if i not in known
    }
    assert all(first < last for first, last in missing)
    assert missing == sorted(missing)

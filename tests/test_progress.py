"""Progress where there is no terminal."""

from __future__ import annotations

import io

from rich.console import Console

from mergekern.bar import Bar
from mergekern.progress import Lines, Silent, choose_progress


def test_lines_come_now_and_then_and_at_the_end() -> None:
    stream = io.StringIO()
    lines = Lines(stream, every=3600)
    lines.start(2_000_000, 4)
    lines.advance(1_000_000, 1, "merge")
    assert stream.getvalue() == ""
    lines.stop()
    assert stream.getvalue().startswith("merge: 1/4 tensors, 1.0 MB of 2.0 MB, ")
    often = Lines(stream, every=0)
    often.start(0, 1)
    often.advance(0, 1, "thresholds")
    assert "thresholds: 1/1 tensors" in stream.getvalue()


def test_a_bar_counts_tensors() -> None:
    stream = io.StringIO()
    bar = Bar(Console(file=stream, force_terminal=True, width=120))
    bar.start(100, 2)
    bar.advance(100, 2, "merge")
    bar.stop()
    assert "2/2 tensors" in stream.getvalue()


def test_what_is_chosen(capsys) -> None:
    assert isinstance(choose_progress(quiet=True), Silent)
    assert isinstance(choose_progress(), Lines)

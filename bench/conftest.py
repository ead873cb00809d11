"""Prints bytes, GB/s and the ratio to the floor behind pytest-benchmark's own table."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    rows = [b for b in session.benchmarks if "floor_s" in b.extra_info] if session else []
    if not rows:
        return
    terminalreporter.section("against the floor: the same streams, a do-nothing op")
    head = f"{'':44s} {'MB':>6s} {'GB/s':>7s} {'floor':>7s} {'best':>6s} {'median':>6s}"
    terminalreporter.write_line(head)
    for row in rows:
        info = row.extra_info
        gb = info["bytes"] / 1e9
        line = (
            f"{row.name:44s} {1e3 * gb:6.0f} {gb / row.stats.min:7.1f}"
            f" {gb / info['floor_s']:7.1f} {info['floor_s'] / row.stats.min:6.2f}"
            f" {info['floor_median_s'] / row.stats.median:6.2f}"
        )
        terminalreporter.write_line(line)

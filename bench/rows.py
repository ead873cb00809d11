"""A figure beside its floor or peer: how it is judged, printed and stored.

`measured` is made of the least time of either side, which neighbours on the machine disturb least;
the spread is of the same figure taken round by round.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from timing import Times

HEAD = ("measured", "min", "median", "max", "wanted", "", "beside it")


@dataclass(frozen=True)
class Row:
    """One line. `beside` says what it is measured against; wanted is None for information."""

    what: str
    unit: str
    measured: float
    rounds: tuple[float, ...]
    wanted: float | None = None
    at_most: bool = False
    beside: str = ""
    detail: dict[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.wanted is None:
            return None
        return self.measured <= self.wanted if self.at_most else self.measured >= self.wanted

    @property
    def verdict(self) -> str:
        return {None: "", True: "met", False: "MISSED"}[self.met]

    def as_json(self) -> dict[str, Any]:
        spread = {
            "min": min(self.rounds),
            "median": statistics.median(self.rounds),
            "max": max(self.rounds),
            "rounds": len(self.rounds),
        }
        return asdict(self) | {"rounds": spread, "met": self.met}

    def cells(self) -> list[str]:
        spread = (min(self.rounds), statistics.median(self.rounds), max(self.rounds))
        return [
            self.what,
            f"{_short(self.measured)} {self.unit}",
            *(_short(value) for value in spread),
            _bound(self.wanted, self.at_most),
            self.verdict,
            self.beside,
        ]


def of_floor(what: str, floor: Times, ours: Times, nbytes: int, wanted: float | None = None) -> Row:
    """The share of the floor's speed that is reached."""
    rounds = tuple(f / o for f, o in zip(floor.wall, ours.wall, strict=True))
    return Row(
        what,
        "of the floor",
        floor.best / ours.best,
        rounds,
        wanted,
        beside=f"floor {_seconds(floor.best)}, {nbytes / floor.best / 1e9:.1f} GB/s",
        detail={
            "floor_s": floor.best,
            "seconds": ours.best,
            "cpu_s": ours.best_cpu,
            "GB_per_s": nbytes / ours.best / 1e9,
            "floor_GB_per_s": nbytes / floor.best / 1e9,
        },
    )


def less_cpu(what: str, peer: Times, ours: Times, wanted: float | None = None) -> Row:
    """How many times the peer's CPU time is ours."""
    return Row(
        what,
        "× less CPU",
        peer.best_cpu / ours.best_cpu,
        tuple(peer.best_cpu / cpu for cpu in ours.cpu),
        wanted,
        beside=f"{_seconds(peer.best_cpu)} against {_seconds(ours.best_cpu)}",
        detail={
            "peer_cpu_s": peer.best_cpu,
            "peer_s": peer.best,
            "cpu_s": ours.best_cpu,
            "seconds": ours.best,
            "wall_ratio": peer.best / ours.best,
        },
    )


def show(parts: dict[str, list[Row]]) -> None:
    """One table; aligned text where nobody looks at a terminal."""
    console = Console()
    if not console.is_terminal:
        print(_plain(parts))
        return
    table = Table("", *HEAD)
    for name, rows in parts.items():
        table.add_section()
        table.add_row(f"[bold]{name}")
        for row in rows:
            table.add_row(*row.cells(), style={False: "red", True: "green"}.get(row.met))
    console.print(table)


def _plain(parts: dict[str, list[Row]]) -> str:
    lines = [["", *HEAD]]
    for name, rows in parts.items():
        lines += [[f"[{name}]", *("",) * len(HEAD)], *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def markdown(found: dict[str, Any]) -> str:
    """The rows of a JSON file of results, as a table for a README."""
    lines = [
        "| figure | measured | spread over rounds | wanted | beside it |",
        "|---|---|---|---|---|",
    ]
    for row in (row for rows in found["parts"].values() for row in rows):
        spread = row["rounds"]
        missed = " (missed)" if row["met"] is False else ""
        cells = (
            row["what"],
            f"{_short(row['measured'])} {row['unit']}",
            f"{_short(spread['min'])} – {_short(spread['max'])}",
            _bound(row["wanted"], row["at_most"]) + missed,
            row["beside"],
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _bound(wanted: float | None, at_most: bool) -> str:
    return "" if wanted is None else f"{'≤' if at_most else '≥'} {wanted:g}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"

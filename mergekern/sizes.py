"""Numbers of bytes as people write and read them."""

from __future__ import annotations

import re

from mergekern.errors import RecipeError

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_size(size: int | str, name: str) -> int:
    """8GiB, "5 GB", 4096 -> bytes; K, M, G, T alone are powers of 1000.

    name: the option's name. Raises RecipeError naming it.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    unit = match[2].upper() if match else ""
    factor = UNITS.get(unit, UNITS.get(unit + "B"))
    if isinstance(size, bool) or match is None or factor is None or float(match[1]) <= 0:
        raise RecipeError(f'{name} is {size!r}; want a size like "8GiB", "500MB" or a number')
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def format_size(size: float) -> str:
    """Bytes in the largest unit that leaves a number of at least 1."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def mib(size: int) -> str:
    """Bytes rounded up to whole MiB: a limit that is just large enough."""
    return f"{-(-size // (1 << 20))} MiB"

"""Methods that are plain functions over tensors: what their fused pass calls, and with what.

    out = call(base, experts, [found,] **parameters)

runs on pieces of a tensor that stay in cache; which pieces, nobody promises. So a function sees
flat tensors whose elements it treats one by one. What it has to know of a whole tensor, its survey
finds out before; see survey.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mergekern.dtypes import DType, to_torch
from mergekern.lazily import torch


@dataclass(frozen=True)
class PerRow:
    """A number for each row of a tensor: its runs of `width` elements.  values: fp64 [rows]"""

    values: torch.Tensor
    width: int

    def at(self, offset: int, numel: int) -> torch.Tensor:
        """Of elements [offset, offset + numel), the number of each one's row."""
        first, last = offset // self.width, (offset + numel - 1) // self.width
        if first == last:
            return self.values[first].expand(numel)
        counts = torch.full((last - first + 1,), self.width, device=self.values.device)
        counts[0] -= offset - first * self.width
        counts[-1] -= (last + 1) * self.width - (offset + numel)
        return self.values[first : last + 1].repeat_interleave(counts, output_size=numel)


@dataclass(frozen=True)
class PerColumn:
    """A number for each column of a tensor: elements `width` apart.  values: fp64 [width]"""

    values: torch.Tensor

    def at(self, offset: int, numel: int) -> torch.Tensor:
        """Of elements [offset, offset + numel), the number of each one's column."""
        width = len(self.values)
        first = offset % width
        rows = -(-(first + numel) // width)
        return self.values.repeat(rows)[first : first + numel]


Found: TypeAlias = "Mapping[str, torch.Tensor | PerRow | PerColumn]"


@dataclass(frozen=True)
class Function:
    """A function and the parameters it is called with.

    call:    (base or None, experts), then what the survey found if there is one, then the
             parameters by name. Tensors are copies, flat, in the work dtype; so is the result
    survey:  (survey.Survey, **parameters) -> Found, what is to be known of the whole tensor
    digest:  sha256 of the source, which stands for both: another function of the same name is
             another method
    """

    name: str
    call: Callable[..., torch.Tensor] = field(compare=False)
    survey: Callable[..., Found] | None = field(compare=False)
    digest: str
    parameters: tuple[tuple[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON: what tells it from every other function."""
        return {"name": self.name, "sha256": self.digest, "parameters": dict(self.parameters)}


def values_at(
    found: Found, offset: int, numel: int, work: DType, device: torch.device
) -> dict[str, torch.Tensor]:
    """What was found as a function gets it: tensors of the work dtype, which rows and columns give
    a value for every element."""
    values = {}
    for name, value in found.items():
        here = value if isinstance(value, torch.Tensor) else value.at(offset, numel)
        values[name] = here.to(device=device, dtype=to_torch(work))
    return values

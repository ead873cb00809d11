"""A recipe resolved against headers: one step per output tensor, every byte of the output placed.

A plan is plain data. Building one reads headers and configs only, so it fails in seconds or not at
all; nothing after it looks at the recipe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from mergekern.spec import Spec


@dataclass(frozen=True)
class Input:
    """One tensor of one model: `model` indexes the plan's models, `name` is its name there."""

    model: int
    name: str


@dataclass(frozen=True)
class Step:
    """One output tensor.

    merge: a fused op over base and experts. `expert_index[j]` is the place of experts[j] among the
           recipe's experts, which names its coin and its model-scope threshold.
    copy:  the bytes of experts[0]; the other experts must hold equal bytes (discrete tensors).
    """

    name: str
    action: Literal["merge", "copy"]
    dtype: torch.dtype
    shape: tuple[int, ...]
    base: Input | None
    experts: tuple[Input, ...]
    expert_index: tuple[int, ...]
    work: torch.dtype = torch.float32
    spec: Spec | None = None
    note: str = ""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

"""torch, loaded when something of it is first used: that takes seconds, and files merge without."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from typing_extensions import TypeIs
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            found = getattr(import_module("torch"), name)
            setattr(self, name, found)
            return found

    torch = _Torch()


def load() -> None:
    import_module("torch")


def is_tensor(value: object) -> TypeIs[torch.Tensor]:
    """isinstance() that does not load torch: before somebody has, there are no tensors."""
    return "torch" in sys.modules and isinstance(value, torch.Tensor)


def is_module(value: object) -> TypeIs[torch.nn.Module]:
    return "torch" in sys.modules and isinstance(value, torch.nn.Module)


def is_dtype(value: object) -> TypeIs[torch.dtype]:
    return "torch" in sys.modules and isinstance(value, torch.dtype)

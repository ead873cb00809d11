"""What may be asked of a collection, checked before anything is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from mergekern.collect.fisher import LABELS
from mergekern.dtypes import parse_dtype, to_torch
from mergekern.errors import CollectError
from mergekern.lazily import torch

Kind = Literal["fisher", "gram", "masks", "regmean_plusplus"]
KINDS: tuple[Kind, ...] = ("fisher", "gram", "masks", "regmean_plusplus")
OF: dict[str, tuple[Kind, ...]] = {
    "labels": ("fisher",),
    "embeddings": ("fisher", "masks"),
    "base": ("masks", "regmean_plusplus"),
    **dict.fromkeys(("sparsity", "bias", "rate", "l1", "epochs"), ("masks",)),
    **dict.fromkeys(("weight", "reduction", "singular", "rest"), ("regmean_plusplus",)),
}


def check_choices(
    kind: str, labels: str, samples: int, max_length: int, base: str | Path | None = None
) -> None:
    for name, value, choices in (("kind", kind, KINDS), ("labels", labels, LABELS)):
        if value not in choices:
            raise CollectError(f"{name} is {value!r}; want one of {', '.join(choices)}")
    for name, number, least in (("samples", samples, 1), ("max_length", max_length, 2)):
        if number < least:
            raise CollectError(f"{name} is {number}; want {least} or more")
    if kind == "masks" and base is None:
        raise CollectError("masks needs the base that the model was fine-tuned from: give --base")


def check_meant(kind: str, given: Mapping[str, Any], call: Callable[..., Any]) -> None:
    """Raise CollectError for options, given to a call, that mean nothing for the kind.

    given: by name, those of the call's parameters that may be of one kind alone
    """
    defaults = inspect.signature(call).parameters
    for name, kinds in OF.items():
        if name in given and kind not in kinds and given[name] != defaults[name].default:
            raise CollectError(
                f"{name} is an option of {' and '.join(kinds)}, and {kind} is collected: leave it "
                "out"
            )


def run_in(dtype: str | None, device: str) -> str | None:
    """The dtype that is asked for; if none, float32 on a CPU, as most are several times slower at
    narrower ones, and elsewhere what the model is stored in, None."""
    return "float32" if dtype is None and device == "cpu" else dtype


def torch_dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else to_torch(parse_dtype(name))

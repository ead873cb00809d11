"""Element types: their names in files and recipes, and which of them merge.

They are numpy's, with ml_dtypes' for what numpy lacks. torch's have the same names; torch itself is
only loaded by those who have tensors. Where there may be none, ask `is None` first: None equals
numpy's float64.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from mergekern.errors import RecipeError
from mergekern.lazily import torch

DType = np.dtype[Any]

FLOAT64, FLOAT32, FLOAT16 = (np.dtype(t) for t in (np.float64, np.float32, np.float16))
BFLOAT16: DType = np.dtype(ml_dtypes.bfloat16)
INT64, INT32, UINT8 = (np.dtype(t) for t in (np.int64, np.int32, np.uint8))

SAFETENSORS: dict[str, DType] = {
    "F64": FLOAT64,
    "F32": FLOAT32,
    "F16": FLOAT16,
    "BF16": BFLOAT16,
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "C64": np.dtype(np.complex64),
    "I64": INT64,
    "I32": INT32,
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": UINT8,
    "BOOL": np.dtype(np.bool_),
}
SAFETENSORS_NAME = {dtype: name for name, dtype in SAFETENSORS.items()}

# Float types that widen exactly to the work dtype, and so can be merged.
MERGEABLE = (FLOAT64, FLOAT32, FLOAT16, BFLOAT16)

# Copied when equal in every model, never averaged.
DISCRETE = tuple(dtype for name, dtype in SAFETENSORS.items() if name[0] in "IU" or name == "BOOL")


@cache  # numpy makes a name anew each time it is asked, and plans ask for each tensor
def dtype_name(dtype: DType | torch.dtype) -> str:
    """ "bfloat16", as recipes and config.json write it."""
    return dtype.name if isinstance(dtype, np.dtype) else str(dtype).removeprefix("torch.")


SHORT = {"bf16": BFLOAT16, "fp16": FLOAT16, "fp32": FLOAT32}


def parse_dtype(text: str) -> DType:
    """A dtype as recipes write it, with or without `torch.`; it must be one that merges."""
    if text in SHORT:
        return SHORT[text]
    for dtype in MERGEABLE:
        if text.removeprefix("torch.") == dtype.name:
            return dtype
    known = ", ".join(dtype.name for dtype in MERGEABLE)
    raise RecipeError(f"dtype {text!r} is not one of {known}")


def work_dtype(dtypes: list[DType]) -> DType:
    """fp32 for everything but fp64, which is computed in fp64."""
    return FLOAT64 if FLOAT64 in dtypes else FLOAT32


@cache
def of_torch(dtype: torch.dtype) -> DType:
    """The dtype of that name. Raises KeyError for one that only torch has."""
    if only_in_torch(dtype):
        raise KeyError(dtype_name(dtype))
    return np.dtype(_numpy_type(dtype))


def only_in_torch(dtype: torch.dtype) -> bool:
    """Whether numpy has no such dtype, as for several numbers packed into one element."""
    return _numpy_type(dtype) is None


def _numpy_type(dtype: torch.dtype) -> type[Any] | None:
    name = dtype_name(dtype)
    return getattr(ml_dtypes, name, None) or getattr(np, name, None)


@cache
def to_torch(dtype: DType) -> torch.dtype:
    """torch's dtype of that name."""
    found: torch.dtype = getattr(torch, dtype.name)
    return found

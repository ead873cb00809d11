"""Element types: their names in files and recipes, and which of them merge."""

from __future__ import annotations

import torch

from mergekern.errors import RecipeError

SAFETENSORS: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SAFETENSORS_NAME = {dtype: name for name, dtype in SAFETENSORS.items()}

# Float types that widen exactly to the work dtype, and so can be merged.
MERGEABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# Copied when equal in every model, never averaged.
DISCRETE = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
)


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> "bfloat16", as recipes and config.json write it."""
    return str(dtype).removeprefix("torch.")


SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def parse_dtype(text: str) -> torch.dtype:
    """A dtype as recipes write it, with or without `torch.`; it must be one that merges."""
    if text in SHORT:
        return SHORT[text]
    for dtype in MERGEABLE:
        if text.removeprefix("torch.") == dtype_name(dtype):
            return dtype
    known = ", ".join(dtype_name(dtype) for dtype in MERGEABLE)
    raise RecipeError(f"dtype {text!r} is not one of {known}")


def work_dtype(dtypes: list[torch.dtype]) -> torch.dtype:
    """fp32 for everything but fp64, which is computed in fp64."""
    return torch.float64 if torch.float64 in dtypes else torch.float32

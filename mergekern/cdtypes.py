"""The compiled loops' own names of the dtypes that merge."""

from __future__ import annotations

from mergekern import _C
from mergekern.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64

C_DTYPES = {
    FLOAT64: _C.DType.f64,
    FLOAT32: _C.DType.f32,
    FLOAT16: _C.DType.f16,
    BFLOAT16: _C.DType.bf16,
}

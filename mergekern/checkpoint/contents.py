"""A checkpoint's tensors by name, and the same in columns for work on very many of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from itertools import count
from operator import attrgetter
from typing import Any

import numpy as np

from mergekern.checkpoint.base import TensorInfo
from mergekern.dtypes import DType


class Contents(dict[str, TensorInfo]):
    """Every tensor by name, in file order. Columns are made when first asked for, and kept, so that
    planning and every merge after it pay for them once.

    place:  name -> where in the columns
    dtypes, files: what the columns `dtype` and `file` number
    begin:  the first byte in the file
    """

    @cached_property
    def infos(self) -> tuple[TensorInfo, ...]:
        return tuple(self.values())

    @cached_property
    def place(self) -> dict[str, int]:
        return dict(zip(self, count(), strict=False))

    def places_of(self, names: Sequence[str]) -> np.ndarray:
        """Where in the columns some tensors are."""
        return np.fromiter(map(self.place.__getitem__, names), np.int64, len(names))

    @cached_property
    def nbytes(self) -> np.ndarray:
        return self._integers("nbytes")

    @cached_property
    def begin(self) -> np.ndarray:
        return self._integers("offset")

    @property
    def dtypes(self) -> Sequence[DType]:
        return self._dtypes[0]

    @property
    def dtype(self) -> np.ndarray:
        return self._dtypes[1]

    @property
    def files(self) -> Sequence[str]:
        return self._files[0]

    @property
    def file(self) -> np.ndarray:
        return self._files[1]

    @cached_property
    def _dtypes(self) -> tuple[list[Any], np.ndarray]:
        return self._numbered("dtype")

    @cached_property
    def _files(self) -> tuple[list[Any], np.ndarray]:
        return self._numbered("file")

    def _integers(self, field: str) -> np.ndarray:
        return np.fromiter(map(attrgetter(field), self.infos), np.int64, len(self))

    def _numbered(self, field: str) -> tuple[list[Any], np.ndarray]:
        """The distinct values of a field, and for each tensor which of them is its own."""
        values: list[Hashable] = list(map(attrgetter(field), self.infos))
        distinct = dict.fromkeys(values)
        number = dict(zip(distinct, count(), strict=False))
        return list(distinct), np.fromiter(map(number.__getitem__, values), np.int64, len(values))

"""Merge methods: each says what it needs and how to combine; kernels and files are elsewhere."""

from __future__ import annotations

from mergekern.methods import linear, model_stock, passthrough, spherical, task_vectors
from mergekern.methods.parameters import Doc, Parameter, nearest
from mergekern.methods.registry import Method, Preset, all_methods, get_method, method

__all__ = [
    "Doc",
    "Method",
    "Parameter",
    "Preset",
    "all_methods",
    "get_method",
    "linear",
    "method",
    "model_stock",
    "nearest",
    "passthrough",
    "spherical",
    "task_vectors",
]

"""Merge methods: each says what it needs and how to combine; kernels and files are elsewhere."""

from __future__ import annotations

# Registered in this order, which is that of the documentation.
from mergekern.methods import linear, model_stock, passthrough, spherical, task_vectors  # isort: skip
from mergekern.methods import elementwise, emr, fisher, regmean, sce, stitch, varm  # isort: skip
from mergekern.methods.functions import method
from mergekern.methods.parameters import Doc, Parameter, nearest
from mergekern.methods.plugins import load_plugin, load_plugins
from mergekern.methods.registry import Method, Preset, all_methods, get_method, method_of

__all__ = [
    "Doc",
    "Method",
    "Parameter",
    "Preset",
    "all_methods",
    "elementwise",
    "emr",
    "fisher",
    "get_method",
    "linear",
    "load_plugin",
    "load_plugins",
    "method",
    "method_of",
    "model_stock",
    "nearest",
    "passthrough",
    "regmean",
    "sce",
    "spherical",
    "stitch",
    "task_vectors",
    "varm",
]

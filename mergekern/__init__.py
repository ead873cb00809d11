"""Merges fine-tuned LLM checkpoints with compiled kernels, streaming, in bounded memory."""

from __future__ import annotations

from mergekern.api import MergeReport, merge, methods, plan
from mergekern.errors import MergeError
from mergekern.plan import Plan
from mergekern.version import __version__

__all__ = ["MergeError", "MergeReport", "Plan", "__version__", "merge", "methods", "plan"]

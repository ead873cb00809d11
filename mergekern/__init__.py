"""Merges fine-tuned LLM checkpoints with compiled kernels, streaming, in bounded memory."""

from __future__ import annotations

from mergekern.collector import collector_paused

with collector_paused():  # what is imported stays: looking through it takes a tenth of a second
    from mergekern.api import merge, merge_many, methods, plan, plan_many
    from mergekern.errors import MergeError
    from mergekern.jobs import MergeReport
    from mergekern.many import Plans
    from mergekern.methods import Doc, method
    from mergekern.plan import Plan
    from mergekern.staging import StagePlans
    from mergekern.version import __version__

__all__ = [
    "Doc",
    "MergeError",
    "MergeReport",
    "Plan",
    "Plans",
    "StagePlans",
    "__version__",
    "merge",
    "merge_many",
    "method",
    "methods",
    "plan",
    "plan_many",
]

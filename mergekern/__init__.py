"""Merges fine-tuned LLM checkpoints with compiled kernels, streaming, in bounded memory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mergekern.collector import collector_paused

with collector_paused():  # what is imported stays: looking through it takes a tenth of a second
    from mergekern.api import merge, merge_many, methods, plan, plan_many
    from mergekern.container.materialise import materialise
    from mergekern.container.plans import ContainerPlan
    from mergekern.done import MergeReport
    from mergekern.errors import MergeError
    from mergekern.many import Plans
    from mergekern.methods import Doc, method
    from mergekern.plan import Plan
    from mergekern.staging import StagePlans
    from mergekern.version import __version__

if TYPE_CHECKING:
    from mergekern.collect.run import collect
    from mergekern.evaluate.run import evaluate

__all__ = [
    "ContainerPlan",
    "Doc",
    "MergeError",
    "MergeReport",
    "Plan",
    "Plans",
    "StagePlans",
    "__version__",
    "collect",
    "evaluate",
    "materialise",
    "merge",
    "merge_many",
    "method",
    "methods",
    "plan",
    "plan_many",
]


def __getattr__(name: str) -> Any:
    if name in ("collect", "evaluate"):  # packages that can be called; merges do without them
        return import_module(f"mergekern.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

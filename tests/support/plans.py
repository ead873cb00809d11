"""Plans over states in memory, and what they read and leave out."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mergekern.checkpoint.memory import MemoryCheckpoint
from mergekern.methods import get_method
from mergekern.options import Options
from mergekern.plan import Plan
from mergekern.planner import build_plan
from mergekern.recipe import read

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
State = Mapping[str, torch.Tensor]


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def plan_of(
    method: str,
    states: list[State],
    mismatch: str = "error",
    configs: list[dict[str, object]] | None = None,
    max_shard_size: int = 10**9,
    share: bool = True,
    **options: object,
) -> Plan:
    """The plan over states called base, m1, m2 … (m0, m1 … for methods without a base)."""
    based = get_method(method).takes_deltas(True)
    labels = ["base" if based and not i else f"m{i}" for i in range(len(states))]
    opened = [
        MemoryCheckpoint(label, state, config=config)
        for label, state, config in zip(
            labels, states, configs or [{} for _ in states], strict=True
        )
    ]
    recipe = read(
        method, models=labels[1:] if based else labels, base="base" if based else None, **options
    )
    return build_plan(
        recipe, opened, Options(mismatch=mismatch, shard_bytes=max_shard_size), share=share
    )


def reads(plan: Plan) -> set[tuple[str, str]]:
    return {(plan.models[read.model], read.name) for step in plan.steps for read in step.inputs}


def left_out(plan: Plan) -> dict[tuple[str, str], str]:
    return {(gone.model, gone.tensor): gone.reason for gone in plan.dropped}


def tied(flag: bool | None) -> dict[str, object]:
    """A config that says so, says not, or says nothing."""
    return {} if flag is None else {"tie_word_embeddings": flag}

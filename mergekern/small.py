"""Small tensors in memory: a call for each would cost more than they do."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch

from mergekern.backends import Backend
from mergekern.batches import Found, fuse_batch, ranked
from mergekern.checkpoint.base import Checkpoint
from mergekern.findings import check_findings
from mergekern.fused import Batch, name_hash
from mergekern.plan import Plan, Step
from mergekern.statistics import fused_op

Inputs = list[torch.Tensor]  # the base, if any, then the experts


def merge_small(
    backend: Backend,
    plan: Plan,
    checkpoints: Sequence[Checkpoint],
    outs: Mapping[str, torch.Tensor],
    known: Found,
) -> list[Step]:
    """Merge the small tensors that need no statistics but their own thresholds, all of a kind by
    one call.

    Returns the steps that are left.
    """
    kinds: dict[Hashable, list[tuple[Step, Inputs]]] = {}
    left = []
    for step in plan.steps:
        if not _is_small(step, backend):
            left.append(step)
            continue
        inputs = [checkpoints[i.model].read(i.name, 0, step.numel, None) for i in step.inputs]
        dtypes = tuple(x.dtype for x in inputs)
        kind = (id(step.spec), step.expert_index, step.base is None, dtypes, step.dtype, step.work)
        kinds.setdefault(kind, []).append((step, inputs))
    for alike in kinds.values():
        op, batch = fused_op(alike[0][0]), _batch(alike, outs)
        read = tuple((id(checkpoints[i.model]), i.name) for step, _ in alike for i in step.inputs)
        found = fuse_batch(backend, op, batch, known, read)
        for place in sorted(found):
            check_findings(plan, checkpoints, alike[place][0], found[place])
    return left


def _is_small(step: Step, backend: Backend) -> bool:
    spec = step.spec
    if spec is None or spec.asks is not None or spec.whole_model or not spec.batched:
        return False
    return 0 < step.numel <= (backend.ranked if spec.ranked else backend.batched)


def _batch(alike: Sequence[tuple[Step, Inputs]], outs: Mapping[str, torch.Tensor]) -> Batch:
    """Steps of one kind, and their inputs."""
    first, inputs = alike[0]
    dtypes = [x.dtype for x in inputs]
    base = None if first.base is None else dtypes.pop(0)
    columns = np.zeros((len(alike), 1 + len(dtypes)), np.uint64)
    columns[:, int(base is None) :] = [[x.data_ptr() for x in found] for _, found in alike]
    batch = Batch(
        base=base,
        experts=tuple(dtypes),
        out=first.dtype,
        inputs=columns,
        outs=np.array([outs[step.name].data_ptr() for step, _ in alike], np.uint64),
        offset=np.zeros(len(alike), np.int64),
        numel=np.array([step.numel for step, _ in alike], np.int64),
        name_hash=np.array([name_hash(step.name) for step, _ in alike], np.uint32),
    )
    return ranked(batch, first) if first.spec is not None and first.spec.ranked else batch

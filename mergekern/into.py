"""Merging into tensors that are there already: a live model is merged again without allocating."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mergekern.checkpoint.base import Checkpoint, listing
from mergekern.checkpoint.placed import Placed
from mergekern.dtypes import dtype_name, to_torch
from mergekern.errors import OutputError
from mergekern.lazily import torch
from mergekern.plan import Plan, Step


def outputs_in(
    into: Mapping[str, torch.Tensor], plan: Plan, checkpoints: Sequence[Checkpoint]
) -> dict[str, torch.Tensor]:
    """The outputs of a plan as flat views of tensors that are there.

    Raises OutputError unless there is one for every output and no other, with its shape and dtype,
    on the inputs' device, contiguous, and in memory that is no input's and no other output's.
    """
    _check_names(into, plan)
    device = checkpoints[0].device
    outs = {step.name: into[step.name].detach() for step in plan.steps}
    for step in plan.steps:
        if fault := _fault(step, outs[step.name], device):
            raise OutputError(f"out: tensor {step.name!r} {fault}")
    _check_memory(outs, plan, checkpoints)
    for alias, name in plan.aliases.items():
        if into[alias].data_ptr() != into[name].data_ptr():
            raise OutputError(
                f"out: {alias!r} and {name!r} are one tensor in the merged model, and two here: "
                f"tie them"
            )
    # Kernels write by address, of which autograd would not know that it is in place.
    tracked = [out for out in outs.values() if not out.is_inference()]
    torch.autograd.graph.increment_version(tracked)
    return outs


def _check_names(into: Mapping[str, torch.Tensor], plan: Plan) -> None:
    made = {*(step.name for step in plan.steps), *plan.aliases}
    if missing := made - into.keys():
        raise OutputError(f"out: has no {listing(missing)}, which the merged model has")
    if others := into.keys() - made:
        raise OutputError(f"out: has {listing(others)}, which the merged model has not")


def _fault(step: Step, tensor: torch.Tensor, device: str) -> str:
    """Why a step's output cannot go there, "" when it can."""
    if tensor.dtype != to_torch(step.dtype):
        found, wanted = dtype_name(tensor.dtype), dtype_name(step.dtype)
        return f"is {found}, the merge gives {wanted}: set out_dtype"
    if tensor.shape != step.shape:
        return f"has shape {list(tensor.shape)}, wanted {list(step.shape)}"
    if str(tensor.device) != device:
        return f"is on {tensor.device}, the models on {device}: move it there"
    return "" if tensor.is_contiguous() else "is not contiguous: give one that is"


def _check_memory(
    outs: Mapping[str, torch.Tensor], plan: Plan, checkpoints: Sequence[Checkpoint]
) -> None:
    """No output may lie over an input, or over another output: storages may be different and still
    share memory, as those of two slices of one array do."""
    names = list(outs)
    begin, end = _spans(outs, plan, checkpoints)
    order = np.argsort(begin, kind="stable")
    order = order[begin[order] < end[order]]
    begin, end, is_output = begin[order], end[order], order < len(names)
    inputs_to = _before(np.where(is_output, 0, end))
    outputs_to = _before(np.where(is_output, end, 0))
    shared = is_output & (begin < outputs_to)
    wrong = np.flatnonzero(shared | (begin < np.where(is_output, inputs_to, outputs_to)))
    if not len(wrong):
        return
    place = int(wrong[0])
    # The output that begins last, this one included, and the one before it.
    *others, last = order[: place + 1][is_output[: place + 1]].tolist()
    if shared[place]:
        raise OutputError(
            f"out: {names[others[-1]]!r} and {names[last]!r} share memory, and are two tensors in "
            f"the merged model: untie them"
        )
    raise OutputError(
        f"out: tensor {names[last]!r} is in the memory of an input, which would change while it "
        f"is read: give a copy"
    )


def _spans(
    outs: Mapping[str, torch.Tensor], plan: Plan, checkpoints: Sequence[Checkpoint]
) -> tuple[np.ndarray, np.ndarray]:
    """The addresses that tensors lie between: all outputs, then all that is read."""
    placed = Placed(outs.values())
    begins, ends = [placed.begin], [placed.end]
    for checkpoint, read in zip(checkpoints, plan.columns.read, strict=True):
        assert checkpoint.placed is not None, f"{checkpoint.label}: not in memory"
        at = checkpoint.tensors.places_of(read)
        begins.append(checkpoint.placed.begin[at])
        ends.append(checkpoint.placed.end[at])
    return np.concatenate(begins), np.concatenate(ends)


def _before(column: np.ndarray) -> np.ndarray:
    """The largest entry before each; 0 before the first."""
    return np.maximum.accumulate(np.concatenate([column[:1] * 0, column[:-1]]))

"""Merging into tensors that are there already: a live model is merged again without allocating."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mergekern.checkpoint.base import Checkpoint, listing
from mergekern.dtypes import dtype_name
from mergekern.errors import OutputError
from mergekern.plan import Plan, Step


def outputs_in(
    into: Mapping[str, torch.Tensor], plan: Plan, checkpoints: Sequence[Checkpoint]
) -> dict[str, torch.Tensor]:
    """The outputs of a plan as flat views of tensors that are there.

    Raises OutputError unless there is one for every output and no other, with its shape and dtype,
    on the inputs' device, contiguous, and in memory that is no input's.
    """
    _check_names(into, plan)
    device = checkpoints[0].device
    read = {
        _storage(c.read(i.name, 0, c.tensors[i.name].numel, None))
        for step in plan.steps
        for i in step.inputs
        for c in [checkpoints[i.model]]
    }
    for step in plan.steps:
        _check(step, into[step.name], device)
        if _storage(into[step.name]) in read and step.numel:
            raise OutputError(
                f"out: tensor {step.name!r} is in the memory of an input, which would change while "
                f"it is read: give a copy"
            )
    for alias, name in plan.aliases.items():
        if into[alias].data_ptr() != into[name].data_ptr():
            raise OutputError(
                f"out: {alias!r} and {name!r} are one tensor in the merged model, and two here: "
                f"tie them"
            )
    return {step.name: into[step.name].detach().view(-1) for step in plan.steps}


def _check_names(into: Mapping[str, torch.Tensor], plan: Plan) -> None:
    made = {*(step.name for step in plan.steps), *plan.aliases}
    if missing := made - into.keys():
        raise OutputError(f"out: has no {listing(missing)}, which the merged model has")
    if others := into.keys() - made:
        raise OutputError(f"out: has {listing(others)}, which the merged model has not")


def _check(step: Step, tensor: torch.Tensor, device: torch.device) -> None:
    where = f"out: tensor {step.name!r}"
    if tensor.dtype != step.dtype:
        raise OutputError(
            f"{where} is {dtype_name(tensor.dtype)}, the merge gives {dtype_name(step.dtype)}: set "
            f"out_dtype"
        )
    if tuple(tensor.shape) != step.shape:
        raise OutputError(f"{where} has shape {list(tensor.shape)}, wanted {list(step.shape)}")
    if tensor.device != device:
        raise OutputError(f"{where} is on {tensor.device}, the models on {device}: move it there")
    if not tensor.is_contiguous():
        raise OutputError(f"{where} is not contiguous: give one that is")


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

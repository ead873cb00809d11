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
    on the inputs' device, contiguous, and in memory that is no input's and no other output's.
    """
    _check_names(into, plan)
    device = checkpoints[0].device
    for step in plan.steps:
        _check(step, into[step.name], device)
    _check_memory(into, plan, checkpoints)
    for alias, name in plan.aliases.items():
        if into[alias].data_ptr() != into[name].data_ptr():
            raise OutputError(
                f"out: {alias!r} and {name!r} are one tensor in the merged model, and two here: "
                f"tie them"
            )
    outs = {step.name: into[step.name].detach().view(-1) for step in plan.steps}
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


def _check_memory(
    into: Mapping[str, torch.Tensor], plan: Plan, checkpoints: Sequence[Checkpoint]
) -> None:
    """No output may lie over an input, or over another output: storages may be different and still
    share memory, as those of two slices of one array do."""
    spans = [(*_span(into[step.name]), True, step.name) for step in plan.steps]
    for step in plan.steps:
        spans += [(*checkpoints[i.model].span(i.name), False, "") for i in step.inputs]
    reached = output_to = 0  # how far inputs, and the one output before, reach
    output = ""
    for begin, end, is_output, name in sorted(s for s in spans if s[0] < s[1]):
        if is_output and begin < output_to:
            raise OutputError(
                f"out: {output!r} and {name!r} share memory, and are two tensors in the merged "
                f"model: untie them"
            )
        if begin < (reached if is_output else output_to):
            raise OutputError(
                f"out: tensor {name if is_output else output!r} is in the memory of an input, "
                f"which would change while it is read: give a copy"
            )
        if is_output:
            output_to, output = end, name
        else:
            reached = max(reached, end)


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes

"""One model's tensors, for the layers of others stacked on its own."""

from __future__ import annotations

from typing import Annotated

from mergekern.methods.parameters import Doc
from mergekern.methods.registry import method
from mergekern.spec import Spec


@method(
    "passthrough",
    base_role="input",
    models=(1, 1),
    title="one model's tensors as they are, or scaled",
    paper="mergekit",
)
def passthrough(
    *, scale: Annotated[tuple[float, ...], Doc("factor of the weights")] = (1.0,)
) -> Spec:
    """out = scale x

    Every tensor comes from exactly one model: with slices, layers of several models can stand in
    any order and number. A `scale` of 1 copies the bytes.
    """
    return Spec(rule="linear_combination", weight=scale)

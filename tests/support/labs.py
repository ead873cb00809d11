"""Labs that are trained in no time, and know nothing."""

from __future__ import annotations

from mergekern.lab.lab import Lab, Settings
from mergekern.lab.train import make

TINY = Settings(
    vocabulary=300,
    hidden=16,
    layers=1,
    heads=2,
    kv_heads=1,
    base_steps=3,
    base_batch=4,
    expert_steps=2,
    expert_batch=4,
)


def trained(lab: Lab) -> Lab:
    """The lab with all its models, without worker processes."""
    for name in lab.missing():
        make(lab.folder, name, lab.settings, lambda step: None)
    return lab

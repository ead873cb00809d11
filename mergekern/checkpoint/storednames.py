"""The names under which files may have a parameter of a model."""

from __future__ import annotations

from mergekern.checkpoint.base import Checkpoint


class StoredNames:
    """The names under which a checkpoint may have stored a parameter of a model.

    A model saved without its head lacks the first part of every name ("model.", "transformer."),
    one saved with a head has it; vision-language models are stored under other first parts than
    they have in memory.
    """

    def __init__(self, base: Checkpoint) -> None:
        self._known = base.tensors
        self._roots = sorted({name.partition(".")[0] for name in base.tensors})

    def of(self, name: str) -> list[str]:
        """Itself if it is stored, or else all stored names that differ in the first parts."""
        if name in self._known:
            return [name]
        first, *rest = name.split(".")
        others = [rest, *([root, first, *rest] for root in self._roots)]
        if len(rest) > 1:
            others += [[first, *rest[1:]], [rest[0], first, *rest[1:]]]
        return sorted({".".join(parts) for parts in others} & self._known.keys())

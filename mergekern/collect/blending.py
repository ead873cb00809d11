"""Parts of a merge by regmean, made while statistics are collected along it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from mergekern.api import merge
from mergekern.arrays import as_tensor
from mergekern.checkpoint import Checkpoint
from mergekern.checkpoint.memory import MemoryCheckpoint
from mergekern.collect.network import Network
from mergekern.dtypes import to_torch
from mergekern.lazily import torch
from mergekern.spec import Rest, Singular

State: TypeAlias = "dict[str, torch.Tensor]"


@dataclass(frozen=True)
class Parameters:
    """Of the merge: those of regmean."""

    weight: tuple[float, ...]
    reduction: float
    singular: Singular
    rest: Rest

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "weight": list(self.weight)}


@dataclass(frozen=True)
class Grams:
    """The matrices of one expert's part of a model, by its own names of the weights.

    said: see collect_gram()
    """

    matrices: Mapping[str, torch.Tensor]
    said: Mapping[str, Any]

    def of(self, weight: str) -> torch.Tensor | None:
        return self.matrices.get(self.said["shares"].get(weight, weight))


class Blend:
    """Merges any parameters of a network's model from those of the experts."""

    def __init__(
        self,
        network: Network,
        experts: Sequence[Checkpoint],
        base: Checkpoint | None,
        parameters: Parameters,
    ) -> None:
        self._network, self._experts, self._base = network, experts, base
        self._parameters = parameters
        self.donor = experts[0] if base is None else base

    def merged(self, keys: Sequence[int], grams: Sequence[Grams] | None = None) -> MemoryCheckpoint:
        """Some parameters, by the donor's names; grams: of each expert, None for none at all."""
        names = self._names(self.donor, keys)
        untransposed: set[str] = set()
        nothing = {"of no tensor": torch.zeros(1, 1)}  # as statistics may not be empty
        statistics: list[State] = [{} for _ in self._experts]
        for expert, given, found in zip(self._experts, grams or (), statistics, strict=False):
            for name, own in zip(names, self._names(expert, keys), strict=True):
                matrix = given.of(own)
                if matrix is not None:
                    found[name] = matrix
                if own in given.said["untransposed"]:
                    untransposed.add(name)
        states = [self._state(expert, keys, names, untransposed) for expert in self._experts]
        settings = self._parameters.to_dict()
        if self._base is not None:
            settings["base"] = self._state(self._base, keys, names, untransposed)
        settings["statistics"] = [each or nothing for each in statistics]
        result = merge("regmean", models=states, **settings)
        assert isinstance(result, dict)
        return self._checkpoint(
            {name: self._native(name, value, untransposed) for name, value in result.items()}
        )

    def _checkpoint(self, state: State) -> MemoryCheckpoint:
        donor = self.donor
        return MemoryCheckpoint("the merge", state, config=donor.config, folder=donor.folder)

    def _names(self, checkpoint: Checkpoint, keys: Sequence[int]) -> list[str]:
        with self._network.reading(checkpoint):
            return [self._network.stored(key) for key in keys]

    def _state(
        self, checkpoint: Checkpoint, keys: Sequence[int], names: Sequence[str], turned: set[str]
    ) -> State:
        """Whole tensors; those that are [inputs, outputs] as linear layers have them."""
        state: State = {}
        for name, own in zip(names, self._names(checkpoint, keys), strict=True):
            info = checkpoint.tensors[own]
            read = as_tensor(checkpoint.read(own, 0, info.numel, None)).reshape(info.shape)
            state[name] = read.T.contiguous() if name in turned else read
        return state

    def _native(self, name: str, value: torch.Tensor, turned: set[str]) -> torch.Tensor:
        """As the merge stores it, in the donor's dtype, whatever adapters are computed in."""
        info = self.donor.tensors[name]
        dtype = to_torch(info.native or info.dtype)
        return (value.T.contiguous() if name in turned else value).to(dtype)

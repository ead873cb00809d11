"""A recipe resolved against headers: one step per output tensor, every byte of the output placed.

A plan is plain data. Building one reads headers and configs only, so it fails in seconds or not at
all; nothing after it looks at the recipe.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from mergekern.checkpoint.layout import Shard
from mergekern.columns import Columns, columns_of
from mergekern.dtypes import FLOAT32, DType, dtype_name
from mergekern.report import plan_text
from mergekern.spec import Spec


class Input(NamedTuple):
    """One tensor of one model: `model` indexes the plan's models, `name` is its name there."""

    model: int
    name: str


SOLVED = 512  # outputs of a layer that are solved for at once


@dataclass(frozen=True, slots=True)
class Equations:
    """What a tensor is solved from when it is read: see Regression.

    experts: the weights of a linear layer of each model;  grams: of each, over the layer's inputs
    untransposed: weights are [inputs, outputs], and not [outputs, inputs]
    """

    experts: tuple[Input, ...]
    grams: tuple[Input, ...]
    untransposed: bool

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Inputs and outputs of the layer."""
        rows, columns = shape
        return (rows, columns) if self.untransposed else (columns, rows)

    def panel(self, shape: tuple[int, ...]) -> int:
        """Elements that are solved for at once: all, where the outputs do not lie in a row."""
        inputs, outputs = self.sizes(shape)
        return max(1, inputs * (outputs if self.untransposed else min(outputs, SOLVED)))

    def to_dict(self) -> dict[str, Any]:
        return {"experts": self.experts, "grams": self.grams, "untransposed": self.untransposed}


@dataclass(frozen=True)
class Records:
    """How a tensor is stored whose elements are not those of the inputs: a record for each run of
    `of` elements of these, and for what is left of one.

    shape: of a record
    """

    of: int
    shape: tuple[int, ...] = ()

    def count(self, numel: int) -> int:
        return -(-numel // self.of)


@dataclass(frozen=True, slots=True)
class Step:
    """One output tensor.

    merge: a fused op over base and experts. `expert_index[j]` is the place of experts[j] among the
           recipe's experts, which names its coin and its model-scope threshold. Statistics of the
           experts, where the spec has any, are inputs behind them, in the same order. A tensor
           that is solved for has its equations, and its solution as the one input. Steps of one
           plan with equal specs share one object.
    copy:  the bytes of experts[0]; the other experts must hold equal bytes (discrete tensors).
    shape, numel: of the inputs;  dtype, nbytes: of the output
    records: how the output is stored, None for element by element
    """

    name: str
    action: Literal["merge", "copy"]
    dtype: DType
    shape: tuple[int, ...]
    base: Input | None
    experts: tuple[Input, ...]
    expert_index: tuple[int, ...]
    work: DType = FLOAT32
    spec: Spec | None = None
    note: str = ""
    equations: Equations | None = None
    records: Records | None = None
    numel: int = field(init=False, repr=False, compare=False)
    nbytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numel", math.prod(self.shape))
        object.__setattr__(self, "nbytes", math.prod(self.stored_shape) * self.dtype.itemsize)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of the output."""
        if self.records is None:
            return self.shape
        return (self.records.count(self.numel), *self.records.shape)

    @property
    def record(self) -> tuple[int, int]:
        """Elements of the inputs that stand for a record of the output, and its bytes."""
        if self.records is None:
            return 1, self.dtype.itemsize
        return self.records.of, math.prod(self.records.shape) * self.dtype.itemsize

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Everything the step reads: the base, if any, then the experts."""
        return self.experts if self.base is None else (self.base, *self.experts)

    @property
    def origins(self) -> tuple[Input, ...]:
        """The tensors of models and statistics that the output comes from."""
        if self.equations is None:
            return self.inputs
        return (*self.equations.experts, *self.equations.grams)

    def to_dict(self, spec: int | None) -> dict[str, Any]:
        """Plain data, ready for JSON; spec: the number of the step's, None for copies."""
        solved = {} if self.equations is None else {"equations": self.equations.to_dict()}
        stored = {} if self.records is None else {"records": asdict(self.records)}
        return (
            solved
            | stored
            | {
                "name": self.name,
                "action": self.action,
                "dtype": dtype_name(self.dtype),
                "shape": self.shape,
                "base": self.base,
                "experts": self.experts,
                "expert_index": self.expert_index,
                "work": dtype_name(self.work),
                "spec": spec,
                "note": self.note,
            }
        )


class Dropped(NamedTuple):
    """An input tensor that no step reads, and why."""

    model: str
    tensor: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Everything that decides the output's bytes, and what is worth knowing before the first one.

    method, parameters, seed:  as resolved, defaults included; parameters are plain data
    models:        labels; checkpoints are always given in this order. Solutions of equations, where
                   there are any, come last
    base:          which of `models` is the base, None for methods without one
    donor:         which of `models` gives config, tokenizer and the other side files
    fingerprints:  per model, file name -> sha256 of its header
    steps:         one per output tensor, in output order
    shards:        where every output tensor will lie
    config:        of the output, but for its dtype; None where it is the donor's
    out_dtype:     the dtype to write into config.json, None to leave the donor's
    aliases:       output name -> the output name whose storage it shares (in memory only)
    dropped:       the input tensors that no step reads
    input_bytes:   what one pass over the inputs reads
    notes:         what was asked for and has no effect, and what a merged folder lacks
    memory:        the engine's estimate, where one was made; str() of it is shown
    """

    method: str
    parameters: Mapping[str, Any]
    seed: int
    models: tuple[str, ...]
    base: int | None
    donor: int
    fingerprints: tuple[Mapping[str, str], ...]
    steps: tuple[Step, ...]
    shards: tuple[Shard, ...]
    out_dtype: DType | None
    aliases: Mapping[str, str]
    config: Mapping[str, Any] | None
    dropped: tuple[Dropped, ...]
    input_bytes: int
    notes: tuple[str, ...] = ()
    memory: Any = field(default=None, compare=False)

    def __str__(self) -> str:
        return plan_text(self)

    @cached_property
    def solutions(self) -> int | None:
        """Which of `models` are solutions of equations; None where nothing is solved for."""
        solved = any(step.equations is not None for step in self.steps)
        return len(self.models) - 1 if solved else None

    @cached_property
    def columns(self) -> Columns:
        return columns_of(self.steps, self.shards, len(self.models))

    @cached_property
    def specs(self) -> tuple[Spec, ...]:
        """Every spec that steps share, in the order of their first use."""
        found = {id(step.spec): step.spec for step in self.steps}
        return tuple(spec for spec in found.values() if spec is not None)

    @property
    def whole_model(self) -> bool:
        """True when a number of the whole model is needed before any tensor can be merged."""
        return any(spec.whole_model for spec in self.specs)

    @property
    def passes(self) -> int:
        """How often the inputs are read, but for samples; where a sample misleads, once more."""
        return 1 + any(s.pool or (s.whole_model and not s.one_pass) for s in self.specs)

    @property
    def output_bytes(self) -> int:
        return sum(shard.size for shard in self.shards)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON: all that decides the output's bytes, and nothing else.

        Model labels are part of it, since fingerprints are of headers, which fine-tunes of one base
        have in common. Steps name their spec by its number in `specs`.
        """
        numbers = {id(spec): number for number, spec in enumerate(self.specs)}
        return {
            "method": self.method,
            "parameters": dict(self.parameters),
            "seed": self.seed,
            "models": list(self.models),
            "base": self.base,
            "donor": self.donor,
            "fingerprints": [dict(files) for files in self.fingerprints],
            "specs": [spec.to_dict() for spec in self.specs],
            "steps": [step.to_dict(numbers.get(id(step.spec))) for step in self.steps],
            "shards": [_shard_dict(shard) for shard in self.shards],
            "out_dtype": None if self.out_dtype is None else dtype_name(self.out_dtype),
            "aliases": dict(self.aliases),
            "config": self.config,
            "dropped": list(self.dropped),
        }

    @cached_property
    def digest(self) -> str:
        """sha256 of to_dict(): two plans with the same digest write the same bytes."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _shard_dict(shard: Shard) -> dict[str, Any]:
    header = hashlib.sha256(shard.header).hexdigest()
    return {"file": shard.file, "size": shard.size, "header_sha256": header}

"""What a recipe's parts make: every output tensor's name, and the inputs that may serve it.

A recipe of `models` makes every tensor that any of them has. Slices make a stack of layers,
numbered as they come: tensors before the stack come from the first slice's models, those behind it
from the last one's. Of `modules`, each makes the tensors of its own part of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.errors import MismatchError, RecipeError
from mergekern.layers import (
    Layers,
    Stack,
    before_layers,
    by_number,
    config_of_layers,
    contradictions,
    in_module,
    layers_of,
)
from mergekern.recipe import Entry, Part, Recipe
from mergekern.roles import members_of
from mergekern.tied import Names

Held = Mapping[int, TensorInfo]  # by model; a tied tensor may be stored under another name


class Output(NamedTuple):
    """One output tensor.

    position: in [0, 1], where gradients are read
    held:     what may serve it
    lent:     the models whose tensor of another name, to which it is tied, serves it
    names:    by model, its name with the number that its layer has there; None where all have one
    """

    name: str
    part: int
    position: float
    held: Held
    lent: tuple[int, ...] = ()
    names: Mapping[int, str] | None = None

    def name_in(self, model: int) -> str:
        """By which a model's own parameters are chosen."""
        return self.name if self.names is None else self.names[model]


class Outputs:
    """The output tensors of a recipe over opened models.

    config: that fits them, None where it is the donor's; notes: what it cannot say. Both are known
    when all tensors have been asked for.

    names: of each model, the tensors by the names that outputs have; see tied.match_names()
    donor:  the model whose names, order and config the output has
    Raises RecipeError for layers and modules that the models do not have.
    """

    def __init__(
        self,
        recipe: Recipe,
        checkpoints: Sequence[Checkpoint],
        names: Names,
        donor: int,
    ) -> None:
        self._recipe = recipe
        self._stored = names.stored
        self._lent = names.lent
        self._configs = [checkpoint.config for checkpoint in checkpoints]
        self._labels = [source.label for source in recipe.models]
        self._donor = donor
        self._members = members_of(recipe)
        self._layers: dict[int, Layers] = {}
        self._depths: dict[Stack, int] = {}  # of what slices make
        self.notes: tuple[str, ...] = ()
        named = recipe.sources[donor].architecture
        self.config: Mapping[str, Any] | None = None
        if named is not None:
            self.config = {**self._configs[donor], "architectures": [named]}

    def __iter__(self) -> Iterator[Output]:
        for module in self._modules:
            places = [n for n, part in enumerate(self._recipe.parts) if part.module == module]
            if module:
                self._check_module(module, places)
            if any(entry.layers for n in places for entry in self._recipe.parts[n].entries):
                yield from self._sliced(module, places)
                continue
            yield from self._whole(places[0], module)
            if module:
                self._take_depths(places[0], module)
        self._check_depths()

    def _check_module(self, module: str, parts: Sequence[int]) -> None:
        models = dict.fromkeys(model for part in parts for model in self._members[part].models)
        names = [name for model in models for name in self._stored[model]]
        if all(in_module(name, self._modules) != module for name in names):
            begins = ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
            raise RecipeError(
                f"modules.{module}: no tensor of its models lies in a module of that name; theirs "
                f"begin with {begins[:200]}"
            )

    def _take_depths(self, part: int, module: str) -> None:
        """The config of a module whose models are not the donor is theirs as far as layers go."""
        members = self._members[part]
        like = members.like(members.models, self._donor)
        if like == self._donor:
            return
        theirs = {stack.prefix: stack for stack in self._of(like).stacks}
        for stack in self._of(self._donor).stacks:
            if in_module(stack.name(0, ""), self._modules) == module and stack.prefix in theirs:
                layers = range(theirs[stack.prefix].depth)
                self._make_config(stack, [(self._configs[like], layer) for layer in layers])

    def _make_config(self, stack: Stack, taken: Sequence[tuple[Mapping[str, Any], int]]) -> None:
        self._depths[stack] = len(taken)
        config = self.config or self._configs[self._donor]
        if any(number != layer for number, (_, layer) in enumerate(taken)):
            self.notes += tuple(
                f"{field} in the config goes by the layers' numbers, which slices have changed: it "
                "is kept as it is"
                for field in by_number(config, stack)
            )
        self.config = config_of_layers(config, stack, taken) if config else None

    def _check_depths(self) -> None:
        text = self._of(self._donor).text if self._depths else ()
        for field, depths in contradictions({s: self._depths.get(s, s.depth) for s in text}):
            each = ", ".join(f"{depth} layers {prefix}*" for prefix, depth in depths.items())
            raise RecipeError(
                f"slices make {each}, and the config of {self._labels[self._donor]} has one field "
                f"for them all, {field}: give it a field for each (T5 has num_decoder_layers), or "
                "make as many layers of each"
            )

    def why_not(self, model: int, name: str) -> str:
        """Why nothing is made of an input tensor that no output is given."""
        modules = [module for module in self._modules if module]
        if modules and not in_module(name, modules):
            return f"no module of the recipe has it ({', '.join(modules)})"
        if self._of(model).place(name):
            return "no slice takes this layer"
        if before_layers(name):
            return "what comes before the layers is the first slice's"
        return "what comes behind the layers is the last slice's"

    def _of(self, model: int) -> Layers:
        if model not in self._layers:
            self._layers[model] = layers_of(self._stored[model], self._configs[model])
        return self._layers[model]

    def _whole(self, part: int, module: str) -> Iterator[Output]:
        """Every tensor of the module that any of the part's models has, in the donor's order."""
        models = self._members[part].models
        order = [self._stored[self._donor], *(self._stored[model] for model in models)]
        for name in dict.fromkeys(name for names in order for name in names):
            if module and in_module(name, self._modules) != module:
                continue
            held = {m: self._stored[m][name] for m in models if name in self._stored[m]}
            if held:
                lent = tuple([m for m in held if (m, name) in self._lent]) if self._lent else ()
                yield Output(name, part, self._position(part, name, held), held, lent)

    def _position(self, part: int, name: str, held: Held) -> float:
        if self._recipe.constant:
            return 0.0
        return self._of(self._members[part].like(held, self._donor)).position(name)

    def _sliced(self, module: str, parts: Sequence[int]) -> Iterator[Output]:
        ranges = [self._ranges(part) for part in parts]
        stack = self._stack(self._donor, module)
        yield from self._outside(parts[0], module, stack, before=True)
        depth = 0
        taken = []
        for part, mine in zip(parts, ranges, strict=True):
            first = next(iter(mine))
            for nth in range(mine[first][1] - mine[first][0]):
                layer = {model: begin + nth for model, (begin, _) in mine.items()}
                last = mine[first][1] - mine[first][0] - 1
                yield from self._layer(part, module, stack, depth, layer, nth / last if last else 1)
                taken.append((self._configs[first], layer[first]))
                depth += 1
        yield from self._outside(parts[-1], module, stack, before=False)
        self._make_config(stack, taken)

    def _layer(
        self,
        part: int,
        module: str,
        stack: Stack,
        depth: int,
        layer: Mapping[int, int],
        position: float,
    ) -> Iterator[Output]:
        """One layer of the output, from one layer of each model."""
        found: dict[str, dict[int, TensorInfo]] = {}
        stacks = {model: self._stack(model, module) for model in layer}
        for model, number in layer.items():
            for rest, info in self._rests(model, stacks[model]).get(number, {}).items():
                found.setdefault(rest, {})[model] = info
        for rest, held in found.items():
            names = {model: stacks[model].name(layer[model], rest) for model in held}
            yield Output(stack.name(depth, rest), part, position, held, (), names)

    def _outside(self, part: int, module: str, stack: Stack, before: bool) -> Iterator[Output]:
        """The tensors before or behind the stack; towers beside the text come before it."""
        for output in self._whole(part, module):
            place = self._of(self._donor).place(output.name)
            inside = place is not None and place[0] == stack
            first = before_layers(output.name) or place is not None
            if not inside and first == before:
                yield output._replace(position=0.0)

    @cached_property
    def _modules(self) -> list[str]:
        return list(dict.fromkeys(part.module for part in self._recipe.parts))

    def _rests(self, model: int, stack: Stack) -> Mapping[int, Mapping[str, TensorInfo]]:
        """The tensors of a stack by layer and rest of the name, in the order of the file."""
        key = (model, stack)
        if key not in self._by_layer:
            found: dict[int, dict[str, TensorInfo]] = {}
            for name, info in self._stored[model].items():
                place = self._of(model).place(name)
                if place is not None and place[0] == stack:
                    found.setdefault(place[1], {})[place[2]] = info
            self._by_layer[key] = found
        return self._by_layer[key]

    @cached_property
    def _by_layer(self) -> dict[tuple[int, Stack], Mapping[int, Mapping[str, TensorInfo]]]:
        return {}

    def _stack(self, model: int, module: str) -> Stack:
        """The one stack that slices cut."""
        label, stacks = self._labels[model], self._of(model).text
        if module:
            stacks = tuple(s for s in stacks if in_module(s.name(0, ""), self._modules) == module)
        if not stacks:
            raise RecipeError(
                f"slices: no layers are found in model {label}"
                + (f", module {module}" if module else "")
                + ": its tensors' names have no run of numbers from 0 on; list it under models"
            )
        if len(stacks) > 1:
            names = ", ".join(f"{stack.prefix}*" for stack in stacks)
            raise RecipeError(
                f"slices: model {label} has {len(stacks)} stacks of layers ({names}): name them "
                "under modules, each with its own slices or models"
            )
        return stacks[0]

    def _ranges(self, part: int) -> dict[int, tuple[int, int]]:
        """The layers that a slice takes of each of its models, the first one listed first."""
        made, members = self._recipe.parts[part], self._members[part]
        place = {id(source): model for model, source in enumerate(self._recipe.models)}
        of_module = [n for n, p in enumerate(self._recipe.parts) if p.module == made.module]
        where = f"slices[{of_module.index(part)}]"
        if made.module:
            where = f"modules.{made.module}.{where}"
        ranges = {
            place[id(entry.source)]: self._range(entry, made, place[id(entry.source)], where)
            for entry in made.entries
        }
        lengths = {model: stop - begin for model, (begin, stop) in ranges.items()}
        if len(set(lengths.values())) > 1:
            each = ", ".join(f"{n} of {self._labels[model]}" for model, n in lengths.items())
            raise RecipeError(f"{where}: its sources have different numbers of layers ({each})")
        if (
            members.base is not None
            and members.base not in ranges
            and len(set(ranges.values())) > 1
        ):
            raise RecipeError(
                f"{where}: its sources are of different layers, and the base "
                f"{self._labels[members.base]} is not among them: list it with a layer_range"
            )
        if members.base is not None:
            ranges.setdefault(members.base, next(iter(ranges.values())))
        return ranges

    def _range(self, entry: Entry, part: Part, model: int, where: str) -> tuple[int, int]:
        depth = self._stack(model, part.module).depth
        assert entry.layers is not None, f"{where}: a source without a layer_range"
        first, stop = entry.layers
        if stop > depth:
            raise MismatchError(
                f"{where}: layer_range [{first}, {stop}] of model {self._labels[model]}, which has "
                f"{depth} layers"
            )
        return first, stop

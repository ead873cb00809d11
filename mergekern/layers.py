"""Which tensors of a model are layers of a stack, told from their names and the config.

    model.layers.17.mlp.up_proj.weight  ->  stack model.layers., layer 17, mlp.up_proj.weight

No table of architectures: a stack is a run of numbers 0 … n-1 behind one prefix whose length the
config names as a depth, or, where no config says, whose entries are built alike. What lies in no
stack stands before the layers (embeddings) or behind them (final norm, head).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

_MODULE = re.compile(r"[^.]+(\.\d+)?(?=\.)")  # with a number behind it, as T5's layer.0
_NUMBERED = re.compile(r"(.*?\.|)(\d+)\.(.*)")
_DEPTH = re.compile(r"layer|depth|block", re.IGNORECASE)
_SIGHT = re.compile(r"visi|visual|image|audio|speech", re.IGNORECASE)  # towers beside the text
_BEFORE = re.compile(r"embed(?!_out)|wte|wpe|word_|position|shared|tok_")

# Config fields that list layers by number, and those by which a layer's number decides what it is.
_NUMBERS = (
    "mlp_only_layers",
    "moe_layers",
    "cross_attention_layers",
    "full_attn_idxs",
    "global_attn_layers",
)
_BY_NUMBER = (
    "first_k_dense_replace",
    "max_window_layers",
    "sliding_window_pattern",
    "full_attention_interval",
    "interleave_moe_layer_step",
    "decoder_sparse_step",
    "global_attn_every_n_layers",
)
_NO_LAYERS = re.compile(r"_ids?$|_section$|^architectures$")  # lists that may be as long by chance

Path = tuple[str, ...]


@dataclass(frozen=True)
class Stack:
    """Layers 0 … depth-1 whose names begin with `prefix`; path: of the depth in the config."""

    prefix: str
    depth: int
    path: Path | None

    def name(self, layer: int, rest: str) -> str:
        return f"{self.prefix}{layer}.{rest}"


@dataclass(frozen=True)
class Layers:
    """The stacks of one model, those of its text first, the largest first."""

    stacks: tuple[Stack, ...]

    @cached_property
    def text(self) -> tuple[Stack, ...]:
        """Without those of vision and sound."""
        return tuple(stack for stack in self.stacks if not _SIGHT.search(stack.prefix))

    @cached_property
    def _by_prefix(self) -> dict[str, Stack]:
        return {stack.prefix: stack for stack in self.stacks}

    def place(self, name: str) -> tuple[Stack, int, str] | None:
        """The stack, layer and rest of a tensor's name; None for what lies in no stack."""
        numbered = _NUMBERED.fullmatch(name)
        stack = self._by_prefix.get(numbered[1]) if numbered else None
        return None if stack is None or numbered is None else (stack, int(numbered[2]), numbered[3])

    def position(self, name: str) -> float:
        """Where a gradient is read for a tensor: 0 at the first layer of its stack, 1 at the last.

        0 outside of stacks, and 1 where there is one layer alone, as in mergekit.
        """
        found = self.place(name)
        if found is None:
            return 0.0
        stack, layer, _ = found
        return layer / (stack.depth - 1) if stack.depth > 1 else 1.0

    def around(self, name: str, size: Literal["module", "layer"]) -> str:
        """What a tensor is a part of: its layer, or there what is named first behind the number, as
        self_attn or mlp. What lies in no stack has a module of its own, if any."""
        found = self.place(name)
        if found is None:
            return name.rpartition(".")[0] or name
        stack, layer, rest = found
        module = _MODULE.match(rest) if size == "module" else None
        return stack.name(layer, module[0] if module else "")


def before_layers(name: str) -> bool:
    """Whether a tensor that is in no stack comes before it, as embeddings do."""
    return _BEFORE.search(name) is not None


def layers_of(names: Iterable[str], config: Mapping[str, Any]) -> Layers:
    """The stacks among these tensors."""
    built: dict[str, dict[int, set[str]]] = {}
    for name in names:
        if numbered := _NUMBERED.fullmatch(name):
            built.setdefault(numbered[1], {}).setdefault(int(numbered[2]), set()).add(numbered[3])
    whole = {p: layers for p, layers in built.items() if sorted(layers) == list(range(len(layers)))}
    depths = list(_depths(config, ()))
    known = [_stack(p, len(layers), depths) for p, layers in whole.items()]
    stacks = [stack for stack in known if stack.path is not None] or [
        stack for stack in known if _alike(whole[stack.prefix])
    ]
    size = {p: sum(map(len, layers.values())) for p, layers in whole.items()}
    stacks.sort(key=lambda stack: (bool(_SIGHT.search(stack.prefix)), -size[stack.prefix]))
    return Layers(tuple(stacks))


def _depths(config: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _depths(value, (*path, key))
        elif isinstance(value, int) and not isinstance(value, bool) and _DEPTH.search(key):
            yield (*path, key), value


def _stack(prefix: str, depth: int, depths: Sequence[tuple[Path, int]]) -> Stack:
    """With the config's field for its depth, if there is one: that of its own part of the model."""
    sight = bool(_SIGHT.search(prefix))
    part = prefix.split(".")[-3] if prefix.count(".") > 1 else ""

    def likeness(path: Path) -> tuple[bool, bool, bool]:
        text = ".".join(path)
        usual = path[-1] in ("num_hidden_layers", "n_layer", "num_layers", "depth")
        return bool(_SIGHT.search(text)) == sight, bool(part) and part in text, usual

    paths = [path for path, value in depths if value == depth]
    return Stack(prefix, depth, max(paths, key=likeness, default=None))


def _alike(layers: Mapping[int, set[str]]) -> bool:
    """Whether entries are built alike, as layers are and the parts of a classifier are not."""
    if len(layers) < 2:
        return False
    first, second = layers[0], layers[1]
    return 2 * len(first & second) >= len(first | second)


Taken = Sequence[tuple[Mapping[str, Any], int]]  # config and number of the layers of a result


def config_of_layers(config: Mapping[str, Any], stack: Stack, taken: Taken) -> dict[str, Any]:
    """The config of a model whose stack is made of other layers.

    taken: for every layer of the result, the config of the model it comes from and its number there
    The depth is set, and lists with a value per layer (layer_types) or of layers' numbers
    (mlp_only_layers) are rebuilt, at the depth's level of the config and those above it.
    """
    return dict(config) if stack.path is None else _rebuilt(config, stack, taken, ())


def by_number(config: Mapping[str, Any], stack: Stack) -> list[str]:
    """Fields by which a layer's number decides what it is: other layers cannot keep their meaning.

    Those whose value leaves all layers alike are not among them.
    """
    inner = _within(config, () if stack.path is None else stack.path[:-1])
    numbers = {key: inner[key] for key in _BY_NUMBER if isinstance(inner.get(key), int)}
    return [key for key, number in numbers.items() if 1 < number < stack.depth]


def contradictions(depths: Mapping[Stack, int]) -> Iterator[tuple[str, Mapping[str, int]]]:
    """Fields of the config that would have to be several depths at once: those of the stacks whose
    depth they are, by prefix."""
    fields: dict[Path, dict[str, int]] = {}
    for stack, depth in depths.items():
        if stack.path is not None:
            fields.setdefault(stack.path, {})[stack.prefix] = depth
    for path, found in fields.items():
        if len(set(found.values())) > 1:
            yield ".".join(path), found


def _rebuilt(config: Mapping[str, Any], stack: Stack, taken: Taken, at: Path) -> dict[str, Any]:
    assert stack.path is not None
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key == stack.path[len(at)] and isinstance(value, Mapping):
            found[key] = _rebuilt(value, stack, taken, (*at, key))
        elif (*at, key) == stack.path:
            found[key] = len(taken)
        elif isinstance(value, list):
            lists = [(_within(theirs, at).get(key), layer) for theirs, layer in taken]
            found[key] = _rebuilt_list(key, value, stack.depth, lists)
        else:
            found[key] = value
    return found


def _rebuilt_list(
    key: str, value: list[Any], depth: int, lists: Sequence[tuple[Any, int]]
) -> list[Any]:
    if key in _NUMBERS:
        return [n for n, (theirs, layer) in enumerate(lists) if layer in (theirs or ())]
    each = len(value) == depth and not _NO_LAYERS.search(key)
    if not each or any(not isinstance(x, list) or layer >= len(x) for x, layer in lists):
        return value
    return [x[layer] for x, layer in lists]


def _within(config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    for key in path:
        inner = config.get(key)
        config = inner if isinstance(inner, Mapping) else {}
    return config


# What recipes call the modules of models with several, and how their tensors' names begin.
_MODULES = {
    "text_decoder": ("language_model", "text_model", "layers", "embed_tokens", "norm", "lm_head"),
    "vision_tower": ("vision_tower", "vision_model", "visual"),
    "vision_model": ("vision_model", "vision_tower", "visual"),
    "multi_modal_projector": ("multi_modal_projector", "mm_projector", "connector"),
    "decoder": ("decoder", "lm_head"),
}


def in_module(name: str, modules: Sequence[str]) -> str:
    """Which of the modules a tensor belongs to, by the first part of its name that says so."""
    parts = name.split(".")
    first, found = len(parts), "default" if "default" in modules else ""
    for module in modules:
        for begin in (module, *_MODULES.get(module, ())):
            inner = begin.split(".")
            for at in range(min(first, len(parts) - len(inner) + 1)):
                if parts[at : at + len(inner)] == inner:
                    first, found = at, module
                    break
    return found

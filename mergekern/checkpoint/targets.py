"""Which of the base's tensors each part of an adapter belongs to, and how its factors lie on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mergekern.checkpoint.adapter import Adapter
from mergekern.checkpoint.base import Checkpoint, listing
from mergekern.checkpoint.lowrank import DTYPES
from mergekern.checkpoint.storednames import StoredNames
from mergekern.dtypes import dtype_name
from mergekern.errors import CheckpointError

# Modules whose rows are the vocabulary's, which an adapter may have resized; heads repeat the
# others in models that tie them.
VOCABULARY = (
    "embed_tokens",
    "wte",
    "word_embeddings",
    "embed_in",
    "shared",
    "lm_head",
    "embed_out",
)
HEADS = VOCABULARY[-2:]
# Models whose linear layers are stored as (in, out): transformers' Conv1D.
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")

Parts = Mapping[str, str]  # of one module's factors: part -> key


@dataclass(frozen=True)
class Product:
    """scale B A, added to one tensor; a, b, magnitude: keys of the adapter.

    a:  [slabs * rank, in], None for a row of ones;  b: [out, rank * slabs], rank-major
    transposed: the tensor is (in, out), not (out, in)
    magnitude:  DoRA's m, of the outputs; None without DoRA
    """

    a: str | None
    b: str
    slabs: int
    rank: int
    scale: float
    transposed: bool = False
    magnitude: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for key in (self.a, self.b, self.magnitude) if key is not None)


@dataclass(frozen=True)
class Targets:
    """What an adapter does to a base, by the names of the base's tensors.

    saved:    tensor -> the key that replaces it
    products: tensor -> what is added to it
    """

    saved: Mapping[str, str]
    products: Mapping[str, Product]


def find_targets(adapter: Adapter, base: Checkpoint) -> Targets:
    """Raises CheckpointError naming the key that fits nothing, or not as it should."""
    return _Finder(adapter, base).find()


class _Finder:
    def __init__(self, adapter: Adapter, base: Checkpoint) -> None:
        self.adapter = adapter
        self.base = base
        self.infos = adapter.weights.tensors
        self.names = StoredNames(base)
        self.saved: dict[str, str] = {}
        self.products: dict[str, Product] = {}

    def find(self) -> Targets:
        for name, key in self.adapter.saved.items():
            self._save(name, key)
        modules: dict[str, list[Parts]] = {}
        for (module, _), parts in sorted(self.adapter.factors.items()):
            modules.setdefault(module, []).append(parts)
        for module, wrappers in modules.items():
            parameters = self._parameters(module)
            if parameters:
                self._add_to_parameters(module, wrappers, parameters)
            else:
                self._add_to_module(module, wrappers)
        return Targets(self.saved, self.products)

    def _save(self, name: str, key: str) -> None:
        stored = self._stored(name, key)
        module = name.removesuffix(".weight").rpartition(".")[2]
        if stored is None and module in HEADS and _may_tie(self.base.config):
            self.saved[name] = key  # one of its own, where the base repeats the embedding
            return
        if stored is None:
            raise self._absent(name, key)
        have, want = self.infos[key].shape, self.base.tensors[stored].shape
        resized = module in VOCABULARY and len(want) == 2 and have[1:] == want[1:]
        if have != want and not resized:
            raise self._misfit(key, want, stored)
        if stored in self.saved:
            raise self.adapter.fault(key, f"replaces {stored}, and so does {self.saved[stored]!r}")
        self.saved[stored] = key

    def _add_to_module(self, module: str, wrappers: list[Parts]) -> None:
        """Factors of a linear layer, a convolution or an embedding."""
        parts = wrappers[0]
        a, b = self._pair(parts)
        names = (self._stored(f"{module}.{leaf}", b) for leaf in ("weight", "in_proj_weight"))
        stored = next((name for name in names if name is not None), None)
        if stored is None or len(wrappers) > 1:
            raise self._absent(f"{module}.weight", b)
        rank, scale = self.adapter.rank(module), self.adapter.scale(module)
        shape = self._shape(stored)
        transposed = "lora_embedding_A" in parts or self._is_transposed(a, b, shape)
        inputs, outputs = (shape[:1], shape[1:]) if transposed else (shape[1:], shape[:1])
        kernel = (1,) * (len(shape) - 2)  # of a convolution's B
        self._check(a, (rank, *inputs), stored)
        self._check(b, (*outputs, rank, *kernel), stored)
        magnitude = parts.get("lora_magnitude_vector")
        if (magnitude is None) == bool(self.adapter.config.get("use_dora")):
            said = "without" if magnitude is None else "with"
            raise self.adapter.fault(b, f"comes {said} a lora_magnitude_vector, unlike use_dora")
        if magnitude is not None and self.infos[magnitude].numel != outputs[0]:
            raise self._misfit(magnitude, outputs, stored)
        self._add(stored, Product(a, b, 1, rank, scale, transposed, magnitude))
        if "lora_B.bias" in parts:
            self._add_to_bias(module, parts["lora_B.bias"], scale)

    def _add_to_bias(self, module: str, key: str, scale: float) -> None:
        stored = self._stored(f"{module}.bias", key)
        if stored is None:
            raise self._absent(f"{module}.bias", key)
        self._check(key, self._shape(stored), stored)
        self._add(stored, Product(None, key, 1, 1, scale))

    def _add_to_parameters(self, module: str, wrappers: list[Parts], parameters: list[str]) -> None:
        """Factors of parameters that are no module's weight, such as experts in one tensor: PEFT
        stands a wrapper for each around their module, and does not say which is whose."""
        left = {name: self._stored(name, self._pair(wrappers[0])[1]) for name in parameters}
        if not any(left.values()):
            raise self._absent(parameters[0], self._pair(wrappers[0])[1])
        ways: set[bool] = set()  # in which the parameters that fit in one way only are transposed
        for parts in sorted(wrappers, key=lambda parts: len(self._fits(parts, left))):
            fits = self._fits(parts, left)
            if len(fits) > 1:  # square: a module's parameters all lie in one way
                fits = [(name, product) for name, product in fits if {product.transposed} == ways]
            if len(fits) != 1:
                raise self.adapter.fault(
                    self._pair(parts)[1],
                    f"fits {len(fits)} of {listing(parameters)} of {self.base.label}, wanted one",
                )
            name, product = fits[0]
            stored = left.pop(name)
            assert stored is not None
            ways.add(product.transposed)
            self._add(stored, product)

    def _fits(
        self, parts: Parts, parameters: Mapping[str, str | None]
    ) -> list[tuple[str, Product]]:
        """The parameters that factors have the shapes for, each way round."""
        a, b = self._pair(parts)
        (total, *inputs), (*outputs, ranks) = (self.infos[key].shape for key in (a, b))
        found = []
        for name, stored in parameters.items():
            shape = () if stored is None else self._shape(stored)
            slabs, matrix = shape[:-2], [*shape[-2:]]
            rank, count = self.adapter.rank(name), math.prod(slabs)
            if not rank * count == total == ranks:
                continue
            product = Product(a, b, count, rank, self.adapter.scale(name))
            if matrix == [*outputs, *inputs]:
                found.append((name, product))
            if matrix == [*inputs, *outputs] and len(slabs) == 1:
                found.append((name, replace(product, transposed=True)))
        return found

    def _parameters(self, module: str) -> list[str]:
        """The module's parameters among the adapter's target_parameters."""
        named = {
            f"{module}.{target.rpartition('.')[2]}"
            for target in self.adapter.config.get("target_parameters") or ()
        }
        targets = tuple(f".{each}" for each in self.adapter.config.get("target_parameters") or ())
        return sorted(name for name in named if f".{name}".endswith(targets))

    def _pair(self, parts: Parts) -> tuple[str, str]:
        """The keys of A and B."""
        key = next(iter(parts.values()))
        for a, b in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if a in parts and b in parts:
                return parts[a], parts[b]
        raise self.adapter.fault(key, "has no other factor beside it: the file is not complete")

    def _is_transposed(self, a: str, b: str, shape: tuple[int, ...]) -> bool:
        """Whether a matrix is stored as (in, out). A square one is as its model's layers are."""
        inputs, outputs = (
            self.infos[a].shape[1:],
            self.infos[b].shape[:1],
        )
        if len(shape) != 2 or (*inputs, *outputs) != shape:
            return False
        if (*outputs, *inputs) != shape:
            return True
        # PEFT ignores fan_in_fan_out where the layer knows better.
        model = self.base.config.get("model_type")
        return bool(self.adapter.config.get("fan_in_fan_out")) if model is None else model in CONV1D

    def _add(self, stored: str, product: Product) -> None:
        saved = self.saved.get(stored)
        first = {stored: self.base.tensors[stored]} if saved is None else {saved: self.infos[saved]}
        for name, info in (first | {key: self.infos[key] for key in product.keys}).items():
            if info.dtype not in DTYPES:
                raise self.adapter.fault(
                    product.b,
                    f"{name} is {dtype_name(info.dtype)}, wanted float32, bfloat16 or float16: "
                    f"convert it (a quantised base: dequantise it) first",
                )
        if stored in self.products:
            raise self.adapter.fault(
                product.b, f"adds to {stored}, and so does {self.products[stored].b!r}"
            )
        self.products[stored] = product

    def _stored(self, name: str, key: str) -> str | None:
        found = self.names.of(name)
        if len(found) > 1:
            raise self.adapter.fault(key, f"could be any of {listing(found)} of {self.base.label}")
        return found[0] if found else None

    def _shape(self, stored: str) -> tuple[int, ...]:
        """Of a tensor before anything is added to it."""
        saved = self.saved.get(stored)
        return (self.base.tensors[stored] if saved is None else self.infos[saved]).shape

    def _check(self, key: str, want: tuple[int, ...], stored: str) -> None:
        if self.infos[key].shape != want:
            raise self._misfit(key, want, stored)

    def _misfit(self, key: str, want: tuple[int, ...], stored: str) -> CheckpointError:
        have = list(self.infos[key].shape)
        return self.adapter.fault(
            key,
            f"has shape {have}, wanted {list(want)} for {stored} of {self.base.label} and the rank "
            f"in adapter_config.json; is it an adapter of this base?",
        )

    def _absent(self, name: str, key: str) -> CheckpointError:
        return self.adapter.fault(
            key, f"the base {self.base.label} has no tensor {name}; give the base it was trained on"
        )


def _may_tie(config: Mapping[str, Any]) -> bool:
    """Whether a head that is not stored may be the embedding again."""
    text = config.get("text_config")
    levels = (config, text if isinstance(text, Mapping) else {})
    return all(level.get("tie_word_embeddings") is not False for level in levels)

"""A base with a LoRA adapter, as one checkpoint: what the adapter touches is computed when read."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from mergekern.arrays import HOST, Array, to_host
from mergekern.checkpoint.adapter import Adapter
from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.checkpoint.contents import Contents
from mergekern.checkpoint.files import FileState, WeightFile
from mergekern.checkpoint.lowrank import LowRank, add_squares
from mergekern.checkpoint.placed import Placed
from mergekern.checkpoint.targets import Product, find_targets
from mergekern.dtypes import FLOAT32
from mergekern.errors import CheckpointError

KEPT_BYTES = 8 << 20  # of factors read before; those in use are there whatever they take
STRETCH = 1 << 20  # elements at a time while norms are computed
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


class LoraCheckpoint:
    """The base's tensors; those that the adapter changes are W + scale B A, in fp32.

    A small change would be lost if it were rounded to bf16 before it is merged; TensorInfo.native
    keeps the base's dtype for the result. Nothing is held but factors, and of DoRA the norms: the
    elements asked for are computed in the buffer that they are wanted in. Tensors that the adapter
    holds whole are read from its file, all others from the base's.
    Raises CheckpointError naming the adapter's key that does not fit the base.
    """

    on_disk = True
    placed: Placed | None = None
    device = HOST

    def __init__(self, label: str, base: Checkpoint, adapter: Adapter) -> None:
        if base.device != HOST:
            raise CheckpointError(f"{base.label}: is on {base.device}: adapters need it on the CPU")
        self.label = label
        self._base, self._adapter = base, adapter
        self._targets = find_targets(adapter, base)
        self._prefix = _free_prefix(base)
        self._kept: OrderedDict[str, LowRank] = OrderedDict()
        self._factors: dict[str, np.ndarray] = {}
        self._lock = RLock()
        self.tensors = self._contents()
        touched = {*self._targets.saved, *self._targets.products}
        self.shared: Mapping[str, str] = {
            alias: first for alias, first in base.shared.items() if not touched & {alias, first}
        }
        self.config: Mapping[str, Any] = self._resized(base.config)
        self.generation_config = base.generation_config
        self.folder = base.folder
        self.notes = base.notes + adapter.notes + _tokenizer_notes(label, base.folder, adapter.path)
        # A base in memory cannot be known again, whatever is known of the adapter.
        known = bool(base.fingerprint)
        self.fingerprint: Mapping[str, str] = (
            {**base.fingerprint, **self._own_fingerprint()} if known else {}
        )
        self.states: Mapping[str, FileState] = {**base.states, **self._own_states()}
        own = {self._prefix + name: file for name, file in adapter.weights.files.items()}
        self.files: Mapping[str, WeightFile] = {**base.files, **own}

    def read(self, name: str, start: int, stop: int, buffer: np.ndarray | None) -> Array:
        """Elements [start, stop) as a view of the buffer's head; see Checkpoint.read."""
        if name not in self._targets.products:
            checkpoint, key = self._origin(name)
            return checkpoint.read(key, start, stop, buffer)
        length = stop - start
        if buffer is None:
            buffer = np.empty(4 * length, np.uint8)
        return self._compute(name, self._low_rank(name), start, stop, buffer[: 4 * length])

    def _compute(
        self, name: str, low_rank: LowRank, start: int, stop: int, buffer: np.ndarray
    ) -> np.ndarray:
        checkpoint, key = self._origin(name)
        length = (stop - start) * checkpoint.tensors[key].dtype.itemsize
        # At the end of the buffer, which narrower elements leave in the order they were read.
        weight = to_host(checkpoint.read(key, start, stop, buffer[len(buffer) - length :]))
        out = buffer.view(FLOAT32)
        low_rank.apply(weight, start, out)
        return out

    def _origin(self, name: str) -> tuple[Checkpoint, str]:
        """Which file has the tensor before anything is added to it, and under which name."""
        saved = self._targets.saved.get(name)
        return (self._base, name) if saved is None else (self._adapter.weights, saved)

    def _low_rank(self, name: str) -> LowRank:
        """The tensor's factors, those used last being kept."""
        with self._lock:
            found = self._kept.pop(name, None) or self._load(name)
            self._kept[name] = found
            while len(self._kept) > 1 and sum(x.nbytes for x in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return found

    def _load(self, name: str) -> LowRank:
        product = self._targets.products[name]
        found = load_factors(self._adapter.weights, product)
        if product.magnitude is None:
            return found
        if name not in self._factors:
            magnitude = _whole(self._adapter.weights, product.magnitude)
            norms = np.sqrt(self._squares(name, found, product.transposed))
            with np.errstate(all="ignore"):  # what is not finite is found in what is merged
                self._factors[name] = magnitude / norms.astype(FLOAT32)
        return replace(found, factor=self._factors[name], by_column=product.transposed)

    def _squares(self, name: str, low_rank: LowRank, by_column: bool) -> np.ndarray:
        """The sums of squares of W + scale B A for every output, in fp64."""
        columns, numel = low_rank.columns, self.tensors[name].numel
        rows = numel // columns
        sums = np.zeros(columns if by_column else rows)
        step = max(1, STRETCH // columns)
        buffer = np.empty(4 * min(step, rows) * columns, np.uint8)
        for row in range(0, rows, step):
            start, stop = row * columns, min(row + step, rows) * columns
            x = self._compute(name, low_rank, start, stop, buffer[: 4 * (stop - start)])
            add_squares(x, columns, by_column, sums if by_column else sums[row : row + step])
        return sums

    def verify_unchanged(self) -> None:
        """Raise CheckpointError when a file of base or adapter is not what it was when opened."""
        for part in (self._base, self._adapter.weights, self._adapter.config_file):
            part.verify_unchanged()

    def close(self) -> None:
        """Close the files of both."""
        self._base.close()
        self._adapter.close()
        self._kept.clear()

    def _changed(self, name: str) -> bool:
        return name in self._targets.products or name in self._targets.saved

    def _contents(self) -> Contents:
        """The base's tensors in its order, then what the adapter has beside them."""
        names = [*self._base.tensors, *(set(self._targets.saved) - self._base.tensors.keys())]
        return Contents((name, self._info(name)) for name in names)

    def _info(self, name: str) -> TensorInfo:
        checkpoint, key = self._origin(name)
        info = checkpoint.tensors[key]
        native = self._base.tensors.get(name, info)
        dtype = native.native or native.dtype
        if name in self._targets.products:
            factors = (self._adapter.weights.tensors[k] for k in self._targets.products[name].keys)
            behind = info.nbytes_read + sum(each.nbytes for each in factors)
            return TensorInfo(name, FLOAT32, info.shape, native=dtype, behind=behind)
        if checkpoint is self._base:
            return info
        file = self._prefix + info.file if info.file else ""
        return replace(info, name=name, file=file, native=dtype)

    def _resized(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The config, its vocabulary that of the embeddings which the adapter brings."""
        for name in self._targets.saved:
            base = self._base.tensors.get(name)
            if base is not None and base.shape != self.tensors[name].shape:
                return _with_vocabulary(config, base.shape[0], self.tensors[name].shape[0])
        return config

    def _own_fingerprint(self) -> dict[str, str]:
        config = self._adapter.config_file
        digest = sha256(config.read_bytes(0, config.size, "settings")).hexdigest()
        found = {**self._adapter.weights.fingerprint, config.name: digest}
        return {self._prefix + name: digest for name, digest in found.items()}

    def _own_states(self) -> dict[str, FileState]:
        found = {
            **self._adapter.weights.states,
            self._adapter.config_file.name: self._adapter.config_file.state,
        }
        return {self._prefix + name: state for name, state in found.items()}


def load_factors(weights: Checkpoint, product: Product) -> LowRank:
    """The factors of one tensor, in fp32, as they lie on it: W + scale L R."""
    b = _whole(weights, product.b).reshape(-1, product.rank, product.slabs).transpose(2, 0, 1)
    if product.a is None:
        a = np.ones((1, 1, 1), FLOAT32)
    else:
        a = _whole(weights, product.a).reshape(product.slabs, product.rank, -1)
    left, right = (a.swapaxes(1, 2), b.swapaxes(1, 2)) if product.transposed else (b, a)
    left, right = (np.ascontiguousarray(each) for each in (left, right))
    return LowRank(left, right, product.scale)


def _whole(weights: Checkpoint, key: str) -> np.ndarray:
    """One of the adapter's tensors, flat, in fp32."""
    return to_host(weights.read(key, 0, weights.tensors[key].numel, None)).astype(FLOAT32)


def _free_prefix(base: Checkpoint) -> str:
    """For the names of the adapter's files; an adapter may stand on an adapted base."""
    prefix = "adapter/"
    while any(name.startswith(prefix) for name in base.states):
        prefix = "adapter/" + prefix
    return prefix


def _with_vocabulary(config: Mapping[str, Any], before: int, now: int) -> dict[str, Any]:
    changed = dict(config)
    for key, value in config.items():
        if key == "vocab_size" and value == before:
            changed[key] = now
        elif key == "text_config" and isinstance(value, Mapping):
            changed[key] = _with_vocabulary(value, before, now)
    return changed


def _tokenizer_notes(label: str, folder: Path | None, adapter: Path) -> tuple[str, ...]:
    """Says so when the adapter's folder holds another tokenizer, which the merge does not take."""
    for name in TOKENIZERS:
        own, other = adapter.parent / name, (folder or adapter.parent) / name
        if own.exists() and other.exists() and _tokens(own) != _tokens(other):
            return (
                f"{label}: the adapter's folder holds another {name} than the base's; the merge "
                f"takes its tokenizer from a base",
            )
    return ()


def _tokens(path: Path) -> object:
    """What a tokenizer file says of tokens; how texts are padded and cut is no part of it."""
    data = path.read_bytes()
    if path.suffix != ".json":
        return data
    try:
        found = json.loads(data)
    except ValueError:
        return data
    return (found.get("model"), found.get("added_tokens")) if "model" in found else found

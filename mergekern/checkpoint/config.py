"""config.json: reading it, refusing what cannot be merged, and keeping its dtype true."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekern.checkpoint.jsonfile import read_object
from mergekern.dtypes import DType, dtype_name
from mergekern.errors import CheckpointError

CONFIG = "config.json"
DTYPE_KEYS = ("dtype", "torch_dtype")  # transformers 5 writes the first, older ones the second
QUANTISED_KEYS = ("quantization_config", "compression_config")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, {} when there is none. Raises CheckpointError if it is no JSON."""
    path = folder / CONFIG
    return read_object(path, strict=False) if path.exists() else {}


def check_mergeable_config(config: Mapping[str, Any], label: str) -> None:
    """Raise CheckpointError when the config, or one inside it, says that weights are quantised."""
    for key in QUANTISED_KEYS:
        if config.get(key):
            method = config[key].get("quant_method") if isinstance(config[key], Mapping) else None
            kind = f" ({method})" if method else ""
            raise CheckpointError(
                f"{label}: its config.json has a {key}{kind}: quantised checkpoints cannot be "
                f"merged yet; dequantise it first and save it as bfloat16"
            )
    for key, value in config.items():
        if isinstance(value, Mapping) and key.endswith("_config"):
            check_mergeable_config(value, label)


def with_dtype(config: Mapping[str, Any], dtype: DType) -> dict[str, Any]:
    """The config with its dtype fields set, in configs inside it too; the rest, and order, kept."""
    name = dtype_name(dtype)
    present = [key for key in DTYPE_KEYS if key in config] or [DTYPE_KEYS[0]]
    return _set_present(config, name) | dict.fromkeys(present, name)


def _set_present(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    # A null inside means the outer config's dtype, and stays.
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in DTYPE_KEYS and isinstance(value, str):
            changed[key] = name
        elif isinstance(value, Mapping) and key.endswith("_config"):
            changed[key] = _set_present(value, name)
        else:
            changed[key] = value
    return changed

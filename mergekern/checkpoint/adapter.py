"""LoRA adapters as PEFT saves them: adapter_config.json, and what each key of the weights is."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekern.checkpoint import pytorch_bin, safetensors
from mergekern.checkpoint.base import Checkpoint, listing
from mergekern.checkpoint.files import WeightFile
from mergekern.checkpoint.jsonfile import read_object
from mergekern.checkpoint.local import weights_kind
from mergekern.errors import CheckpointError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # in the order PEFT looks for them
PREFIX = "base_model.model."
WRAPPED = ".base_layer"  # what a module is called inside the one that PEFT puts around it

PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
# <module>.<part>[.<adapter's name>][.weight|.bias]
FACTOR = re.compile(rf"(.+)\.({'|'.join(PARTS)})(?:\.(?!(?:weight|bias)$)[^.]+)?(\.weight|\.bias)?")
SAVED = re.compile(r"\.modules_to_save\.[^.]+(?=\.)")  # how state dicts name a saved module
UNREAD = re.compile(r"(?:^|\.)(?:lora_|token_adapter\.|original_module\.|trainable_tokens_)")

# Settings that give the factors another meaning than W + scale B A.
REFUSED = {
    "alora_invocation_tokens": "acts on some tokens only (aLoRA), which no merged weight can",
    "arrow_config": "routes between adapters (Arrow)",
    "kasa_config": "truncates the base (KaSA)",
    "layer_replication": "stacks the base's layers anew",
    "monteclora_config": "samples its factors (MonteCLoRA)",
    "trainable_token_indices": "trains the rows of single tokens",
    "use_bdlora": "has factors in diagonal blocks (BD-LoRA)",
    "use_qalora": "pools its inputs (QA-LoRA)",
}
NUMBERS = (  # setting, its patterns, what they may be
    ("r", "rank_pattern", "1 or more, a whole number"),
    ("lora_alpha", "alpha_pattern", "0 or more"),
)
# Initialisations that leave the base changed, so that the factors belong to another matrix.
REBASED = ("pissa", "corda", "olora", "loftq", "lora_ga")
# All that PEFT writes and that is used here, or says nothing of the merged weights.
KNOWN = frozenset(
    (
        *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config"),
        *("ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out"),
        *("inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
        *("loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config"),
        *("megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version"),
        *("qalora_group_size", "r", "rank_pattern", "revision", "runtime_config"),
        *("target_modules", "target_parameters", "task_type", "use_dora", "use_rslora"),
        "velora_config",
    )
)


@dataclass(frozen=True)
class Adapter:
    """An adapter, opened: its config checked, its factors found, nothing read yet.

    factors:  (module, how many wrappers stand around it) -> part, one of PARTS or "lora_B.bias" ->
              key of the weights
    saved:    the name of a tensor that it replaces whole -> key of the weights
    path:     of the file with the weights
    """

    label: str
    path: Path
    config: Mapping[str, Any]
    config_file: WeightFile
    weights: Checkpoint
    factors: Mapping[tuple[str, int], Mapping[str, str]]
    saved: Mapping[str, str]

    def fault(self, key: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: key {key!r}: {what}")

    def rank(self, module: str) -> int:
        """r, or what the first rank_pattern that matches says; `module` without PREFIX."""
        return int(self._setting("rank_pattern", module, self.config.get("r", 8)))

    def scale(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) with use_rslora (rsLoRA, arXiv 2312.03732)."""
        alpha = float(self._setting("alpha_pattern", module, self.config.get("lora_alpha", 8)))
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def _setting(self, patterns: str, module: str, default: Any) -> Any:
        """As PEFT matches: a pattern is a regular expression for the end of the module's name."""
        for pattern, value in (self.config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default

    @property
    def notes(self) -> tuple[str, ...]:
        """Settings that are not known here, and so have had no effect."""
        unknown = [k for k, v in self.config.items() if k not in KNOWN and k not in REFUSED and v]
        if not unknown:
            return ()
        return (f"{self.label}: {CONFIG} has settings that are not known: {listing(unknown)}",)

    def close(self) -> None:
        self.weights.close()
        self.config_file.close()


def is_adapter(names: Collection[str]) -> bool:
    """Whether a folder with these files is an adapter and no model."""
    return CONFIG in names and weights_kind(names) is None


def adapter_files(where: str, names: Collection[str]) -> tuple[str, str]:
    """Those of an adapter's files that are read: config and weights. CheckpointError if none."""
    kind = next((kind for kind in WEIGHTS if kind in names), None)
    if CONFIG not in names or kind is None:
        missing = CONFIG if CONFIG not in names else " or ".join(WEIGHTS)
        raise CheckpointError(f"{where}: is no LoRA adapter: it has no {missing}")
    return CONFIG, kind


def open_adapter(label: str, folder: Path) -> Adapter:
    """The adapter in a folder. Raises CheckpointError, in one line, for what cannot be applied."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error
    _, kind = adapter_files(str(folder), names)
    config = read_object(folder / CONFIG, strict=False)
    check_config(config, folder / CONFIG)
    if kind == WEIGHTS[0]:
        weights: Checkpoint = safetensors.open_single(label, folder / kind, None, {})
    else:
        weights = pytorch_bin.open_bin(label, folder, kind, {})
    factors, saved = _sort_keys(list(weights.tensors), folder / kind)
    config_file = WeightFile(folder / CONFIG, CONFIG)
    return Adapter(label, folder / kind, config, config_file, weights, factors, saved)


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError naming the setting that cannot be applied."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type is {kind!r}; only LORA adapters are read")
    for setting, why in REFUSED.items():
        if config.get(setting):
            raise CheckpointError(
                f"{path}: {setting} is set: the adapter {why}, and is not read; merge it with peft "
                f"and give the folder that saves"
            )
    start = str(config.get("init_lora_weights"))
    if start.lower().startswith(REBASED):
        raise CheckpointError(
            f"{path}: init_lora_weights is {start!r}: its factors belong to a base that this "
            f"changed; save it with peft's path_initial_model_for_weight_conversion"
        )
    _check_numbers(config, path)
    targets = config.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(each, str) for each in targets):
        raise CheckpointError(
            f"{path}: target_parameters is {targets!r:.80}, wanted a list of names"
        )


def _check_numbers(config: Mapping[str, Any], path: Path) -> None:
    for default, patterns, wanted in NUMBERS:
        given = config.get(patterns) or {}
        if not isinstance(given, Mapping):
            raise CheckpointError(f"{path}: {patterns} is {given!r:.80}, wanted a mapping")
        for name, value in ((default, config.get(default, 8)), *given.items()):
            if not _is_number(value, whole=default == "r"):
                raise CheckpointError(f"{path}: {name} is {value!r:.80}, wanted {wanted}")
        for pattern in given:
            try:
                re.compile(pattern)
            except re.error as error:
                raise CheckpointError(f"{path}: {patterns}: {pattern!r}: {error}") from error


def _is_number(value: Any, *, whole: bool) -> bool:
    """Whether it is one that a rank (whole) or an alpha may be."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return whole <= value <= sys.float_info.max and (not whole or value % 1 == 0)


def _sort_keys(
    keys: list[str], path: Path
) -> tuple[dict[tuple[str, int], dict[str, str]], dict[str, str]]:
    """Every key as a part of a module's factors, or as a tensor that is replaced."""
    factors: dict[tuple[str, int], dict[str, str]] = {}
    saved: dict[str, str] = {}
    for key in keys:
        name = SAVED.sub("", key.removeprefix(PREFIX))
        found = FACTOR.fullmatch(name)
        if found is None:
            entries, entry = saved, name.replace(WRAPPED, "")
        else:
            module, part, tail = found.groups()
            wrappers = (len(module) - len(_unwrapped(module))) // len(WRAPPED)
            entries = factors.setdefault((module.replace(WRAPPED, ""), wrappers), {})
            entry = part + (tail or "").removesuffix(".weight")
        if entry not in (*PARTS, "lora_B.bias") if found else UNREAD.search(name):
            raise CheckpointError(f"{path}: key {key!r}: is of no kind that is read")
        if entry in entries:
            raise CheckpointError(
                f"{path}: key {key!r}: says the same as {entries[entry]!r}: the file holds more "
                f"than one adapter; save one by itself"
            )
        entries[entry] = key
    return factors, saved


def _unwrapped(module: str) -> str:
    """Without the wrappers at its end."""
    while module.endswith(WRAPPED):
        module = module.removesuffix(WRAPPED)
    return module

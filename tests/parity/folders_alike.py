"""Whether two merged folders are the same model: tensors by name, config, tokenizer, logits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from architectures import ARCHITECTURES
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
# Keys that say nothing of the model; and layer_types, which mergekit leaves as they were.
UNTOLD = ("transformers_version", "torch_dtype", "dtype")
LOGITS = 1e-4  # of the largest


@lru_cache(maxsize=16)
def _loaded(folder: Path) -> Tensors:
    found: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def load(folder: Path) -> Tensors:
    return _loaded(folder)


def with_fused_experts(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Experts that are stored one by one as transformers holds them: stacked, gate above up."""
    found: Tensors = {}
    single: dict[str, dict[tuple[int, str], torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if match := EXPERT.fullmatch(name):
            single.setdefault(match[1], {})[int(match[2]), match[3]] = tensor
        else:
            found[name] = tensor
    for prefix, parts in single.items():
        count = 1 + max(number for number, _ in parts)
        gates = [torch.cat([parts[n, "gate"], parts[n, "up"]]) for n in range(count)]
        found[f"{prefix}.gate_up_proj"] = torch.stack(gates)
        found[f"{prefix}.down_proj"] = torch.stack([parts[n, "down"] for n in range(count)])
    return found


def config_faults(got: Path, want: Path) -> list[str]:
    a, b = (json.loads((folder / "config.json").read_text()) for folder in (got, want))
    keys = [key for key in {*a, *b} if key not in UNTOLD and a.get(key) != b.get(key)]
    return [f"config {key}: {a.get(key)!r}, mergekit {b.get(key)!r}" for key in sorted(keys)]


def places(got: Path, want: Path) -> tuple[torch.Tensor | None, list[str]]:
    """For each id of want's tokenizer the id of that token in got's; faults where they differ in
    more than the order of what is added."""
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(f) for f in (got, want))
    a, b = ours.get_vocab(), theirs.get_vocab()
    if a.keys() != b.keys():
        more, less = sorted(a.keys() - b.keys())[:3], sorted(b.keys() - a.keys())[:3]
        return None, [f"tokenizer: {len(a)} tokens, mergekit {len(b)} (more {more}, less {less})"]
    faults = []
    for key in ("bos_token", "eos_token", "unk_token", "chat_template"):
        if getattr(ours, key) != getattr(theirs, key):
            found = f"{getattr(ours, key)!r}, mergekit {getattr(theirs, key)!r}"
            faults.append(f"tokenizer {key}: {found}")
    order = [a[token] for token in sorted(b, key=lambda token: b[token])]
    return torch.tensor(order), faults


def in_order(tensors: Tensors, order: torch.Tensor, rows: int) -> Tensors:
    """Embeddings with their rows as `order` says, and `rows` of them: padding is not compared."""

    def ordered(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not name.endswith(("embed_tokens.weight", "lm_head.weight")):
            return tensor
        rest = torch.arange(len(order), max(rows, len(order)))
        return tensor[torch.cat([order, rest])[:rows].clamp(max=len(tensor) - 1)]

    return {name: ordered(name, tensor) for name, tensor in tensors.items()}


def logits_fault(architecture: str, got: Path, want: Path, order: torch.Tensor | None) -> list[str]:
    """Both models load, and say the same of some tokens."""
    ids = torch.arange(3, 13)[None]
    ours = order[ids] if order is not None else ids
    a = _logits(architecture, got, ours)
    b = _logits(architecture, want, ids)
    if order is not None and a.shape[-1] >= len(order) <= b.shape[-1]:
        a, b = a[..., order], b[..., : len(order)]
    off = float((a - b).abs().max() / b.abs().max()) if a.shape == b.shape else float("inf")
    return [f"logits {off:.2g} of the largest apart"] if not off <= LOGITS else []


def _logits(architecture: str, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model: Any = ARCHITECTURES[architecture].auto.from_pretrained(folder, dtype=torch.float32)
    given = {"input_ids": ids}
    if architecture == "t5":
        given["decoder_input_ids"] = ids
    with torch.no_grad():
        out = model.eval()(**given)
    return out[0].double()

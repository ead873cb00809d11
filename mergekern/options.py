"""What a merge may take, leave and write, beside what its recipe says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Mismatch = Literal["error", "base", "skip-model"]


@dataclass(frozen=True)
class Options:
    """How models become a plan and a folder; merge() documents each.

    shard_bytes: of the largest output file
    """

    mismatch: Mismatch = "error"
    truncate_embeddings: bool = False
    allow_crimes: bool = False
    shard_bytes: int = 5_000_000_000
    cache: Path | None = None
    copy_tokenizer: bool = True
    write_model_card: bool = True


DEFAULT = Options()

"""What a merge may take, leave and write, beside what its recipe says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mergekern.checkpoint.container import Base
from mergekern.errors import RecipeError
from mergekern.methods import nearest

Mismatch = Literal["error", "base", "skip-model"]


@dataclass(frozen=True)
class Options:
    """How models become a plan and a folder; merge() documents each.

    shard_bytes: of the largest output file
    base: of the container that a model is taken out of, in place of the one that it names
    Raises RecipeError for a mismatch that there is not.
    """

    mismatch: Mismatch = "error"
    truncate_embeddings: bool = False
    allow_crimes: bool = False
    shard_bytes: int = 5_000_000_000
    cache: Path | None = None
    copy_tokenizer: bool = True
    write_model_card: bool = True
    base: Base | None = None

    def __post_init__(self) -> None:
        known = get_args(Mismatch)
        if self.mismatch not in known:
            hint = nearest(str(self.mismatch), known)
            raise RecipeError(f"mismatch is {self.mismatch!r}{hint} (want {', '.join(known)})")


DEFAULT = Options()

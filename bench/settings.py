"""How much is measured: in full for the figures, quickly to see that everything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EXPERTS, DENSITY = 4, 0.2


@dataclass(frozen=True)
class Settings:
    """scratch: a folder on the disk that is measured."""

    quick: bool
    threads: int
    scratch: Path

    @property
    def numel(self) -> int:
        """Of one model in memory."""
        return 1 << 21 if self.quick else 100_000_000

    @property
    def repetitions(self) -> int:
        return 2 if self.quick else 7

    @property
    def long_repetitions(self) -> int:
        """Of what takes seconds."""
        return 1 if self.quick else 5

    @property
    def layers(self) -> int:
        """Tensors of a checkpoint on disk."""
        return 2 if self.quick else 10

    @property
    def shape(self) -> tuple[int, int]:
        """Of each of them."""
        return (512, 1024) if self.quick else (4096, 4096)

    @property
    def tensors(self) -> int:
        """Of a checkpoint of very many, and its shards."""
        return 2_000 if self.quick else 20_000

    @property
    def shards(self) -> int:
        return 16 if self.quick else 160

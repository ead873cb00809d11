"""Which tensors have a row for every token: input embeddings, output heads and their biases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mergekern.checkpoint.base import Checkpoint
from mergekern.errors import MismatchError
from mergekern.tied import VOCABULARY
from mergekern.tokenizer.ids import vocab_size

# By the end of the name, whole components of it; several of them also name other things, which
# have another number of rows.
INPUT = (
    *("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "word_embedding.weight"),
    *("embed_in.weight", "shared.weight", "tok_embeddings.weight", "token_embedding.weight"),
    *("embeddings.weight", "embedding.weight", "emb.weight"),
)
OUTPUT = (
    *("lm_head.weight", "lm_head.bias", "lm_head.decoder.weight", "lm_head.decoder.bias"),
    *("embed_out.weight", "output.weight", "output_layer.weight", "proj_out.weight"),
    *("predictions.decoder.weight", "predictions.decoder.bias", "predictions.bias"),
    *("vocab_projector.weight", "vocab_projector.bias", "generator_lm_head.weight"),
    *("generator_lm_head.bias", "lm_loss.weight", "lm_loss.bias", "final_logits_bias"),
    *("head.weight", "head.bias"),
)
OTHER = re.compile(r"vision|visual|image|patch|pixel|audio|speech|position|pos_emb|token_type|wpe")
LAYER = re.compile(r"\.\d+\.")


def is_vocabulary(name: str) -> bool:
    """Whether a tensor goes by the name of one that has a row for every token."""
    if OTHER.search(name):
        return False
    return name in VOCABULARY or _ends(name, INPUT + OUTPUT)


def embedding_rows(checkpoint: Checkpoint) -> int:
    """How many tokens a model has rows for: those of its input embedding.

    Raises MismatchError when it has no tensor of a name known for one.
    """
    found = [
        info.shape[0]
        for name, info in checkpoint.tensors.items()
        if _ends(name, INPUT) and not OTHER.search(name) and len(info.shape) == 2
    ]
    if found:
        size = vocab_size(checkpoint.config)
        return size if size in found else found[0]
    raise MismatchError(
        f"{checkpoint.label}: has no input embedding among its tensors (looked for names ending in "
        f"{', '.join(INPUT)}), so its vocabulary cannot be aligned: leave tokenizer out of the "
        "recipe"
    )


def doubtful(checkpoint: Checkpoint, rows: int) -> list[str]:
    """Tensors outside layers with as many rows as there are tokens, and for no other reason."""
    others = {n for n in _integers(checkpoint.config) if n != vocab_size(checkpoint.config)}
    if rows in others:
        return []
    return [
        name
        for name, info in checkpoint.tensors.items()
        if info.shape and info.shape[0] == rows and not is_vocabulary(name)
        if not LAYER.search(name)
    ]


def _ends(name: str, ends: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith("." + end) for end in ends)


def _integers(config: Mapping[str, Any]) -> set[int]:
    found = set()
    for value in config.values():
        if isinstance(value, Mapping):
            found |= _integers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            found.add(value)
    return found

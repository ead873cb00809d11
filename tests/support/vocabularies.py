"""Small tokenizers of every kind, saved beside tiny random Llama models of their vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from models import tiny_llama
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as kinds
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ANIMALS = "the quick brown fox jumps over the lazy dog and hunts the hare"
CODE = "def merge of models returns tensors where the parameters of models agree"
SPECIAL = ["<unk>", "<s>", "</s>"]


def tokenizer(
    text: str,
    kind: str = "bpe",
    *,
    size: int = 290,
    special: Sequence[str] = SPECIAL,
    added: Sequence[str] = (),
    template: str | None = None,
) -> PreTrainedTokenizerFast:
    """Trained on a text; `added` come last and are special."""
    shared: dict[str, Any] = {"special_tokens": list(special), "show_progress": False}
    if kind == "bpe":
        found = Tokenizer(kinds.BPE())
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, **shared)
    elif kind == "unigram":
        found = Tokenizer(kinds.Unigram())
        found.pre_tokenizer = pre_tokenizers.Metaspace()
        found.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", **shared)
    else:
        found = Tokenizer(kinds.WordPiece(unk_token="<unk>"))
        found.normalizer = normalizers.Lowercase()
        found.pre_tokenizer = pre_tokenizers.Whitespace()
        found.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=60, **shared)
    found.train_from_iterator([text] * 9, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=found, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.add_tokens(list(added), special_tokens=True)
    fast.chat_template = template
    return fast


def model(
    folder: Path,
    tokens: PreTrainedTokenizerFast,
    seed: int = 0,
    *,
    rows: int | None = None,
    tie: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A model with a row for every token and, with `rows`, padding behind them, or fewer."""
    tiny_llama(folder, seed, tie=tie, vocabulary=rows or len(tokens), dtype=dtype)
    tokens.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rows_by_token(folder: Path, name: str = EMBED) -> dict[str, torch.Tensor]:
    """The row that each token has, as transformers loads model and tokenizer."""
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    ids = AutoTokenizer.from_pretrained(folder).get_vocab()
    return {token: state[name][row] for token, row in ids.items() if row < len(state[name])}

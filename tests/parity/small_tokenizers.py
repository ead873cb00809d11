"""Small tokenizers: letters and pairs of letters, and what makes vocabularies differ."""

from __future__ import annotations

from itertools import product
from string import ascii_lowercase

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>")
PADDING = 2  # rows of the embedding that no token has
EXTRA = 3  # rows more of the model `wide`
TURNS = ("<|start|>", "<|end|>")  # which has these tokens besides
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"


def tokenizer_of(name: str, rows: int) -> PreTrainedTokenizerFast:
    """For an embedding of `rows`: the same for all models but `wide`, which has TURNS besides, and
    `other`, which has its tokens in another order and some of its own."""
    count = rows - PADDING - len(SPECIAL)
    letters = ascii_lowercase[: min(12, count // 2)]
    pairs = list(product(letters, repeat=2))[: count - len(letters)]
    if name == "other":
        pairs = [(second, first) for first, second in pairs][::-1]
    words = [*letters, *("".join(pair) for pair in pairs)]
    vocabulary = {word: place for place, word in enumerate((*SPECIAL, *words))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    if name == "wide":
        tokenizer.add_special_tokens({"additional_special_tokens": list(TURNS)})
        tokenizer.chat_template = TEMPLATE
    return tokenizer

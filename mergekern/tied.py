"""Tensors that are one in the model though they have two names: tied heads and shared storage.

A tied head is stored once, twice or under the embedding's name only, as the tool that saved the
file saw fit. Here every model is brought to what the donor's config says, so that the merged model
loads with the head it should have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.naming import renamed

Stored = dict[str, TensorInfo]


@dataclass(frozen=True)
class Tie:
    """`copy` repeats `original` in tied models.

    always: whatever the config says, but for a donor that says no and stores the copy
    """

    original: str
    copy: str
    always: bool = False


TIES = (
    Tie("model.embed_tokens.weight", "lm_head.weight"),
    Tie("model.language_model.embed_tokens.weight", "lm_head.weight"),
    Tie("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
    Tie("model.decoder.embed_tokens.weight", "lm_head.weight"),
    Tie("transformer.wte.weight", "lm_head.weight"),
    Tie("transformer.word_embeddings.weight", "lm_head.weight"),
    Tie("gpt_neox.embed_in.weight", "embed_out.weight"),
    Tie("gpt_neox.embed_in.weight", "lm_head.weight"),
    Tie("model.shared.weight", "lm_head.weight"),
    Tie("model.shared.weight", "model.encoder.embed_tokens.weight", always=True),
    Tie("model.shared.weight", "model.decoder.embed_tokens.weight", always=True),
    Tie("shared.weight", "encoder.embed_tokens.weight", always=True),
    Tie("shared.weight", "decoder.embed_tokens.weight", always=True),
    Tie("shared.weight", "lm_head.weight"),
    Tie("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    Tie("cls.predictions.bias", "cls.predictions.decoder.bias", always=True),
    Tie("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    Tie("lm_head.bias", "lm_head.decoder.bias", always=True),
)

VOCABULARY = frozenset(name for tie in TIES for name in (tie.original, tie.copy))


@dataclass(frozen=True)
class Names:
    """Which stored tensor each model gives for an output name.

    stored:   per model, output name -> stored tensor, in file order
    aliases:  output name -> the output name whose storage it shares
    left_out: (model, stored name, reason)
    renamed:  (model, how its names were changed to be the donor's)
    lent:     (model, output name) of tied tensors that one of another name stands for
    """

    stored: tuple[Stored, ...]
    aliases: Mapping[str, str]
    left_out: tuple[tuple[int, str, str], ...]
    renamed: tuple[tuple[int, str], ...] = ()
    lent: frozenset[tuple[int, str]] = frozenset()


def match_names(checkpoints: Sequence[Checkpoint], donor: int, share: bool) -> Names:
    """Bring every model's names to those of the donor, as far as ties and aliases go.

    share: names of one storage stay so in the result. Files hold no such names: there only what
           the config ties is left out, or a model that ties nothing would load with a part missing.
    """
    like = checkpoints[donor].tensors
    found = [renamed(checkpoint.tensors, like) for checkpoint in checkpoints]
    stored = tuple(names for names, _ in found)
    changed = tuple((model, how) for model, (_, how) in enumerate(found) if how)
    left_out: list[tuple[int, str, str]] = []
    aliases = _common_aliases(checkpoints, donor) if share else {}
    for names in stored:
        for alias in aliases:
            names.pop(alias, None)
    for model, checkpoint in enumerate(checkpoints):
        for alias, first in checkpoint.shared.items():
            if alias in stored[model] and alias not in stored[donor]:
                del stored[model][alias]
                left_out.append((model, alias, f"shares its storage with {first}"))
    lent: set[tuple[int, str]] = set()
    for tie in TIES:
        left_out += _apply(tie, checkpoints, stored, donor, lent)
    return Names(stored, aliases, tuple(left_out), changed, frozenset(lent))


def _common_aliases(checkpoints: Sequence[Checkpoint], donor: int) -> dict[str, str]:
    """The donor's aliases that no other model holds as tensors of their own."""

    def one(checkpoint: Checkpoint, alias: str, first: str) -> bool:
        known = alias in checkpoint.tensors or alias in checkpoint.shared
        shared = checkpoint.shared
        return not known or shared.get(alias, alias) == shared.get(first, first)

    return {
        alias: first
        for alias, first in checkpoints[donor].shared.items()
        if all(one(checkpoint, alias, first) for checkpoint in checkpoints)
    }


def _apply(
    tie: Tie,
    checkpoints: Sequence[Checkpoint],
    stored: Sequence[Stored],
    donor: int,
    lent: set[tuple[int, str]],
) -> list[tuple[int, str, str]]:
    donor_tied = tie.original in stored[donor] and _tied(tie, checkpoints[donor])
    donor_has_copy = tie.copy in stored[donor]
    left_out = []
    for model, checkpoint in enumerate(checkpoints):
        names = stored[model]
        if tie.original not in names or not (tie.always or _tied(tie, checkpoint)):
            continue
        if donor_tied and tie.copy in names:
            del names[tie.copy]
            left_out.append((model, tie.copy, f"tied to {tie.original}"))
        elif not donor_tied and donor_has_copy and tie.copy not in names:
            names[tie.copy] = names[tie.original]
            lent.add((model, tie.copy))
    return left_out


def _tied(tie: Tie, checkpoint: Checkpoint) -> bool:
    """What the config says; where it is silent, a head that is not stored is a tied one.

    transformers' default differs by class and version, so silence says nothing by itself.
    """
    absent = tie.copy not in checkpoint.tensors
    if tie.always and absent:
        return True
    config = checkpoint.config
    text = config.get("text_config")
    for level in (config, text if isinstance(text, Mapping) else {}):
        if isinstance(level.get("tie_word_embeddings"), bool):
            return bool(level["tie_word_embeddings"])
    return tie.always or absent

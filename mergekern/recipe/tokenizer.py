"""What a recipe asks of the merged model's tokenizer, vocabulary and chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mergekern.errors import RecipeError
from mergekern.methods import nearest
from mergekern.recipe.source import Source, parse_source

TEMPLATES = ("alpaca", "chatml", "exaone", "llama3", "mistral")  # by name
PADDING = ("keep", "drop")
SHORTEST_TEMPLATE = 20  # characters; a literal one that is shorter is a name misspelt


@dataclass(frozen=True)
class ModelToken:
    """The embedding of one model's token, named by its text or by its id."""

    model: Source
    token: str | None = None
    token_id: int | None = None


@dataclass(frozen=True)
class Token:
    """Where the embedding of one token of the output comes from.

    source: a model that has the token, another token of a model, or zeros
    force:  also for models that have the token themselves
    """

    source: Source | ModelToken | Literal["zero"]
    force: bool = False


@dataclass(frozen=True)
class TokenizerSettings:
    """The output's vocabulary.

    source: union of all models' tokens, the base's, or those of one model
    tokens: by their text; those that the vocabulary lacks are added to it
    pad_to_multiple_of: how many rows the embeddings are padded to, with the mean of the others
    padding: otherwise, the rows behind the tokens that the vocabulary's model has are kept, or
             dropped
    """

    source: Source | Literal["union", "base"] = "union"
    tokens: Mapping[str, Token] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    padding: Literal["keep", "drop"] = "keep"

    @property
    def models(self) -> Iterator[Source]:
        """The models that it names."""
        if isinstance(self.source, Source):
            yield self.source
        for token in self.tokens.values():
            if isinstance(token.source, Source):
                yield token.source
            elif isinstance(token.source, ModelToken):
                yield token.source.model

    @property
    def written(self) -> dict[str, Any]:
        """The `tokenizer` block of a recipe file."""
        content: dict[str, Any] = {"source": _written(self.source)}
        if self.tokens:
            content["tokens"] = {
                text: {"source": _written(token.source)} | ({"force": True} if token.force else {})
                for text, token in self.tokens.items()
            }
        if self.pad_to_multiple_of is not None:
            content["pad_to_multiple_of"] = self.pad_to_multiple_of
        if self.padding != "keep":
            content["padding"] = self.padding
        return content


def _written(source: Source | ModelToken | str) -> Any:
    if isinstance(source, Source):
        return source.written
    if isinstance(source, ModelToken):
        which: dict[str, Any] = {"token": source.token}
        if source.token is None:
            which = {"token_id": source.token_id}
        return {"kind": "model_token", "model": source.model.written, **which}
    return {"kind": "zero"} if source == "zero" else source


def parse_tokenizer(content: Mapping[str, Any], known: Callable[[Source], Source]) -> Any:
    """TokenizerSettings from the block `tokenizer` of a recipe, its keys checked before.

    known: gives every model its one Source
    Raises RecipeError naming the key, what was found and what it takes.
    """
    tokens = content.get("tokens") or {}
    if not isinstance(tokens, Mapping):
        raise RecipeError(f"tokenizer.tokens is {tokens!r}; want a mapping of tokens to sources")
    multiple = content.get("pad_to_multiple_of")
    if multiple is not None and (type(multiple) is not int or multiple < 1):
        raise RecipeError(f"tokenizer.pad_to_multiple_of is {multiple!r}; want a whole number >= 1")
    return TokenizerSettings(
        parse_vocabulary(content.get("source", "union"), "tokenizer.source", known),
        {str(text): _token(str(text), token, known) for text, token in tokens.items()},
        multiple,
        _padding(content.get("padding", "keep")),
    )


def _padding(value: Any) -> Literal["keep", "drop"]:
    if value not in PADDING:
        hint = nearest(str(value), PADDING)
        raise RecipeError(f"tokenizer.padding is {value!r}{hint}; want keep or drop")
    return "keep" if value == "keep" else "drop"


def parse_vocabulary(
    value: Any, where: str, known: Callable[[Source], Source]
) -> Source | Literal["union", "base"]:
    """union, base, or the model whose tokens are taken."""
    if value in ("union", "base"):
        return "union" if value == "union" else "base"
    return known(parse_source(value, where))


def _token(text: str, token: Any, known: Callable[[Source], Source]) -> Token:
    where = f"tokenizer.tokens.{text}"
    if not isinstance(token, Mapping) or token.get("source") is None:
        raise RecipeError(f"{where} is {token!r}; want {{source: ..., force: ...}}")
    force = token.get("force") or False
    if not isinstance(force, bool):
        raise RecipeError(f"{where}.force is {force!r}; want true or false")
    return Token(_token_source(f"{where}.source", token["source"], known), force)


def _token_source(
    where: str, source: Any, known: Callable[[Source], Source]
) -> Source | ModelToken | Literal["zero"]:
    kind = source.get("kind") if isinstance(source, Mapping) else None
    if kind == "zero":
        return "zero"
    if kind is None:
        return known(parse_source(source, where))
    if kind != "model_token":
        hint = nearest(str(kind), ("zero", "model_token"))
        raise RecipeError(f"{where}.kind is {kind!r}{hint}; want zero or model_token")
    token, token_id = source.get("token"), source.get("token_id")
    if (token is None) == (token_id is None):
        raise RecipeError(f"{where}: want either token or token_id, found {dict(source)!r}")
    if token is not None and not isinstance(token, str):
        raise RecipeError(f"{where}.token is {token!r}; want the token's text")
    if token_id is not None and (type(token_id) is not int or token_id < 0):
        raise RecipeError(f"{where}.token_id is {token_id!r}; want a whole number")
    return ModelToken(known(parse_source(source.get("model"), f"{where}.model")), token, token_id)


def check_template(template: str) -> str:
    """A chat template: auto, the name of one, or a literal one in Jinja; RecipeError otherwise."""
    names = ("auto", *TEMPLATES)
    literal = "{" in template and len(template) >= SHORTEST_TEMPLATE
    if template in names or literal:
        return template
    hint = nearest(template, names)
    raise RecipeError(
        f"chat_template is {template!r}{hint}; want auto, {', '.join(TEMPLATES)} or a template in "
        f"Jinja of {SHORTEST_TEMPLATE} characters or more"
    )

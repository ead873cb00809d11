"""Parameters of methods: read from a function's signature, and checked when a recipe gives them."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from mergekern.errors import RecipeError

TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Doc:
    """What a signature's `Annotated` says of a parameter besides its type.

    interval: where a number must lie, as mathematics writes it: "(0, 1]"
    synonyms: values that other tools write, and what they mean here
    unset:    how to show a default of None, which lets the method decide
    """

    text: str
    interval: str = ""
    synonyms: Mapping[Any, Any] = field(default_factory=dict)
    unset: str = ""


@dataclass(frozen=True)
class Parameter:
    """One parameter: `name` as recipes write it, `keyword` as Python does (lambda, lambda_)."""

    keyword: str
    kind: Literal["number", "integer", "flag", "choice"]
    default: Any
    per_model: bool
    choices: tuple[str, ...]
    doc: Doc

    @property
    def name(self) -> str:
        return self.keyword.removesuffix("_")

    @property
    def required(self) -> bool:
        """True when the signature has no default: every tensor needs a value from the recipe."""
        return self.default is inspect.Parameter.empty

    @property
    def default_text(self) -> str:
        if self.required:
            return "required"
        if self.default is None:
            return self.doc.unset
        return str(self.default).lower() if self.kind == "flag" else str(self.default)

    def parse(self, value: Any, where: str = "") -> Any:
        """The value in its own type; RecipeError naming the parameter and what it accepts."""
        if isinstance(value, (bool, int, float, str)) and value in self.doc.synonyms:
            return self.doc.synonyms[value]  # 1 and 1.0 are keys where True is
        parsed = _PARSERS[self.kind](self, value)
        if parsed is None:
            raise RecipeError(f"{where}{self.name} is {value!r}; want {self.wanted}")
        return parsed

    @property
    def wanted(self) -> str:
        if self.kind == "choice":
            return "one of " + ", ".join(self.choices)
        if self.kind == "flag":
            return "true or false"
        what = "a whole number" if self.kind == "integer" else "a finite number"
        return f"a number in {self.doc.interval}" if self.doc.interval else what


def _number(parameter: Parameter, value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    interval = parameter.doc.interval
    fits = math.isfinite(number) and (not interval or _inside(number, interval))
    return number + 0.0 if fits else None  # -0.0 becomes 0.0: equal values are the same bits


def _integer(parameter: Parameter, value: Any) -> int | None:
    if isinstance(value, str):
        value = int(value) if value.strip().isdecimal() else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < 2**64 else None


def _flag(parameter: Parameter, value: Any) -> bool | None:
    if isinstance(value, str):
        return TRUTHS.get(value.strip().lower())
    number = isinstance(value, (bool, int, float)) and value in (0, 1)  # recipes say 1.0 too
    return bool(value) if number else None


def _choice(parameter: Parameter, value: Any) -> str | None:
    return value if isinstance(value, str) and value in parameter.choices else None


_PARSERS: dict[str, Callable[[Parameter, Any], Any]] = {
    "number": _number,
    "integer": _integer,
    "flag": _flag,
    "choice": _choice,
}


def _inside(number: float, interval: str) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    return above and (number < high if interval[-1] == ")" else number <= high)


def parameters_of(
    function: Callable[..., Any],
    *,
    without: Iterable[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Parameter, ...]:
    """The keyword parameters of a method's function; of a type, or of `Annotated[type, Doc(...)]`.

    A tuple is one number per model; its default is written as a tuple of one, good for all.
    without:  keywords that this method does not offer
    defaults: defaults that differ from the signature's
    """
    hints = hints_of(function)
    changed = defaults or {}
    return tuple(
        _parameter(keyword, hints[keyword], changed.get(keyword, declared.default))
        for keyword, declared in inspect.signature(function).parameters.items()
        if declared.kind is inspect.Parameter.KEYWORD_ONLY and keyword not in without
    )


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of the keyword parameters alone: those of tensors would load torch. Raises what
    reading an annotation raises."""
    plain = inspect.unwrap(function)
    keywords = [
        name
        for name, declared in inspect.signature(plain).parameters.items()
        if declared.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    given = inspect.get_annotations(plain)

    def bare() -> None: ...

    bare.__annotations__ = {name: given[name] for name in keywords if name in given}
    return get_type_hints(bare, getattr(plain, "__globals__", {}), include_extras=True)


def _parameter(keyword: str, annotation: Any, default: Any) -> Parameter:
    annotated = get_origin(annotation) is Annotated
    hint, doc = get_args(annotation) if annotated else (annotation, Doc(""))
    assert isinstance(doc, Doc), f"{keyword} is annotated with {doc!r}, not a Doc"
    if isinstance(hint, UnionType):
        hint = get_args(hint)[0]
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    per_model = get_origin(hint) is tuple
    kinds = {bool: "flag", int: "integer", float: "number"}
    kind: Any = "choice" if choices else "number" if per_model else kinds[hint]
    if per_model and isinstance(default, tuple):
        default = default[0]
    return Parameter(keyword, kind, default, per_model, choices, doc)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` when something known is close to the name, else nothing."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

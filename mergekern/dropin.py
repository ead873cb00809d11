"""mergekit's options under their own names: what each of them is here.

Scripts that call mergekit-yaml, and code that passes its options, run unchanged. An option that
means something here does it; one that has nothing to do here is taken, and a line says why.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from mergekern.errors import RecipeError


@dataclass(frozen=True)
class Option:
    """One option of mergekit's.

    flags: on the command line, the long one first; its name in Python is that with underscores
    value: it takes one
    name, convert: the argument of merge() that it is, and its value from the one given
    why:   it needs no equivalent
    """

    flags: tuple[str, ...]
    value: bool = False
    name: str = ""
    convert: Callable[[Any], Any] = lambda given: given
    why: str = ""

    @property
    def python(self) -> str:
        return self.flags[0].removeprefix("--").replace("-", "_")


def _shard_size(given: Any) -> Any:
    """mergekit counts bytes, and writes B for billions."""
    billions = re.fullmatch(r"([\d.]+)B", str(given).strip().upper())
    return given if billions is None else f"{billions[1]}GB"


def _safe(given: Any) -> None:
    if not given:
        raise RecipeError("models are written as safetensors alone: leave out safe_serialization")


STREAMS = "tensors are streamed in bounded memory, see max_memory"
OPTIONS = (
    Option(("--cuda",), name="device", convert=lambda on: "cuda" if on else None),
    Option(("--random-seed",), value=True, name="seed", convert=int),
    Option(("--num-threads", "-j"), value=True, name="threads", convert=int),
    Option(("--out-shard-size",), value=True, name="max_shard_size", convert=_shard_size),
    Option(("--transformers-cache",), value=True, name="cache"),
    Option(("--unsafe-truncate-embeddings",), name="truncate_embeddings"),
    Option(
        ("--safe-serialization",), convert=_safe, why="models are written as safetensors anyway"
    ),
    Option(("--lazy-unpickle",), why=".bin files are mapped, and no code in them is run"),
    Option(("--low-cpu-memory",), why=STREAMS),
    Option(("--clone-tensors",), why="every tensor is written as its own bytes anyway"),
    Option(("--async-write",), why="reading, merging and writing overlap anyway"),
    Option(("--write-threads",), value=True, why="writing keeps up with the disk by itself"),
    Option(("--read-to-gpu",), why="what a GPU merges is read for it ahead"),
    Option(("--multi-gpu",), why="one GPU merges faster than disks deliver: it is given all"),
    Option(("--gpu-rich",), name="device", convert=lambda on: "cuda" if on else None),
    Option(("--trust-remote-code",), why="no code of a model is run to merge it"),
    Option(("--lora-merge-cache",), value=True, why="adapters are merged as they are read"),
    Option(("--lora-merge-dtype",), value=True, why="adapters are added in fp32, unrounded"),
    Option(("--verbose", "-v"), why="what is done is in the plan and the report"),
    Option(("--verbosity",), value=True, why="what is done is in the plan and the report"),
    Option(("--quiet",), why="nothing is shown but where progress is asked for"),
)
# What a merge takes and a plan has no use for, under our own names.
RUNNING = frozenset(
    {"threads", "device", "backend", "max_device_memory", "copy_tokenizer", "write_model_card"}
)
log = logging.getLogger(__name__)
_Call = TypeVar("_Call", bound=Callable[..., Any])
BY_FLAG = {flag: option for option in OPTIONS for flag in option.flags}
BY_NAME = {option.python: option for option in OPTIONS}


def translated(arguments: Iterable[str], own: Iterable[str]) -> tuple[list[str], list[str]]:
    """A command line with mergekit's flags in place of which ours stand, and lines about the rest.

    own: flags that are ours, and stay even where mergekit has them too
    """
    found: list[str] = []
    notes: list[str] = []
    left = iter(_apart(arguments))
    for argument in left:
        flag, equals, value = argument.partition("=")
        positive = "--" + flag.removeprefix("--no-") if flag.startswith("--no-") else flag
        option = None if flag in own else BY_FLAG.get(positive)
        negated = positive != flag
        if option is None or (negated if option.value else equals):
            found.append(argument)
            if argument == "--":
                break
            continue
        if option.value and not equals:
            value = next(left, "")
            if not value:
                raise RecipeError(f"{flag} wants a value")
        given: Any = value if option.value else not negated
        for name, ours in _meaning(option, given, flag, notes).items():
            found += _flag(name, ours)
    return found + list(left), notes


def _apart(arguments: Iterable[str]) -> Iterator[str]:
    """Short flags one by one, with their values behind them: -vvj2 as -v -v -j 2."""
    for argument in arguments:
        rest = argument
        while len(rest) > 2 and rest[:2] in BY_FLAG:
            yield rest[:2]
            rest = rest[2:] if BY_FLAG[rest[:2]].value else f"-{rest[2:]}"
        yield rest


def ours_of(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options by their names in Python, as arguments of merge(), and lines about the rest."""
    found: dict[str, Any] = {}
    notes: list[str] = []
    for name, value in given.items():
        found |= _meaning(BY_NAME[name], value, name, notes)
    return found, notes


def takes_mergekits_names(call: _Call) -> _Call:
    """The call with mergekit's options beside its own: by their names, or as `options`, a mapping
    or mergekit's MergeOptions. Its own win; lines about the rest are logged."""
    taken = inspect.signature(call).parameters.values()
    own = {parameter.name for parameter in taken if parameter.kind is parameter.KEYWORD_ONLY}

    @functools.wraps(call)
    def wrapper(*args: Any, **given: Any) -> Any:
        options = given.pop("options", None) or {}
        dump = getattr(options, "model_dump", None)
        options = dump() if callable(dump) else options
        if not isinstance(options, Mapping):
            raise RecipeError(f"options is {options!r}; want a mapping or mergekit's MergeOptions")
        plain = dict(options)
        for name in plain.keys() - BY_NAME.keys() - own - RUNNING:
            raise RecipeError(f"options: there is no option {name!r}")
        theirs = {name: plain.pop(name) for name in plain.keys() & BY_NAME.keys() - own}
        theirs |= {name: given.pop(name) for name in given.keys() & BY_NAME.keys() - own}
        ours, notes = ours_of(theirs)
        for note in notes:
            log.info(note)
        plain = {name: value for name, value in (plain | ours).items() if value is not None}
        for name in RUNNING - own:  # a plan runs nothing
            plain.pop(name, None)
        return call(*args, **{**plain, **given})

    return cast(_Call, wrapper)


def _meaning(option: Option, given: Any, written: str, notes: list[str]) -> dict[str, Any]:
    if given is None:
        return {}
    try:
        ours = option.convert(given)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{written} is {given!r}; want a whole number") from error
    if option.name:
        return {} if ours is None or ours is False else {option.name: ours}
    if given:
        notes.append(f"{written} has nothing to do: {option.why}")
    return {}


def _flag(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    return [flag] if value is True else [flag, str(value)]

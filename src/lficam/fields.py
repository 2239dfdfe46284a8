"""Dataclasses that hold what their annotations say, whoever filled them in: a file, a program, a person."""

import sys
import types
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lficam.errors import InvalidInputError

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    dict: "a mapping",
}


def require_types(values: Any) -> None:
    """Refuse a dataclass with a field of another type than it says; its dataclasses too.

    Raises:
        InvalidInputError: the first such field, by name.

    >>> from lficam.recipes import Recipe
    >>> require_types(Recipe(epochs="many"))
    Traceback (most recent call last):
    ...
    lficam.errors.InvalidInputError: epochs: expected a whole number, got 'many'.
    """
    for name, kind in get_type_hints(type(values)).items():
        value = getattr(values, name)
        if is_dataclass(value) and _holds(value, kind):
            require_types(value)
        elif not _holds(value, kind):
            raise InvalidInputError(f"{name}: expected {_in_words(kind)}, got {value!r}.")


def _holds(value: Any, kind: Any) -> bool:
    check = _CHECKS.get(get_origin(kind) or kind)
    return check(value, get_args(kind)) if check else isinstance(value, kind)


def _is_number(value: Any, _inner: tuple[Any, ...]) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_mapping(value: Any, _inner: tuple[Any, ...]) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_one_of_several(value: Any, inner: tuple[Any, ...]) -> bool:
    return any(_holds(value, one) for one in inner)


_CHECKS: dict[Any, Callable[[Any, tuple[Any, ...]], bool]] = {
    Any: lambda _value, _inner: True,
    Literal: lambda value, inner: isinstance(value, str) and value in inner,
    Union: _is_one_of_several,
    types.UnionType: _is_one_of_several,
    tuple: lambda value, inner: (
        isinstance(value, (tuple, list)) and len(value) == len(inner) and all(map(_holds, value, inner))
    ),
    list: lambda value, inner: isinstance(value, list) and all(_holds(one, inner[0]) for one in value),
    dict: _is_mapping,
    float: _is_number,
    int: lambda value, _inner: isinstance(value, int) and not isinstance(value, bool),
}


def _in_words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin in (Union, types.UnionType):
        return " or ".join("nothing" if one is type(None) else _in_words(one) for one in inner)
    if origin is tuple:
        return f"{len(inner)} finite numbers"
    if origin is list:
        return "a list of texts"
    return _WORDS.get(origin or kind, str(kind))

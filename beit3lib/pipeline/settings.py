"""Settings that are checked: a notebook's parameters and the fields of a config.

papermill only warns of an unknown parameter, and `-y "{lr: 1e-4}"` gives the string '1e-4' (YAML 1.1): both end or are
mended here, before anything runs.
"""

import dataclasses
import difflib
import html
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

CHECKED = "_beit3lib_parameters"  # left in a notebook: names that later cells make are no parameters
NOT_PARAMETERS = {"In", "Out"}


class OptionError(ValueError):
    """A setting that is unknown, missing, or of the wrong kind; the message names it."""


class Kind(NamedTuple):
    """What a value may be: how it is described, and the check, which returns the value to use or raises ValueError."""

    text: str
    check: Callable[[Any], Any]


def between(low: float, high: float, kind: type = int) -> Kind:
    """A number from `low` to `high`, both included."""
    number = _kind_of(kind)

    def check(value: Any) -> Any:
        value = number.check(value)
        if not low <= value <= high:
            raise ValueError
        return value

    return Kind(f"{number.text} from {low:g} to {high:g}", check)


def optional(kind: Any) -> Kind:
    """A value of `kind`, or None."""
    inner = _kind_of(kind)
    return Kind(f"{inner.text}, or None", lambda value: None if value is None else inner.check(value))


def _kind_of(kind: Any) -> Kind:
    """A Kind from a Kind, a type, a tuple of choices, or an annotation."""
    if isinstance(kind, Kind):
        return kind
    if isinstance(kind, tuple):
        return _choice(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return _choice(arguments)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments)
    if origin is tuple:
        return _tuple_of(arguments)
    return _plain(kind)


def _choice(values: tuple) -> Kind:
    def check(value: Any) -> Any:
        if not any(value == known and type(value) is type(known) for known in values):
            raise ValueError
        return value

    return Kind("one of " + ", ".join(map(str, values)), check)


def _union(arguments: tuple) -> Kind:
    kinds = [_kind_of(argument) for argument in arguments if argument is not type(None)]

    def check(value: Any) -> Any:
        if value is None and type(None) in arguments:
            return None
        for kind in kinds:
            try:
                return kind.check(value)
            except (ValueError, TypeError):
                continue
        raise ValueError

    none = ", or None" if type(None) in arguments else ""
    return Kind(" or ".join(kind.text for kind in kinds) + none, check)


def _tuple_of(arguments: tuple) -> Kind:
    kinds = [_kind_of(argument) for argument in arguments]

    def check(value: Any) -> tuple:
        if isinstance(value, str) or len(value) != len(kinds):
            raise ValueError
        return tuple(kind.check(part) for kind, part in zip(kinds, value, strict=True))

    return Kind("(" + ", ".join(kind.text for kind in kinds) + ")", check)


def _plain(kind: type) -> Kind:
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}

    def check(value: Any) -> Any:
        if kind is float and not isinstance(value, bool):
            return float(value)  # an int, or the text '1e-4' that YAML makes of 1e-4
        if kind is int and isinstance(value, bool) or not isinstance(value, kind):
            raise ValueError
        return value

    return Kind(names.get(kind, kind.__name__), check)


def _checked(name: str, kind: Any, value: Any) -> Any:
    described = _kind_of(kind)
    try:
        return described.check(value)
    except (ValueError, TypeError):
        found = f"{value!r} ({type(value).__name__})"
        raise OptionError(f"{name}: expected {described.text}, found {found}; set {name} to such a value") from None


def check_fields(instance: Any) -> None:
    """For `__post_init__` of a frozen dataclass: hold every field to its annotation, mending '1e-4' and 1 for 1.0."""
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        object.__setattr__(instance, field.name, _checked(field.name, hints[field.name], value))


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """A dataclass from a dict; all names that it does not have are named in one error, each with the closest it has."""
    known = [field.name for field in dataclasses.fields(cls)]
    _refuse_unknown([name for name in values if name not in known], known, cls.__name__)
    return cls(**values)


def _refuse_unknown(unknown: list[str], known: list[str], where: str) -> None:
    if unknown:
        told = []
        for name in unknown:
            close = difflib.get_close_matches(name, known, n=1)
            told.append(f"{name} (did you mean {close[0]}?)" if close else name)
        raise OptionError(f"{where} has no {', '.join(told)}; it has: {', '.join(known)}")


class Parameters(types.SimpleNamespace):
    """The checked parameters of a notebook, shown as a table."""

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(repr(value))}</td></tr>" for name, value in vars(self).items()
        )
        return f"<table><tr><th>parameter</th><th>value</th></tr>{rows}</table>"


def read_parameters(namespace: dict[str, Any], **kinds: Any) -> Parameters:
    """Hold a notebook's parameters to their kinds, right after its parameters cell, and write mended values back.

    `namespace`: `globals()` of the notebook. A kind is a type, a tuple of choices, `between(…)` or `optional(…)`. A plain
    value there that is no known parameter is a misspelt one, and an `OptionError`; when the cell is run again by hand,
    names that later cells made are left alone.
    """
    if CHECKED not in namespace:
        plain = (str, int, float, bool, list, dict, type(None))
        found = [name for name, value in namespace.items() if isinstance(value, plain) and not name.startswith("_")]
        _refuse_unknown(
            [name for name in found if name not in kinds and name not in NOT_PARAMETERS], list(kinds), "This notebook"
        )
    missing = [name for name in kinds if name not in namespace]
    if missing:
        raise OptionError(f"the parameters cell lacks {', '.join(missing)}; run it first, or put them back")
    values = {name: _checked(name, kind, namespace[name]) for name, kind in kinds.items()}
    namespace.update(values)
    namespace[CHECKED] = True
    return Parameters(**values)

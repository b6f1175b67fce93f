"""From a tree of plain values to frozen dataclasses, strictly: nothing unknown, nothing missing.

Errors speak in paths: "strategy: unknown key 'windw'; known: kind, window, sink".
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from longtake.scheduler.errors import UserError

Settings = TypeVar("Settings")


def load(kind: type[Settings], tree: Any, path: str = "") -> Settings:
    """Build a dataclass from a mapping.

    Fields may be int, float, str, bool, an Enum of strings, Literal, `X | None`, `tuple[X, ...]`,
    `dict[str, X]`, a dataclass, or a union of dataclasses told apart by a Literal field `kind`.

    Raises:
        UserError: a key is unknown or missing, or a value is of another type.
    """
    values = _mapping(tree, path)
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass
    at = f"{path}: " if path else ""
    for name in values:
        if name not in names:
            raise UserError(f"{at}unknown key {name!r}; known: {', '.join(names)}")
    for name in names:
        if name not in values:
            raise UserError(f"{at}missing key {name!r}")
    return kind(**{name: _value(hints[name], values[name], _join(path, name)) for name in names})


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(path, "a group of keys", value)
    return value


def _wrong(path: str, expected: str, value: Any) -> UserError:
    return UserError(f"{path}: expected {expected}, got {value!r}")


def _value(kind: Any, value: Any, path: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), value, path)
    if origin is Literal:
        return _choice(value, get_args(kind), path)
    if origin is tuple:
        return _tuple(get_args(kind)[0], value, path)
    if origin is dict:
        inner = get_args(kind)[1]
        return {key: _value(inner, v, _join(path, key)) for key, v in _mapping(value, path).items()}
    if is_dataclass(kind):
        return load(kind, value, path)  # type: ignore[arg-type]
    if issubclass(kind, Enum):
        return kind(_choice(value, [member.value for member in kind], path))
    return _SCALARS[kind](value, path)


def _union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    rest = [kind for kind in kinds if kind is not type(None)]
    if len(rest) == 1:
        return _value(rest[0], value, path)
    named = {get_args(get_type_hints(kind)["kind"])[0]: kind for kind in rest}
    chosen = _choice(_mapping(value, path).get("kind"), list(named), _join(path, "kind"))
    return load(named[chosen], value, path)


def _choice(value: Any, legal: Any, path: str) -> Any:
    if value not in legal:
        raise _wrong(path, "one of " + ", ".join(map(str, legal)), value)
    return value


def _tuple(inner: Any, value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(path, "a list", value)
    return tuple(_value(inner, v, f"{path}[{index}]") for index, v in enumerate(value))


def _bool(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(path, "true or false", value)
    return value


def _int(value: Any, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(path, "int", value)
    return value


def _float(value: Any, path: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise _wrong(path, "a finite number", value)
    return float(value)


def _str(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _wrong(path, "text", value)
    return value


_SCALARS: dict[Any, Callable[[Any, str], Any]] = {bool: _bool, int: _int, float: _float, str: _str}

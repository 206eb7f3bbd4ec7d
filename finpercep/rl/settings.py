"""Settings as plain values and back: YAML files, `a.b=c` on the command line, and errors that name the nearest key."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from finpercep.io.reasons import one_line
from finpercep.rl.config import KINDS, RLConfig

KIND = "name"
"""Beside the options of an algorithm: which one they are of."""


def to_plain(config: Any) -> Any:
    """Dictionaries, lists, numbers and text, as YAML holds them; `from_plain` gives the settings back."""
    if is_dataclass(config) and not isinstance(config, type):
        values = {field.name: to_plain(getattr(config, field.name)) for field in fields(config)}
        name = _algorithm(type(config))
        return {KIND: name, **values} if name else values
    if isinstance(config, (tuple, list)):
        return [to_plain(value) for value in config]
    return config


def from_plain(values: Mapping[str, Any]) -> RLConfig:
    """Settings from plain values; what is left out has its default.

    Raises:
        ValueError: an unknown name, a value of another type, or one that is not allowed; names its place.
    """
    return _dataclass(RLConfig, values, "")


def resolve(
    file: str | Path | None = None, assignments: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> RLConfig:
    """The settings of a run: defaults, then a YAML file, then what is given, then assignments.

    Args:
        file: YAML with some of the names that `to_plain(RLConfig())` has.
        assignments: "a.b=c", with numbers for the places of a list, as in "stages.0.lr=1e-5"; values are YAML.
        given: name -> plain value, such as {"algorithm": {"name": "grpo"}}.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML, an unknown name or a wrong value.
    """
    values = dict(_read(file)) if file is not None else {}
    if isinstance(values.get("algorithm"), str):
        values["algorithm"] = {KIND: values["algorithm"]}
    if not isinstance(found := values.get("algorithm", {}), Mapping):
        raise ValueError(f"algorithm: expected names and values, got {found!r}")
    asked, own = (given or {}).get("algorithm", {}).get(KIND), found.get(KIND)
    if asked and own and asked != own and len(found) > 1:
        raise ValueError(f"{file}: expected settings of {asked}, got those of {own}")
    _merge(values, given or {})
    assignments = [re.sub(r"^\s*algorithm\s*=", f"algorithm.{KIND}=", assignment) for assignment in assignments]
    for assignment in assignments:
        if assignment.partition("=")[0].strip() == f"algorithm.{KIND}":
            _assign({**values, "algorithm": values.setdefault("algorithm", {})}, assignment)
    algorithm = values.get("algorithm", {})
    start = RLConfig() if KIND not in algorithm else from_plain({"algorithm": {KIND: algorithm[KIND]}})
    whole = to_plain(start)
    _merge(whole, values)
    if assignments:
        whole = to_plain(from_plain(whole))  # with the defaults inside lists
    for assignment in assignments:
        _assign(whole, assignment)
    return from_plain(whole)


def _read(file: str | Path) -> Mapping[str, Any]:
    import yaml

    try:
        values = yaml.load(Path(file).read_text(), _loader())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected YAML, got {one_line(error)}") from error
    if values is not None and not isinstance(values, Mapping):
        raise ValueError(f"{file}: expected names and values, got {type(values).__name__}")
    return values or {}


@cache
def _loader() -> Any:
    """Safe YAML, as in 1.2: only true and false are truth values (`off` is one of monitors.alarm), names are unique."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012 - a table of PyYAML's own
            first: [(tag, pattern) for tag, pattern in known if first in "tTfF" or not tag.endswith(":bool")]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def compose_mapping_node(self, anchor: Any) -> Any:
            node, names = super().compose_mapping_node(anchor), set()
            for key, _ in node.value:
                if (name := str(key.value)) in names:
                    raise yaml.YAMLError(f"{name} a second time, in line {key.start_mark.line + 1}")
                names.add(name)
            return node

    return Loader


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Replace values by name; dictionaries inside are merged, lists are replaced."""
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _assign(values: Any, assignment: str) -> None:
    import yaml

    place, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError(f"set: expected NAME=VALUE, got {assignment!r}")
    names = place.strip().split(".")
    for depth, name in enumerate(names):
        path = ".".join(names[: depth + 1])
        if isinstance(values, list):
            if not name.isdecimal() or int(name) >= len(values):
                raise ValueError(f"{path}: expected a place from 0 to {len(values) - 1}, got {name!r}")
            key: Any = int(name)
        elif isinstance(values, dict):
            if name not in values and name != KIND:
                raise _unknown(path, name, list(values), values.get(KIND, ""))
            key = name
        else:
            raise ValueError(f"{path}: {'.'.join(names[:depth])} is a value, it has no names inside")
        if depth + 1 < len(names):
            values = values[key]
            continue
        try:
            found = yaml.load(text, _loader())
        except yaml.YAMLError as error:
            twice = "" if isinstance(error, yaml.MarkedYAMLError) else f": {error}"  # YAML's own say where, at length
            raise ValueError(f"{path}: expected a value in YAML, got {text!r}{twice}") from error
        number = isinstance(found, (int, float)) and not isinstance(found, bool)
        old = values[key] if isinstance(values, list) else values.get(key)
        values[key] = text.strip() if number and isinstance(old, str) else found  # 0123 is a fine name for a folder


def _algorithm(kind: type) -> str:
    """The name of an algorithm by the type of its options; empty for any other type."""
    return next((name for name, options in KINDS.items() if options is kind), "")


def _unknown(path: str, name: str, known: list[str], algorithm: str = "") -> ValueError:
    near = get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return ValueError(f"{path}: no such setting{f' of {algorithm}' if algorithm else ''}; {hint}")


def _dataclass(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'settings'}: expected names and values, got {values!r}")
    hints = typing.get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    found = {}
    for name, value in values.items():
        path = f"{where}.{name}" if where else str(name)
        if name not in known:
            raise _unknown(path, str(name), known, _algorithm(kind))
        found[name] = _value(hints[name], value, path)
    try:
        return kind(**found)
    except ValueError as error:
        raise ValueError(f"{where}.{error}" if where else str(error)) from None


def _value(hint: Any, value: Any, where: str) -> Any:
    """A plain value as the type that a field is annotated with."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _one_of(parts, value, where)
    if typing.get_origin(hint) is tuple:
        return _tuple(parts, value, where)
    if is_dataclass(hint):
        return _dataclass(hint, value, where)
    return _scalar(hint, value, where)


def _one_of(parts: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in parts:
        return None
    kinds = [part for part in parts if part is not type(None)]
    if not is_dataclass(kinds[0]):
        return _value(kinds[0], value, where)
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected names and values, got {value!r}")
    options = dict(value)
    name = options.pop(KIND, next(iter(KINDS)))
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"{where}.{KIND}: expected one of {', '.join(KINDS)}, got {name!r}")
    return _dataclass(KINDS[name], options, where)


def _tuple(parts: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: expected a list, got {value!r}")
    hints = [parts[0]] * len(value) if parts[1:] == (...,) else list(parts)
    if len(hints) != len(value):
        raise ValueError(f"{where}: expected {len(hints)} values, got {len(value)}")
    return tuple(
        _value(hint, part, f"{where}.{place}") for place, (hint, part) in enumerate(zip(hints, value, strict=True))
    )


def _scalar(hint: Any, value: Any, where: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and number and (isinstance(value, int) or value.is_integer()):
        return int(value)
    if hint is str and (value is None or number or isinstance(value, str)):
        return "" if value is None else str(value)  # `judge:` and `--set monitors.judge=` are empty texts
    if hint is float and (number or isinstance(value, str)):
        try:
            return float(value)  # text too: YAML takes 1e-5 for it
        except (ValueError, OverflowError):  # an int of a thousand digits
            pass
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise ValueError(f"{where}: expected {names.get(hint, hint)}, got {value!r}")

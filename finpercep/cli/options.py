"""Options of a command, made from the dataclasses that hold its settings: name, default and help stand there, once.

A field becomes an option by its metadata: `help`, and optionally `option` (its name, where that is not the field's
with dashes) and `min` (the least number that is allowed). Fields without `help` have no option.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

__all__ = ["given", "is_given", "refuse_given", "settings_command"]


def settings_command(*settings: str, after: str) -> type[TyperCommand]:
    """A class of commands (`app.command(cls=…)`) that take the options of some dataclasses beside their own.

    The dataclasses are imported when the command itself is asked for, not for the list of all commands.

    Args:
        settings: the dataclasses, each as "module:Class"; no two of them may share the name of a field with an option.
        after: the parameter of the command's function that the options follow in the help.

    Returns:
        The class. Its commands leave in `ctx.obj` what was given, by the names of the fields: see `given`.
    """

    class SettingsCommand(TyperCommand):
        def get_params(self, ctx: Any) -> list[Any]:
            parameters = super().get_params(ctx)
            place = [parameter.name for parameter in parameters].index(after) + 1
            return [*parameters[:place], *_options(settings).params, *parameters[place:]]

        def invoke(self, ctx: Any) -> Any:
            options = _options(settings)
            values = options.callback(**{option.name: ctx.params.pop(option.name) for option in options.params})
            ctx.obj = {name: value for name, value in values.items() if is_given(ctx, name)}
            return super().invoke(ctx)

    return SettingsCommand


def given(ctx: typer.Context, settings: type) -> dict[str, Any]:
    """Those of the options given on the command line that are fields of `settings`: arguments to make one from."""
    values: dict[str, Any] = {}
    for field in fields(settings):
        if field.name in ctx.obj:
            value = ctx.obj[field.name]
            values[field.name] = tuple(value) if isinstance(field.default, tuple) else value
    return values


def is_given(ctx: Any, name: str) -> bool:
    """Whether the parameter of this name was given, rather than left at its default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def refuse_given(ctx: typer.Context, *names: str, reason: str) -> None:
    """End the command with status 2 where one of these options was given, as it would go unused.

    Args:
        names: of parameters; reason: when they would be used, such as "with --engine ray".
    """
    for name in names:
        if is_given(ctx, name):
            print(f"--{name.replace('_', '-')}: expected only {reason}", file=sys.stderr)
            raise typer.Exit(2)


def _options(settings: tuple[str, ...]) -> Any:
    """A command whose parameters are the options, and whose callback returns their values by name."""
    function = _function([parameter for name in settings for parameter in _parameters(_find(name))])
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return typer.main.get_command(app)


def _find(name: str) -> type:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _function(parameters: list[inspect.Parameter]) -> Callable[..., dict[str, Any]]:
    """What typer reads its options from: a function of these parameters."""

    def function(**values: Any) -> dict[str, Any]:
        return values

    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


def _parameters(settings: type) -> list[inspect.Parameter]:
    kinds = typing.get_type_hints(settings)
    return [_parameter(field, kinds[field.name]) for field in fields(settings) if "help" in field.metadata]


def _parameter(field: Field[Any], kind: Any) -> inspect.Parameter:
    name = field.metadata.get("option", f"--{field.name.replace('_', '-')}")
    option = typer.Option(name, help=field.metadata["help"], min=field.metadata.get("min"))
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if default == [] else default,
        annotation=Annotated[Optional[_option_type(kind)], option],  # noqa: UP045
    )


def _option_type(kind: Any) -> Any:
    """The type of one option: `X | None` is X, and a tuple of any length is a list, which repeats the option."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (part for part in parts if part is not type(None))
    elif parts[1:] == (...,):
        kind = list.__class_getitem__(parts[0])
    return kind

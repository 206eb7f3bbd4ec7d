"""Settings as a YAML file that says what each of them is."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import fields, is_dataclass
from typing import Any

from finpercep.rl.config import RLConfig
from finpercep.rl.settings import KIND, to_plain

WIDTH = 110


def as_yaml(config: RLConfig) -> str:
    """What `resolve` reads; above each setting, as a comment, what its dataclass says of it."""
    return "\n".join(_lines(config, set())) + "\n"


def descriptions(kind: type) -> dict[str, str]:
    """Setting -> what the section "Attributes" of the docstring says of it; several share what is said of them all."""
    _, _, section = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", section.partition("\n\n")[0], re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def _lines(config: Any, said: set[str]) -> list[str]:
    texts, lines = descriptions(type(config)), []
    if KIND in (plain := to_plain(config)):
        lines += _dumped(KIND, plain[KIND])
    for field in fields(config):
        text, value = texts.get(field.name, ""), getattr(config, field.name)
        if text not in said:
            said.add(text)
            lines += textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")
        if is_dataclass(value):
            lines += [f"{field.name}:", *_indented(_lines(value, said))]
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            lines.append(f"{field.name}:")
            for part in value:
                lines += ["-", *_indented(_lines(part, said))]
        else:
            lines += _dumped(field.name, to_plain(value))
    return lines


def _dumped(name: str, value: Any) -> list[str]:
    import yaml

    one_line = None if isinstance(value, list) and value else False  # to PyYAML, None is lists of plain values
    return yaml.safe_dump({name: value}, allow_unicode=True, default_flow_style=one_line).splitlines()


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]

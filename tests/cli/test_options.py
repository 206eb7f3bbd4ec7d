"""Options of a command that are made from dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from finpercep.cli.options import given, settings_command


@dataclass(frozen=True)
class Settings:
    kinds: tuple[str, ...] = field(default=("random",), metadata={"help": "Kinds.", "option": "--kind"})
    area: tuple[float, float] = field(default=(0.1, 0.4), metadata={"help": "Area."})
    left_out: list[str] = field(default_factory=list, metadata={"help": "Left out."})
    count: int = field(default=4, metadata={"help": "Count.", "min": 1})
    soft: bool = field(default=False, metadata={"help": "Soft."})
    anchor: str | None = field(default=None, metadata={"help": "Anchor."})
    hidden: int = 3


@dataclass
class More:
    rate: float = field(default=1e-5, metadata={"help": "Rate."})


seen: list[dict[str, Any]] = []
app = typer.Typer()


@app.command(cls=settings_command(f"{__name__}:Settings", f"{__name__}:More", after="out"))
def command(ctx: typer.Context, out: str = typer.Option(..., "--out"), last: str = "x") -> None:
    seen.append({"given": [given(ctx, Settings), given(ctx, More)], "out": out, "last": last})


def run(*words: str) -> Result:
    seen.clear()
    return CliRunner().invoke(app, words)


def test_what_was_not_given_is_left_to_the_dataclass() -> None:
    assert run("--out", "o").exit_code == 0
    assert seen == [{"given": [{}, {}], "out": "o", "last": "x"}]


def test_what_was_given_makes_the_dataclass() -> None:
    words = "--out o --kind a --kind b --area 0.2 0.3 --left-out p --count 2 --soft --anchor z --rate 0.5 --last y"
    result = run(*words.split())
    assert result.exit_code == 0, result.output
    first, second = seen[0]["given"]
    assert Settings(**first) == Settings(("a", "b"), (0.2, 0.3), ["p"], 2, True, "z")
    assert More(**second) == More(0.5)
    assert (seen[0]["out"], seen[0]["last"]) == ("o", "y")


def test_a_value_that_is_the_default_counts_as_given() -> None:
    run("--out", "o", "--count", "4")
    assert seen[0]["given"][0] == {"count": 4}


@pytest.mark.parametrize("words", ["--count 0", "--hidden 4", "--area 0.2", "--rate much"])
def test_what_does_not_fit_is_refused(words: str) -> None:
    assert run("--out", "o", *words.split()).exit_code == 2
    assert seen == []


def test_help_shows_names_and_defaults_in_order() -> None:
    text = " ".join(run("--help").output.split())
    places = [text.index(name) for name in ("--out", "--kind", "--area", "--count", "--rate", "--last", "--help")]
    assert places == sorted(places)
    assert "[default: random]" in text
    assert "[default: 1e-05]" in text
    assert "hidden" not in text

"""The site builds strictly without network, and what its pages name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.cases import FAMILIES
from docs.tables import filled
from finpercep import ops
from finpercep.cli.main import app
from finpercep.data.features.kinds import FEATURE_KINDS
from finpercep.data.masks.kinds import MASK_KINDS
from finpercep.data.sources.builtin import BUILTIN
from finpercep.data.sources.kinds import SOURCE_KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "csrc" / "README.md"]
ROOMS = "finpercep|csrc|kernels|benchmarks|tests|examples|docs"


def test_it_builds_strictly_and_asks_nothing_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs", reason="pip install 'finpercep[docs]'")
    pytest.importorskip("mkdocstrings", reason="pip install 'finpercep[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path))
    build(config)
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES) - 1
    operators = (tmp_path / "api" / "ops" / "index.html").read_text()
    for name in ("backends", *FAMILIES):
        assert f'id="{getattr(ops, name).__module__}.{name}"' in operators
    loaded = (
        r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)|<link[^>]+rel="?(?:stylesheet|icon)[^>]+href="(https?:[^"]+)'
    )
    assert [found for page in pages for found in re.findall(loaded, page.read_text())] == []


def test_files_that_are_named_exist() -> None:
    missing = [
        f"{text.relative_to(ROOT)}: {name}"
        for text in TEXTS
        for name in re.findall(rf"`((?:{ROOMS})/[\w./-]+)`", text.read_text())
        if not (ROOT / name.replace("foo", "grpo")).exists()  # as CONTRIBUTING.md calls an operator that is to be
    ]
    assert missing == []


def test_tables_in_pages_are_those_of_their_files() -> None:
    """`python docs/tables.py` puts them there."""
    behind = [page.name for page in PAGES if filled(page.read_text()) != page.read_text()]
    assert behind == []
    assert sum(page.read_text().count("<!-- table: ") for page in PAGES) > 10
    page = "a\n<!-- table: benchmarks/results/rl_ablations.md -->\nold\n<!-- /table -->\nb"
    table = (ROOT / "benchmarks/results/rl_ablations.md").read_text().strip()
    comments = ("<!-- table: benchmarks/results/rl_ablations.md -->", "<!-- /table -->")
    assert filled(page) == f"a\n{comments[0]}\n\n{table}\n\n{comments[1]}\nb"
    with pytest.raises(ValueError, match=r"^docs/tables\.py: expected a section none, found none"):
        filled("<!-- table: docs/tables.py:none -->\n<!-- /table -->")


def test_every_operator_is_in_the_table_of_the_kernels() -> None:
    page = (ROOT / "docs" / "kernels.md").read_text()
    assert [name for name in FAMILIES if f"\n| `{name}`" not in page] == []


def test_every_kind_of_source_mask_and_features_is_on_the_page_of_data_sets() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    kinds = [kind for table in (SOURCE_KINDS, MASK_KINDS, FEATURE_KINDS) for kind in table.values()]
    assert [kind.usage for kind in kinds if f"`{kind.usage}`" not in page] == []
    assert [name for name in BUILTIN if name not in page] == []


def _defined(path: Path) -> set[str]:
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_paper_index_leads_to_the_functions() -> None:
    found = re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", (ROOT / "docs" / "paper.md").read_text())
    assert len(found) > 20
    missing = [
        f"{path}: {name}"
        for path, names in found
        for name in re.findall(r"`(\w+)`", names)
        if name not in _defined(ROOT / path)
    ]
    assert missing == []


def test_equations_are_found_by_their_numbers() -> None:
    for number in (4, 5, 6, 7):
        path = re.search(
            rf"\| Eq\. {number} \|[^\n]*?`(finpercep/[\w/]+\.py)`", (ROOT / "docs" / "paper.md").read_text()
        )
        assert path
        assert f"Eq. {number}" in (ROOT / path[1]).read_text()


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_commands_and_options_exist(text: Path) -> None:
    runner = CliRunner()
    shell = "".join(re.findall(r"```sh\n(.*?)```", text.read_text(), flags=re.S)).replace("\\\n", " ")
    for command, rest in re.findall(r"^finpercep ([a-z-]+)([^\n]*)", shell, flags=re.M):
        shown = runner.invoke(app, [command, "--help"], terminal_width=200)
        assert shown.exit_code == 0, command
        for option in re.findall(r"(?<=\s)--[a-z-]+", rest.partition("#")[0]):
            assert option in shown.output, f"{command} {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_is_python(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S):
        compile(block, str(page), "exec")

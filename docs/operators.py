"""mkdocs: `::: finpercep.ops.*` in a page stands for the public names of that package, but for the references.

One by one, and by the module that they are from: a function and its file may have one name.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "finpercep" / "ops" / "__init__.py"


def on_page_markdown(markdown: str, **_: Any) -> str:
    imports = [node for node in ast.parse(PACKAGE.read_text()).body if isinstance(node, ast.ImportFrom)]
    public = [
        f"::: {node.module}.{alias.name}"
        for node in imports
        for alias in sorted(node.names, key=lambda alias: alias.name.lower())
        if not alias.name.endswith("_reference") and alias.name != "has_cpp"
    ]
    return markdown.replace("::: finpercep.ops.*", "\n\n".join(public))

"""``python docs/tables.py``: put the measured tables into the pages, as the files that benchmarks write have them.

A page is Markdown that reads anywhere, without a site. A table stands between two comments, the first of which names
its file, and of a longer file the section: ``<!-- table: FILE -->`` or ``<!-- table: FILE:SECTION -->``. A test says
where a page has fallen behind.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(r"<!-- table: ([\w./-]+?)(?::(\w+))? -->\n.*?<!-- /table -->", re.DOTALL)


def filled(page: str) -> str:
    """The page with each table as its file has it.

    Raises:
        OSError: no such file.
        ValueError: it has no such section.
    """
    return TABLE.sub(_table, page)


def _table(match: re.Match[str]) -> str:
    file, section = match.groups()
    text = (ROOT / file).read_text()
    if section:
        found = re.search(rf"<!-- section: {section} -->\n(.*?)\n<!-- /section -->", text, re.DOTALL)
        if found is None:
            raise ValueError(f"{file}: expected a section {section}, found none")
        text = found.group(1)
    return f"{match.group().splitlines()[0]}\n\n{text.strip()}\n\n<!-- /table -->"


def main() -> None:
    for path in sorted((ROOT / "docs").glob("*.md")):
        page = path.read_text()
        if (new := filled(page)) != page:
            path.write_text(new)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()

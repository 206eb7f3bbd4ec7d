"""Self-contained HTML pages: the skeleton and the base of the style that the demo's page and a preview share."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = ["html_page", "inline_jpeg"]

# Colors and type; each page adds its own layout behind it.
_STYLE = """
:root { color-scheme: light; } * { box-sizing: border-box; }
body { margin: 0; background: #f4f4f1; color: #1d1d1f; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", sans-serif; }
"""


def html_page(title: str, body: str, *, style: str = "") -> str:
    """A complete page with everything inside it.

    Args:
        title: of the window, plain text.
        body: HTML between <body> and </body>.
        style: CSS rules behind those that all pages share.

    Returns:
        The page as text, to be written as UTF-8.
    """
    head = f"""<meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}{style}</style>"""
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def inline_jpeg(picture: PILImage.Image, *, quality: int = 90, subsampling: int = 0) -> str:
    """A picture as JPEG in a data URL, for the `src` of an <img>; subsampling 0 keeps the colors' resolution."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

from __future__ import annotations

import base64
import io

from PIL import Image

from finpercep.io.html_page import html_page, inline_jpeg


def test_a_page_is_complete_and_its_own_style_comes_last() -> None:
    page = html_page("a < b", "<main>here</main>", style="main { margin: 0; }\n")
    assert page.startswith('<!doctype html><html lang="en"><head><meta charset="utf-8"><title>a &lt; b</title>')
    assert page.endswith("</style></head><body><main>here</main></body></html>\n")
    assert page.index("body { margin: 0") < page.index("main { margin: 0; }") < page.index("</style>")
    assert "http" not in page  # nothing is loaded from elsewhere


def test_pictures_are_in_the_page() -> None:
    url = inline_jpeg(Image.new("RGB", (6, 4), (10, 200, 30)))
    kind, _, data = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as again:
        assert (again.format, again.size) == ("JPEG", (6, 4))
        assert all(abs(a - b) <= 2 for a, b in zip(again.getpixel((3, 2)), (10, 200, 30), strict=True))

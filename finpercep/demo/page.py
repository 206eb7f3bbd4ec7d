"""The demo's page (one self-contained HTML file) and its contact sheet."""

from __future__ import annotations

import html
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from finpercep.io.files import atomic_write
from finpercep.io.html_page import html_page, inline_jpeg
from finpercep.io.pictures import as_picture, color_table, colorize, overlay, save_image
from finpercep.runs.machine import device_name, package_version

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from PIL import ImageFont

    from finpercep.demo.scenes import Case, Scene

TITLES = {"photo": "Photo", "rebuilt": "Super-resolved", "implanted": "Photo with an implanted fault"}

STYLE = """body { font-size: 16px; }
main, header, footer { max-width: 1320px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 44px; padding-bottom: 8px; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 10px; }
header p { max-width: 58em; margin: 0 0 14px; color: #45454a; }
.legend { display: flex; align-items: center; gap: 12px; font-size: 14px; color: #45454a; flex-wrap: wrap; }
.legend .bar { width: 220px; height: 12px; border-radius: 6px; }
.legend .key { width: 26px; height: 14px; border: 2px dashed #00c2d7; border-radius: 2px; margin-left: 20px; }
section { padding: 26px 0 30px; border-top: 1px solid #dcdcd6; margin-top: 26px; }
section h2 { font-size: 21px; margin: 0; letter-spacing: -0.01em; text-transform: capitalize; }
section > p { margin: 2px 0 16px; color: #45454a; }
.cases { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 22px; }
.case { background: #fff; border-radius: 10px; overflow: hidden; box-shadow: 0 1px 3px rgb(0 0 0 / 12%); }
.case h3 { font-size: 15px; font-weight: 600; margin: 0; padding: 12px 16px 10px; }
.picture { position: relative; display: block; }
.picture + .picture { margin-top: 2px; }
.picture img { display: block; width: 100%; height: auto; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.picture rect { fill: none; stroke: #00c2d7; stroke-width: 2; stroke-dasharray: 7 4;
  vector-effect: non-scaling-stroke; }
dl { display: grid; grid-template-columns: repeat(3, 1fr); margin: 0; padding: 12px 16px 14px; }
dl div { border-left: 1px solid #e6e6e1; padding-left: 12px; }
dl div:first-child { border: 0; padding-left: 0; }
dt { font-size: 12.5px; color: #6a6a70; }
dd { margin: 0; font-size: 20px; font-variant-numeric: tabular-nums; }
dl div:first-child dd { font-weight: 650; }
.found { grid-column: 1 / -1; font-size: 13.5px; color: #45454a; padding: 8px 0 0 !important; border: 0 !important; }
.found b { font-variant-numeric: tabular-nums; }
.climb img { max-width: 100%; } .climb td, .climb th { padding: 2px 16px 2px 0; text-align: right; font-size: 14px; }
.climb td:first-child, .climb th:first-child { text-align: left; } .climb figure { margin: 16px 0; }
.climb .alarm { border-left: 4px solid #b3261e; padding: 4px 12px; background: #fbe3df; }
footer { color: #6a6a70; font-size: 13.5px; padding-top: 6px; padding-bottom: 48px; }
footer code { font-size: 12.5px; color: #45454a; }
@media (max-width: 820px) { .cases { grid-template-columns: 1fr; } main, header, footer { padding: 0 16px; }
  header { padding-top: 24px; } }
"""


def write_page(
    scenes: Sequence[Scene], path: Path, model_name: str, fingerprint: str, seconds: float, training: str = ""
) -> Path:
    """Write the page with all pictures inside it; `seconds` is the time that scoring took, `training` more HTML."""
    images = sum(len(scene.cases) for scene in scenes)
    ordered = sum(scene.ordered for scene in scenes)
    colors = ", ".join("#{:02x}{:02x}{:02x}".format(*color) for color in color_table()[::15])
    versions = ", ".join(f"{name} {package_version(name)}" for name in ("finpercep", "torch"))
    body = f"""
<header>
<h1>How good, and where it fails</h1>
<p>Each photo is scored three times: as it is, rebuilt from a smaller copy of itself, and with one box of the rebuilt
version put into it. The score is 1 for a clean image; the map below each picture lights up where the image is
degraded. The model sees one image at a time and never the original.
The scores stand in the right order (photo, implanted fault, super-resolved) for <b>{ordered} of {len(scenes)}</b>
photos.</p>
<div class="legend">clean <span class="bar"></span> degraded
<span class="key"></span> the box that was implanted (the model is not told)</div>
</header>
<main>
{"".join(_section(scene) for scene in scenes)}
{training}
</main>
<footer>
<p>Model <code>{html.escape(model_name)}</code>, fingerprint <code>{html.escape(fingerprint)}</code>.
{html.escape(versions)}, Python {platform.python_version()}, {html.escape(device_name())}.
{images} images scored and mapped in {seconds:.2f} s. Photos: scikit-image. The rebuilt versions are made by this
package's own degradations, which are also among the faults its models are trained on. Mean is the map's mean; worst is
the mean of its worst 1 % of pixels. The pictures here are JPEG copies; the figures belong to the originals.</p>
</footer>
"""
    style = f"{STYLE}.legend .bar {{ background: linear-gradient(90deg, {colors}); }}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(html_page("FinPercep demo", body, style=style).encode())
    return path


def _section(scene: Scene) -> str:
    cards = "".join(_card(scene, case) for case in scene.cases)
    return (
        f"<section>\n<h2>{html.escape(scene.name)}</h2>\n<p>{html.escape(scene.note)}</p>\n"
        f'<div class="cases">{cards}</div>\n</section>\n'
    )


def _card(scene: Scene, case: Case) -> str:
    assert case.map is not None
    height, width = case.image.shape[1:]
    outline = found = ""
    if case.box is not None:
        left, top, right, bottom = case.box
        outline = (
            f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none"><rect x="{left}" y="{top}" '
            f'width="{right - left}" height="{bottom - top}"/></svg>'
        )
        inside, outside = case.inside_outside()
        found = f'<div class="found">Mean map inside the box <b>{inside:.3f}</b>, outside <b>{outside:.3f}</b></div>'
    name = html.escape(f"{scene.name}, {TITLES[case.kind].lower()}")
    photo, heat = (
        f'<img src="{inline_jpeg(picture, quality=91)}" alt="{name}{suffix}" width="{width}" height="{height}">'
        for picture, suffix in ((as_picture(case.image), ""), (overlay(case.image, case.map), ": map"))
    )
    figures = "".join(
        f"<div><dt>{label}</dt><dd>{value:.3f}</dd></div>"
        for label, value in (
            ("score", case.score),
            ("map mean", case.map_mean),
            ("map worst", case.map_worst),
        )
    )
    title = TITLES[case.kind] + (f": {scene.source}" if case.kind == "rebuilt" else "")
    return (
        f'<article class="case"><h3>{html.escape(title)}</h3><div class="picture">{photo}{outline}</div>'
        f'<div class="picture">{heat}{outline}</div>'
        f"<dl>{figures}{found}</dl></article>\n"
    )


def write_sheet(scenes: Sequence[Scene], path: Path, *, width: int = 250, gap: int = 8) -> Path:
    """Write all pictures and maps as one PNG: a row per photo; pairs of picture and map per case."""
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(17), ImageFont.load_default(14)
    heights = [round(width * s.cases[0].image.shape[1] / s.cases[0].image.shape[2]) for s in scenes]
    head, caption, foot, pair = 40, 26, 34, 2 * width + gap // 2
    below = head + sum(heights) + len(scenes) * (caption + gap)
    sheet = Image.new("RGB", (3 * pair + 4 * 2 * gap, below + foot), "#f4f4f1")
    draw = ImageDraw.Draw(sheet)
    top = head
    for scene, height in zip(scenes, heights, strict=True):
        for column, case in enumerate(scene.cases):
            assert case.map is not None
            left = 2 * gap + column * (pair + 2 * gap)
            if top == head:
                draw.text((left, 11), TITLES[case.kind], "#1d1d1f", font)
            for offset, picture in (
                (0, as_picture(case.image)),
                (width + gap // 2, overlay(case.image, case.map)),
            ):
                sheet.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (left + offset, top))
                if case.box is not None:
                    scale = width / case.image.shape[2]
                    box = [
                        left + offset + case.box[0] * scale,
                        top + case.box[1] * scale,
                        left + offset + case.box[2] * scale - 1,
                        top + case.box[3] * scale - 1,
                    ]
                    draw.rectangle(box, outline="#00c2d7", width=2)
            fault = f"{scene.source}   " if case.kind == "rebuilt" else ""
            text = f"{fault}score {case.score:.3f}   map mean {case.map_mean:.3f}   worst {case.map_worst:.3f}"
            draw.text((left, top + height + 4), text, "#45454a", small)
        top += height + caption + gap
    _draw_legend(sheet, (2 * gap, below), small)
    return save_image(sheet, path)


def _draw_legend(
    sheet: PILImage.Image, corner: tuple[int, int], font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    """What the colors of the maps and the outlined boxes mean, in one line at `corner`."""
    from PIL import ImageDraw

    draw, (left, top), side = ImageDraw.Draw(sheet), corner, 220
    draw.text((left, top), "map: clean", "#45454a", font)
    sheet.paste(colorize(torch.linspace(0, 1, side).expand(14, side)), (left + 76, top + 2))
    draw.text((left + 84 + side, top), "degraded", "#45454a", font)
    draw.rectangle((left + side + 180, top + 2, left + side + 206, top + 16), outline="#00c2d7", width=2)
    draw.text((left + side + 214, top), "implanted box, the model is not told", "#45454a", font)

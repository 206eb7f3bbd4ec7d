"""The page that shows what a data set holds: a contact sheet, histograms, and how it was made."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from finpercep.data.dataset.stored import StoredScene, stored_scenes
from finpercep.data.scenes import StoredSample
from finpercep.io.files import atomic_write
from finpercep.io.html_page import html_page, inline_jpeg
from finpercep.io.parquet import require_pyarrow
from finpercep.io.pictures import outlined, overlay, save_image

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = ["draw_sheet", "pick_samples", "remove_pages", "write_card", "write_preview"]

PREVIEW = "preview.png"
SHOWN = 12  # samples on the sheet
WIDTH = 240  # of a picture, pixels
TALLEST = 4 * WIDTH  # taller ones are drawn flatter than they are: no format holds a sheet of webtoons
TITLES = (
    "photo",
    "super-resolved",
    "implanted (outlined)",
    "target of the implanted",
    "target of the whole result",
)

STYLE = """main { max-width: 1320px; margin: 0 auto; padding: 40px 28px 60px; }
h1 { font-size: 32px; letter-spacing: -0.02em; margin: 0 0 6px; } h2 { font-size: 20px; margin: 36px 0 12px; }
p, td, th, figcaption { color: #45454a; } p { margin: 0 0 10px; max-width: 60em; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 20px; }
figure { margin: 0; background: #fff; border-radius: 10px; padding: 14px 16px; box-shadow: 0 1px 3px rgb(0 0 0 / 12%); }
figcaption { font-weight: 600; margin-bottom: 8px; color: #1d1d1f; } svg { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: #45454a; }
table { border-collapse: collapse; font-size: 13px; } td, th { text-align: left; padding: 3px 18px 3px 0;
  vertical-align: top; } td { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
img { max-width: 100%; border-radius: 6px; } footer { margin-top: 30px; font-size: 13px; color: #6b6b70; }
"""


def write_preview(folder: Path, settings: dict[str, Any], manifest: dict[str, Any]) -> Path:
    """Write `preview.html` (self-contained) and `preview.png` (the sheet) of a complete data set; returns the page."""
    files = [folder / entry["file"] for entry in manifest["files"]]
    rows = _columns(files)
    samples = pick_samples(folder, manifest)
    sheet = draw_sheet(samples)
    save_image(sheet, folder / PREVIEW)
    page = folder / "preview.html"
    with atomic_write(page) as file:
        file.write(_page(settings, manifest, rows, sheet).encode())
    return page


def remove_pages(folder: Path) -> None:
    """Remove what `write_preview` and `write_card` wrote of samples that are gone."""
    for name in (PREVIEW, "preview.html", "README.md"):
        (folder / name).unlink(missing_ok=True)


def _columns(files: Sequence[Path]) -> dict[str, list[Any]]:
    parquet = require_pyarrow().parquet
    names = ["source", "mask_kind", "area", "severity", "severity_sr"]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for path in files:
        for name, values in parquet.read_table(path, columns=names).to_pydict().items():
            columns[name] += values
    return columns


def pick_samples(folder: Path, manifest: dict[str, Any], count: int = SHOWN) -> list[StoredSample]:
    """Samples from photos evenly spread over the data set, sources and masks in turn."""
    scenes: list[StoredScene] = []
    for split in ("train", "val"):
        if manifest["rows"]["validation" if split == "val" else split]:
            scenes += stored_scenes(folder, split)
    chosen = [scenes[round(i * (len(scenes) - 1) / max(1, count - 1))] for i in range(min(count, len(scenes)))]
    samples = []
    for i, scene in enumerate(chosen):
        rows = scene.rows[scene.sources[i % len(scene.sources)]]
        samples.append(scene.sample(rows[i % len(rows)]))
    return samples


def draw_sheet(samples: Sequence[StoredSample], *, gap: int = 8) -> PILImage.Image:
    """A picture with a line per sample: photo, result, implanted, and both targets over their images."""
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    lines = [[picture.convert("RGB") for picture in _pictures(sample)] for sample in samples]
    heights = [line[0].height for line in lines]
    head, caption = 38, 24
    size = (gap + len(TITLES) * (WIDTH + gap), head + sum(heights) + len(lines) * (caption + gap))
    sheet = Image.new("RGB", size, "#f4f4f1")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(TITLES):
        draw.text((gap + column * (WIDTH + gap), 10), title, "#1d1d1f", font)
    top = head
    for sample, line, height in zip(samples, lines, heights, strict=True):
        for column, picture in enumerate(line):
            sheet.paste(picture, (gap + column * (WIDTH + gap), top))
        row = sample.row
        text = (
            f"{row['photo']}   {row['source']}   {row['mask_kind']} {row['area']:.0%}"
            f"{', feathered' if row['feather'] else ''}   mean target inside the mask {row['severity']:.2f}, "
            f"of the whole result {row['severity_sr']:.2f}"
        )
        draw.text((gap, top + height + 3), text, "#45454a", small)
        top += height + caption + gap
    return sheet


def _pictures(sample: StoredSample) -> list[PILImage.Image]:
    from PIL import Image

    height = max(1, min(TALLEST, round(WIDTH * sample.gt.shape[1] / sample.gt.shape[2])))

    def picture(image: Tensor) -> PILImage.Image:
        return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())

    def fit(image: PILImage.Image) -> PILImage.Image:
        return image.resize((WIDTH, height), Image.Resampling.LANCZOS)

    return [
        fit(picture(sample.gt)),
        fit(picture(sample.sr)),
        outlined(fit(picture(sample.syn)), sample.mask.float() / 255),
        fit(overlay(sample.syn, sample.target_syn.float() / 255)),
        fit(overlay(sample.sr, sample.target_sr.float() / 255)),
    ]


def _page(settings: dict[str, Any], manifest: dict[str, Any], rows: dict[str, list[Any]], sheet: PILImage.Image) -> str:
    count = len(rows["source"])
    charts = [
        _histogram("Area of the masks, share of the image", rows["area"], high=1.0),
        _histogram("Severity: mean target inside the mask", rows["severity"], high=1.0),
        _histogram("Severity of the whole results", rows["severity_sr"], high=1.0),
        _bars("Samples per source", Counter(rows["source"])),
        _bars("Samples per kind of mask", Counter(rows["mask_kind"])),
    ]
    splits = ", ".join(f"{number} {name}" for name, number in manifest["rows"].items())
    left = len(manifest["left_out"])
    note = f"<p>{left} result{'s' if left != 1 else ''} left out; see manifest.json.</p>" if left else ""
    body = f"""<main>
<h1>{count} samples of {manifest["photos"]} photos</h1>
<p>{splits}. Each sample is a photo, a super-resolved version, the photo with a part of that version implanted,
and the maps of where each is degraded (dark: clean; bright: degraded).</p>{note}
<h2>Distributions</h2><div class="charts">{"".join(charts)}</div>
<h2>Samples</h2><img src="{inline_jpeg(sheet)}" alt="Contact sheet" width="{sheet.width}" height="{sheet.height}">
<h2>Settings</h2><table>{_settings_rows(settings)}</table>
<footer>settings {manifest["settings"]}</footer></main>"""
    return html_page("Data set preview", body, style=STYLE)


def _histogram(title: str, values: Sequence[float], *, high: float, bins: int = 20) -> str:
    """An inline picture: counts of values in [0, high] in equal bins, with mean and quartiles."""
    data = torch.tensor(values, dtype=torch.float64)
    counts = torch.histc(data, bins, 0, high).tolist()
    tallest = max(*counts, 1)
    step = 300 / bins
    bars = "".join(
        f'<rect x="{i * step + 1:.1f}" y="{100 - 96 * n / tallest:.1f}" width="{step - 2:.1f}" '
        f'height="{96 * n / tallest:.1f}" fill="#6a1580"/>'
        for i, n in enumerate(counts)
    )
    low, middle, up = (float(q) for q in data.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)))
    marks = "".join(
        f'<text x="{300 * x}" y="116" text-anchor="{anchor}">{high * x:g}</text>'
        for x, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    )
    text = f'<text x="150" y="134" text-anchor="middle">quartiles {low:.2f}, {middle:.2f}, {up:.2f}</text>'
    axis = '<path d="M0 100.5H300" stroke="#dcdcd6"/>'
    picture = f'<svg viewBox="0 0 300 140">{bars}{axis}{marks}{text}</svg>'
    return f"<figure><figcaption>{title}</figcaption>{picture}</figure>"


def _bars(title: str, counts: Counter[str]) -> str:
    tallest = max(counts.values())
    lines = []
    for i, (name, number) in enumerate(sorted(counts.items())):
        y = 24 * i
        shown = html.escape(name if len(name) <= 20 else f"{name[:19]}…")
        lines.append(
            f'<text x="0" y="{y + 15}">{shown}</text><rect x="120" y="{y + 4}" rx="2" '
            f'width="{140 * number / tallest:.1f}" height="14" fill="#e5484d"/>'
            f'<text x="{126 + 140 * number / tallest:.1f}" y="{y + 15}">{number}</text>'
        )
    body = "".join(lines)
    return f'<figure><figcaption>{title}</figcaption><svg viewBox="0 0 300 {24 * len(counts)}">{body}</svg></figure>'


def _settings_rows(settings: dict[str, Any], prefix: str = "") -> str:
    rows = ""
    for name, value in settings.items():
        if isinstance(value, dict):
            rows += _settings_rows(value, f"{prefix}{name}.")
        else:
            rows += f"<tr><th>{html.escape(prefix + name)}</th><td>{html.escape(json.dumps(value))}</td></tr>"
    return rows


def write_card(folder: Path, settings: dict[str, Any], manifest: dict[str, Any]) -> None:
    """`README.md`: a data set card that tells `datasets` which files are which split."""
    splits = [split for split, rows in manifest["rows"].items() if rows]
    files = "".join(f"  - split: {split}\n    path: data/{split}-*.parquet\n" for split in splits)
    sources = "".join(f"- `{name}` ({fingerprint})\n" for name, fingerprint in settings["sources"].items())
    config = settings["config"]
    text = f"""---
configs:
- config_name: default
  data_files:
{files}---

# Fine-grained degradation samples

{sum(manifest["rows"].values())} samples of {manifest["photos"]} photos, made by `finpercep make-dataset`.

Super-resolved by:

{sources}
Columns: `gt` the photo, `sr` the super-resolved version, `mask` (255 takes `sr`), `syn` = mask·sr + (1-mask)·gt,
`target` and `target_sr` the degradation maps of `syn` and `sr` against `gt` (0 clean, 255 degraded), `lr` the
low-resolution version where one was made or given, `mask_rle` the mask before feathering as COCO RLE.

Target: alpha {config["alpha"]}, features {config["features"]}, normalization {config["normalize"]}
({config["target_scale"]}). Seed {config["seed"]}; settings {manifest["settings"]}.
"""
    with atomic_write(folder / "README.md") as file:
        file.write(text.encode())

"""Degradation maps as pictures: a heat map laid over the photo, so that clean areas stay visible."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from finpercep.io.files import atomic_write
from finpercep.io.images import to_tensor

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as PILImage

__all__ = ["as_picture", "colorize", "outlined", "overlay", "save_image"]

# From clean to degraded. Lightness rises all the way, so it reads in gray and to color-blind eyes too; the hues
# are those that photos rarely hold in large areas.
_ANCHORS = ("#2b0b57", "#6a1580", "#b3226f", "#e5484d", "#f98a2c", "#ffc53a", "#fff3a6")
_STRIP_PIXELS = 2**20
_OUTLINE = (0, 194, 215)


@lru_cache(maxsize=1)
def color_table() -> np.ndarray:
    """The color map: uint8 ``(256, 3)``, interpolated in Oklab, where equal steps look equal."""
    import numpy as np

    anchors = np.array([[int(a[i : i + 2], 16) for i in (1, 3, 5)] for a in _ANCHORS]) / 255
    lab = _srgb_to_oklab(anchors)
    position = np.linspace(0, len(anchors) - 1, 256)
    table = np.stack([np.interp(position, np.arange(len(anchors)), lab[:, i]) for i in range(3)], 1)
    return np.round(_oklab_to_srgb(table) * 255).astype(np.uint8)


def colorize(degradation: torch.Tensor) -> PILImage.Image:
    """A map ``(H, W)`` or ``(1, H, W)`` in [0, 1] as an opaque RGB picture in the colors of `overlay`."""
    from PIL import Image

    return Image.fromarray(color_table()[_levels(_check_map(degradation))])


def overlay(image: Any, degradation: torch.Tensor, *, strength: float = 0.9) -> PILImage.Image:
    """Lay a degradation map over its image.

    Args:
        image: anything `finpercep.io.images.to_tensor` takes, of the map's size.
        degradation: ``(H, W)`` or ``(1, H, W)``, 0 = clean (the photo shows through) to 1 = degraded.
        strength: opacity of the colors where the map is 1; in between it follows ``map ** 0.75``.

    Returns an RGB picture of the same size. Raises ValueError when the sizes differ or the map has NaN.
    """
    import numpy as np
    from PIL import Image

    photo = to_tensor(image).detach()
    heat = _check_map(degradation)
    height, width = photo.shape[1:]
    if heat.shape != (height, width):
        raise ValueError(f"degradation: expected the image's {height}x{width}, got {'x'.join(map(str, heat.shape))}")
    out = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):  # strips keep the float copies small for very large photos
        part = slice(top, top + rows)
        base = photo[:, part].permute(1, 2, 0).cpu()
        base = base.float() if base.dtype == torch.uint8 else base * 255
        levels = _levels(heat[part])
        alpha = (strength * (levels / 255.0) ** 0.75)[..., None]
        out[part] = np.round(base.numpy() * (1 - alpha) + color_table()[levels] * alpha).astype(np.uint8)
    return Image.fromarray(out)


def as_picture(image: torch.Tensor) -> PILImage.Image:
    """A float image ``(3, H, W)`` in [0, 1] as a PIL picture."""
    from PIL import Image

    image = image.detach().cpu()
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def outlined(picture: PILImage.Image, mask: torch.Tensor) -> PILImage.Image:
    """A copy of an RGB picture with the outline of a mask (1,H,W) in [0, 1], drawn at the picture's size."""
    import numpy as np
    from PIL import Image

    pixels = torch.from_numpy(np.array(picture))
    soft = F.interpolate(mask[None].float(), (picture.height, picture.width), mode="area")
    inside = F.pad((soft > 0.5).float(), [1] * 4, mode="replicate")
    edge = (F.max_pool2d(inside, 3, 1) != -F.max_pool2d(-inside, 3, 1))[0, 0]
    pixels[edge] = torch.tensor(_OUTLINE, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def save_image(picture: PILImage.Image, path: str | os.PathLike[str]) -> Path:
    """Write a PNG or JPEG (by suffix); it appears under its name only once complete. Folders are made.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"{path}: expected a name that ends in .png, .jpg or .jpeg")
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "JPEG" if path.suffix.lower() != ".png" else "PNG"
    options: dict[str, Any] = {"quality": 88} if kind == "JPEG" else {"compress_level": 4}
    with atomic_write(path) as file:
        picture.save(file, kind, **options)
    return path


def _check_map(degradation: torch.Tensor) -> torch.Tensor:
    heat = degradation.detach()
    if heat.ndim == 3 and heat.shape[0] == 1:
        heat = heat[0]
    if heat.ndim != 2:
        raise ValueError(f"degradation: expected a map (H, W) or (1, H, W), got shape {tuple(degradation.shape)}")
    heat = heat.float().cpu()
    if bool(heat.isnan().any()):
        raise ValueError("degradation: expected values in [0, 1], got NaN")
    return heat


def _levels(heat: torch.Tensor) -> np.ndarray:
    return (heat.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


# Oklab (Björn Ottosson, 2020): linear sRGB -> cone responses -> cube root -> lightness and two opponent axes.
_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def _srgb_to_oklab(color: np.ndarray) -> np.ndarray:
    import numpy as np

    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ np.array(_TO_CONES).T) @ np.array(_TO_LAB).T


def _oklab_to_srgb(lab: np.ndarray) -> np.ndarray:
    import numpy as np

    linear = (lab @ np.linalg.inv(np.array(_TO_LAB)).T) ** 3 @ np.linalg.inv(np.array(_TO_CONES)).T
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055).clip(0, 1)

"""Random masks of a wanted area: each kind is a field over the image, cut where the area is right.

The area is drawn first, uniformly; the kinds differ only in shape. So area statistics do not depend on the kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.randomness import integer, uniform

__all__ = ["RANDOM", "SHAPES", "ShapeKind", "cut", "random_shape"]

Field = Callable[[int, int, torch.Generator], Tensor]


def random_shape(
    kind: str, height: int, width: int, generator: torch.Generator, *, area: tuple[float, float]
) -> Tensor:
    """A mask (1,H,W), bool, of one of `SHAPES`, that covers a fraction uniform in `area`.

    The area is met to within the pixels of one outline: shapes are not broken up to meet it exactly.

    Raises:
        ValueError: unknown kind, or an area outside (0, 1).
    """
    if kind not in SHAPES:
        raise ValueError(f"mask: expected one of {sorted(SHAPES)}, got {kind!r}")
    if not 0 < area[0] <= area[1] < 1:
        raise ValueError(f"area: expected 0 < low <= high < 1, got {area}")
    share = uniform(*area, generator)
    field = SHAPES[kind](height, width, generator)
    return cut(field, share)[None]


def cut(field: Tensor, share: float) -> Tensor:
    """The pixels (H,W), bool, where the field (H,W) is highest, about `share` of all.

    Never all of them, and never none but of a constant field.
    """
    pixels = field.numel()
    count = min(max(1, round(share * pixels)), max(1, pixels - 1))
    threshold = field.flatten().kthvalue(pixels - count + 1).values
    mask = field >= threshold
    return mask if not bool(mask.all()) else field > threshold  # ties: a level line is in or out as a whole


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Pixel centers (H,1) and (1,W) in units of the longer side."""
    side = max(height, width)
    return (torch.arange(height)[:, None] + 0.5) / side, (torch.arange(width)[None] + 0.5) / side


def _point(height: int, width: int, generator: torch.Generator, margin: float = 0.1) -> tuple[float, float]:
    """A point (y, x) in the units of `_grid`, `margin` of the sides away from the border."""
    side = max(height, width)
    y, x = (uniform(margin, 1 - margin, generator) for _ in range(2))
    return y * height / side, x * width / side


def boxes(height: int, width: int, generator: torch.Generator) -> Tensor:
    """One to three boxes, sides up to 1:3, sizes of one mask within a factor of two."""
    y, x = _grid(height, width)
    field = torch.full((height, width), -math.inf)
    for _ in range(integer(1, 3, generator)):
        cy, cx = _point(height, width, generator)
        aspect, size = 3 ** uniform(-0.5, 0.5, generator), 2 ** uniform(-0.5, 0.5, generator)
        distance = torch.maximum((y - cy).abs() / aspect, (x - cx).abs() * aspect) / size
        field = torch.maximum(field, -distance)
    return field


def polygons(height: int, width: int, generator: torch.Generator) -> Tensor:
    """One or two star-shaped polygons of 3 to 9 corners: convex ones, wedges and spikes."""
    y, x = _grid(height, width)
    field = torch.full((height, width), -math.inf)
    for _ in range(integer(1, 2, generator)):
        cy, cx = _point(height, width, generator)
        corners = integer(3, 9, generator)
        step = 2 * math.pi / corners
        first = uniform(0, step, generator)
        jitter = 0.6 if corners > 3 else 0.49  # no angle between neighbors reaches π: a polygon holds its center
        angles = first + step * (torch.arange(corners) + jitter * (torch.rand(corners, generator=generator) - 0.5))
        radii = 0.4 + 0.6 * torch.rand(corners, generator=generator)
        field = torch.maximum(field, -_gauge(y - cy, x - cx, angles, radii))
    return field


def _gauge(dy: Tensor, dx: Tensor, angles: Tensor, radii: Tensor) -> Tensor:
    """How much the polygon must grow about its center to reach each pixel; 1 on its outline."""
    ys, xs = radii * angles.sin(), radii * angles.cos()
    turn = torch.remainder(torch.atan2(dy, dx) - angles[0], 2 * math.pi)
    starts = torch.remainder(angles - angles[0], 2 * math.pi)
    sector = torch.searchsorted(starts.contiguous(), turn.contiguous(), right=True) - 1
    following = (sector + 1) % len(angles)
    ay, ax, by, bx = ys[sector], xs[sector], ys[following], xs[following]
    across = (dx * (by - ay) - dy * (bx - ax)) / (ax * by - ay * bx)  # Cramer: pixel = scale · point of the edge
    return across


def strokes(height: int, width: int, generator: torch.Generator) -> Tensor:
    """One to three curved strokes of one brush, as a hand would wipe."""
    y, x = _grid(height, width)
    nearest = torch.full((height, width), math.inf)
    for _ in range(integer(1, 3, generator)):
        cy, cx = _point(height, width, generator, margin=0.15)
        heading, bend = uniform(0, 2 * math.pi, generator), uniform(-0.5, 0.5, generator)
        for _ in range(integer(4, 9, generator)):
            heading += bend + uniform(-0.4, 0.4, generator)
            ny, nx = cy + 0.07 * math.sin(heading), cx + 0.07 * math.cos(heading)
            nearest = torch.minimum(nearest, _segment_distance(y, x, (cy, cx), (ny, nx)))
            cy, cx = ny, nx
    return -nearest


def _segment_distance(y: Tensor, x: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
    dy, dx = end[0] - start[0], end[1] - start[1]
    along = (((y - start[0]) * dy + (x - start[1]) * dx) / (dy * dy + dx * dx)).clamp(0, 1)
    return torch.hypot(y - start[0] - along * dy, x - start[1] - along * dx)


def blobs(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Smooth random shapes, one or several."""
    cells = integer(3, 8, generator)
    noise = torch.rand(1, 1, cells, cells, generator=generator)
    return F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)[0, 0]


SHAPES: dict[str, Field] = {function.__name__: function for function in (boxes, polygons, strokes, blobs)}

RANDOM = "random"  # any of the shapes


@dataclass(frozen=True)
class ShapeKind:
    """One of `SHAPES`, or any of them ("random")."""

    name: str
    fingerprint: str = "shapes-2"

    def prepare(self, image: Tensor) -> None:
        return None

    def draw(self, prepared: None, image: Tensor, generator: torch.Generator, area: tuple[float, float]) -> Tensor:
        height, width = image.shape[-2:]
        return random_shape(self.name, height, width, generator, area=area)

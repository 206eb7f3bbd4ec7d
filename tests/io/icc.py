"""ICC profiles written by hand, and what their colors are in sRGB, in fp64."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
# Red, green and blue as XYZ relative to D50, one a column.
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
ADOBE_GAMMA = 563 / 256


def srgb_decode(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def srgb_encode(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def to_srgb(values: np.ndarray, colorants: np.ndarray, gamma: float | None) -> np.ndarray:
    """8-bit values (…,3) of a profile to sRGB, 0..255, not rounded; `gamma` None is sRGB's curve."""
    linear = srgb_decode(values / 255) if gamma is None else (values / 255) ** gamma
    return srgb_encode(linear @ colorants.T @ np.linalg.inv(SRGB).T) * 255


def rgb_profile(colorants: np.ndarray, gamma: float | None) -> bytes:
    curve = _table_curve() if gamma is None else _gamma_curve(gamma)
    tags = {f"{c}XYZ": _xyz(colorants[:, i]) for i, c in enumerate("rgb")} | {f"{c}TRC": curve for c in "rgb"}
    return profile("RGB ", tags)


def gray_profile(gamma: float) -> bytes:
    return profile("GRAY", {"kTRC": _gamma_curve(gamma)})


def cmyk_profile(corners: Sequence[tuple[int, int, int]]) -> bytes:
    """A table of the 16 corners, cyan slowest: L* and a*, b* + 128 as 8 bits (L* 255 = 100)."""
    identity = bytes(range(256))
    table = struct.pack(">4s4xBBBx9i", b"mft1", 4, 3, 2, *(65536 if i % 4 == 0 else 0 for i in range(9)))
    return profile(
        "CMYK", {"A2B0": table + identity * 4 + bytes(v for corner in corners for v in corner) + identity * 3}, "Lab "
    )


def profile(space: str, tags: dict[str, bytes], connection: str = "XYZ ") -> bytes:
    """ICC.1:2001-04: header, table of tags, tags."""
    tags = {"desc": struct.pack(">4s4xI", b"desc", 5) + b"test\0" + bytes(78), "wtpt": _xyz(D50), **tags}
    offset, table, data = 132 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        tag += bytes(-len(tag) % 4)
        table += struct.pack(">4sII", name.encode(), offset + len(data), len(tag))
        data += tag
    header = struct.pack(
        ">I4sI4s4s4s12s4sIIIIIII3i",
        offset + len(data),
        bytes(4),
        0x02400000,
        b"prtr" if space == "CMYK" else b"mntr",
        space.encode(),
        connection.encode(),
        struct.pack(">6H", 2026, 1, 1, 0, 0, 0),
        b"acsp",
        *(0, 0, 0, 0, 0, 0, 0),
        *(round(v * 65536) for v in D50),
    )
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def _xyz(values: Sequence[float] | np.ndarray) -> bytes:
    return struct.pack(">4s4x3i", b"XYZ ", *(round(float(v) * 65536) for v in values))


def _gamma_curve(gamma: float) -> bytes:
    return struct.pack(">4s4xIH", b"curv", 1, round(gamma * 256))


def _table_curve() -> bytes:
    values = (srgb_decode(np.linspace(0, 1, 1024)) * 65535).round().astype(">u2")
    return struct.pack(">4s4xI", b"curv", len(values)) + values.tobytes()

"""Photos that come inside scikit-image: of ``finpercep demo``, and as files for ``finpercep make-dataset --demo``."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from finpercep.io.images import to_tensor
from finpercep.io.pictures import as_picture, save_image

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle", "camera")
SIDE = 320  # of the square that is cut out of the middle


def load_photo(name: str) -> Tensor:
    """One of `PHOTOS`, float ``(3, H, W)``, from the files that scikit-image carries in its package (no download)."""
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(f"demo: expected scikit-image, got {error}; pip install 'finpercep[demo]'") from error
    pixels = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    return to_tensor(pixels, name=name).float() / 255


def write_demo_photos(folder: Path) -> None:
    """Write the photos as PNG where they are not yet.

    Raises:
        ImportError: scikit-image is not installed.
    """
    for name in PHOTOS:
        path = folder / f"{name}.png"
        if path.is_file():
            continue
        photo = load_photo(name)
        height, width = photo.shape[1:]
        side = min(SIDE, height, width)
        top, left = (height - side) // 2, (width - side) // 2
        save_image(as_picture(photo[:, top : top + side, left : left + side]), path)

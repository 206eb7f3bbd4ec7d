"""Photos that come inside scikit-image, as files: the input of ``finpercep make-dataset --demo``."""

from __future__ import annotations

from pathlib import Path

from finpercep.demo import PHOTOS, load_photo
from finpercep.demo_page import as_picture
from finpercep.overlay import save_image

SIDE = 320  # of the square that is cut out of the middle


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

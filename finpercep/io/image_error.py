"""What is wrong with an image, in one line."""

from __future__ import annotations

import os


class ImageError(ValueError):
    """An unusable image. The message is one line that starts with the file name or the argument."""


def reason(error: BaseException, name: str) -> str:
    """One line out of any exception, without the file name that Pillow repeats."""
    text = str(error).replace(repr(name), "").replace(f"'{name}'", "")
    if os.path.isabs(name):  # a shorter name may be a part of any word
        text = text.replace(name, "")
    text = " ".join(text.split()).strip(" :")
    if "cannot identify image file" in text:
        return "content of no known image format"
    if "decoder" in text:
        return f"damaged or truncated data ({text})"
    return text or type(error).__name__

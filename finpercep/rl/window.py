"""Which steps of the sampler are random and trained: all of a window, or some of it that move."""

from __future__ import annotations

from finpercep.data.randomness import integer, seeded

SLIDES = ("forward", "random")


def check_window(window: tuple[int, int], steps: int, sliding: int, slide: str, every: int) -> None:
    """Whether the options of a window fit each other.

    Raises:
        ValueError: names the one that does not.
    """
    first, end = window
    if not 0 <= first < end <= steps - 1:
        raise ValueError(
            f"window: expected steps within 0 to {steps - 1}, without the last one, whose noise would stay in "
            f"the image, got {(first, end)}"
        )
    if not 0 <= sliding <= end - first:
        raise ValueError(f"sliding: expected 0 to {end - first}, the steps in the window, got {sliding}")
    if slide not in SLIDES:
        raise ValueError(f"slide: expected one of {', '.join(SLIDES)}, got {slide!r}")
    if every < 1:
        raise ValueError(f"slide_every: expected at least 1, got {every}")


def window_at(step: int, window: tuple[int, int], sliding: int, slide: str, every: int, seed: int) -> tuple[int, int]:
    """First and behind-last step of the sampler that is random in a step of training.

    - "forward" (MixGRPO): `sliding` steps begin at the window's first one, go on by one after `every` steps of
      training, and begin anew behind the window's end.
    - "random" (Flow-GRPO-Fast): their beginning is drawn for each step of training.
    """
    first, end = window
    if not sliding:
        return window
    places = end - first - sliding + 1
    if slide == "forward":
        begin = first + step // every % places
    else:
        begin = first + integer(0, places - 1, seeded(seed, "window", step))
    return begin, begin + sliding

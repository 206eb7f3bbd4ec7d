"""Options of the degradations, named as in BasicSR / Real-ESRGAN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from finpercep.data.degradations.blur_kernels import KINDS

Range = tuple[float, float]


@dataclass(frozen=True)
class DegradationConfig:
    """Options of BasicSR's Real-ESRGAN configuration, with its defaults; names ending in 2 are the second order's.

    Attributes:
        blur_kernel_size: largest side of the kernels, odd.
        kernel_list, kernel_prob: kinds of kernels and their weights.
        sinc_prob, final_sinc_prob: probability of a sinc kernel instead, and of the final sinc filter.
        blur_sigma: range of the kernels' widths, pixels.
        betag_range, betap_range: exponents of generalized and plateau kernels: half are drawn between the low end and
            1, half between 1 and the high end. So ranges that do not hold 1 are exceeded, as in BasicSR: (2, 4) draws
            half of them in [1, 2].
        resize_prob: weights of enlarging, shrinking and keeping the size.
        resize_range: smallest and largest factor: enlarging draws between 1 and the largest, shrinking between the
            smallest and 1. So (1.1, 1.5) enlarges by 1 to 1.5, and does not shrink.
        gaussian_noise_prob: probability of Gaussian noise; else it is Poisson noise.
        noise_range: its standard deviation, 8-bit levels.
        poisson_scale_range: strength of Poisson noise; 1 is that of as many photons as levels.
        gray_noise_prob: probability that the noise is the same in all channels.
        jpeg_range: quality.
        second_blur_prob: probability of the second blur.
    """

    blur_kernel_size: int = 21
    kernel_list: tuple[str, ...] = KINDS[:6]
    kernel_prob: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_prob: float = 0.1
    blur_sigma: Range = (0.2, 3.0)
    betag_range: Range = (0.5, 4.0)
    betap_range: Range = (1.0, 2.0)
    resize_prob: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: Range = (0.15, 1.5)
    gaussian_noise_prob: float = 0.5
    noise_range: Range = (1.0, 30.0)
    poisson_scale_range: Range = (0.05, 3.0)
    gray_noise_prob: float = 0.4
    jpeg_range: Range = (30.0, 95.0)

    second_blur_prob: float = 0.8
    blur_kernel_size2: int = 21
    kernel_list2: tuple[str, ...] = KINDS[:6]
    kernel_prob2: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_prob2: float = 0.1
    blur_sigma2: Range = (0.2, 1.5)
    betag_range2: Range = (0.5, 4.0)
    betap_range2: Range = (1.0, 2.0)
    resize_prob2: tuple[float, float, float] = (0.3, 0.4, 0.3)
    resize_range2: Range = (0.3, 1.2)
    gaussian_noise_prob2: float = 0.5
    noise_range2: Range = (1.0, 25.0)
    poisson_scale_range2: Range = (0.05, 2.5)
    gray_noise_prob2: float = 0.4
    jpeg_range2: Range = (30.0, 95.0)

    final_sinc_prob: float = 0.8

    def __post_init__(self) -> None:
        for end in ("", "2"):
            kinds, weights = getattr(self, f"kernel_list{end}"), getattr(self, f"kernel_prob{end}")
            if len(kinds) != len(weights) or not set(kinds) <= set(KINDS[:6]):
                raise ValueError(
                    f"kernel_list{end}: expected kinds of {KINDS[:6]}, each with a weight in kernel_prob{end}, "
                    f"got {kinds} and {weights}"
                )
            if min(weights) < 0 or sum(weights) <= 0:
                raise ValueError(f"kernel_prob{end}: expected weights of 0 or more, not all 0, got {weights}")
            side = getattr(self, f"blur_kernel_size{end}")
            if side % 2 == 0 or side < 7:
                raise ValueError(f"blur_kernel_size{end}: expected an odd side of 7 or more, got {side}")
        for option in fields(self):
            value = getattr(self, option.name)
            if "range" in option.name or "sigma" in option.name:
                if not 0 <= value[0] <= value[1]:
                    raise ValueError(f"{option.name}: expected 0 <= low <= high, got {value}")
                if option.name.startswith("resize_range") and value[0] == 0:
                    raise ValueError(f"{option.name}: expected factors above 0, got {value}")
            elif option.name.startswith("resize_prob"):
                if len(value) != 3 or min(value) < 0 or sum(value) <= 0:
                    raise ValueError(f"{option.name}: expected three weights (up, down, keep), got {value}")
            elif isinstance(option.default, float) and not 0 <= value <= 1:
                raise ValueError(f"{option.name}: expected a probability in [0, 1], got {value}")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> DegradationConfig:
        """Take the known options out of a BasicSR configuration, wherever they are nested; the rest is not ours.

        Raises:
            ValueError: it has none of them, or one that makes no sense.
        """
        known = {option.name for option in fields(cls)}
        found: dict[str, Any] = {}

        def collect(mapping: Mapping[str, Any]) -> None:
            for name, value in mapping.items():
                if isinstance(value, Mapping):
                    collect(value)
                elif name in known:
                    found[name] = tuple(value) if isinstance(value, list) else value

        collect(options)
        if not found:
            raise ValueError(f"degradation: expected options such as blur_sigma, got {sorted(options)[:8]}")
        defaults = {option.name: option.default for option in fields(cls)}
        return cls(**{name: _like(name, value, defaults[name]) for name, value in found.items()})


def _like(name: str, value: Any, default: Any) -> Any:
    """A value of a file, refused where it has not the kind of the default."""
    if isinstance(default, int):
        if type(value) is not int:
            raise ValueError(f"{name}: expected a whole number, got {value!r}")
        return value
    if isinstance(default, float):
        return float(_number(name, value))
    kinds = isinstance(default[0], str)
    several = "kinds" if kinds else "weights" if "prob" in name else "two numbers"
    if not isinstance(value, tuple) or (several == "two numbers" and len(value) != 2):
        raise ValueError(f"{name}: expected {several}, got {list(value) if isinstance(value, tuple) else value!r}")
    return tuple(map(str, value)) if kinds else tuple(_number(name, one) for one in value)


def _number(name: str, value: Any) -> float:
    if type(value) in (int, float):
        return float(value)
    try:
        return float(value)  # YAML reads 1e-5 as a text
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected a number, got {value!r}") from None

"""A reward that is asked about several slightly changed versions of an image: harder to climb than the bare one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finpercep.models import RewardOutput
from finpercep.models.inputs import as_stored
from finpercep.rewards.protocol import Reward, call_reward, check_higher_better, combined_fingerprint
from finpercep.rewards.resizing import resized
from finpercep.runs.devices import uploaded

NOISES = 4
"""Sizes, or seeds, whose noise is kept."""


class View(NamedTuple):
    """How a batch is changed once: rows and columns of content before it, size after it, seed of its noise."""

    top: int
    left: int
    size: tuple[int, int]
    seed: int


class Change(Protocol):
    """A further change of a view, such as `finpercep.data.RandomJPEG`: images (B,3,h,w) in [0, 1] to those.

    Attributes:
        fingerprint: changes when the result would.
    """

    @property
    def fingerprint(self) -> str: ...
    def __call__(self, images: Tensor, seed: int) -> Tensor: ...


class Augmented(nn.Module):
    """The mean of a reward over random shifts, resizes and faint noise (expectation over transformation).

    A pattern that raises a score without a change that anyone sees often lives on one pixel grid and on single levels;
    shifts, resizes and noise do not keep it, while what is seen stays. It costs `views` calls of the reward. Views are
    of what an 8-bit file of the image would hold (see `as_stored`): noise and resizes would carry what lies between its
    levels past the reward's own rounding. Each view, in this order: mirrored content is added at the borders, `shift`
    pixels in height and in width, randomly before and after the image; the whole is resized (bicubic, anti-aliased) by
    one factor; Gaussian noise is added; `change` is made.
    All images of a batch get the same views, so their scores can be compared; so do those of other batches of that
    size. Athalye et al., "Synthesizing Robust Adversarial Examples" (ICML 2018).

    Args:
        reward: the reward inside.
        views: number of views.
        shift: largest shift, in pixels; 0: none.
        scale: smallest and largest factor; (1, 1): no resizing.
        noise: standard deviation of the noise, in levels of 255; 0: none.
        change: what is done to each view besides; None: nothing.
        seed: of the views. With one seed the same image always scores the same; a loop that climbs the reward draws
            new views with `forward(…, seed=step)`, since it would learn fixed ones.

    Raises:
        ValueError: numbers that are not whole, no view, a negative shift or noise, scales that are not positive and in
            order, or a reward that takes "lr", which no view moves along, or whose lower scores are better.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        views: int = 4,
        shift: int = 7,
        scale: tuple[float, float] = (0.8, 1.2),
        noise: float = 1.0,
        change: Change | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("views", views), ("shift", shift), ("seed", seed)):
            if value % 1 != 0:  # infinite ones and NaN too
                raise ValueError(f"{name}: expected a whole number, got {value}")
        if views < 1:
            raise ValueError(f"views: expected 1 or more, got {views}")
        if shift < 0:
            raise ValueError(f"shift: expected 0 or more pixels, got {shift}")
        if not 0 < scale[0] <= scale[1] < math.inf:
            raise ValueError(f"scale: expected (smallest, largest), both positive, got {scale}")
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise: expected 0 or more levels, got {noise}")
        check_higher_better(reward)
        if "lr" in getattr(reward, "takes", ()):
            raise ValueError(
                f'reward: expected one that does not take "lr", which the views do not move along, '
                f"got {type(reward).__name__}; augment the other part and mix the two"
            )
        self.reward = reward
        if hasattr(reward, "has_map"):  # of another it is not known before it answers
            self.has_map = reward.has_map
        # Python's own numbers: those of NumPy with the same values are the same reward.
        self.views, self.shift, self.seed = int(views), int(shift), int(seed)
        self.noise, self.change = float(noise), change
        self.scale = (float(scale[0]), float(scale[1]))
        self._noises: dict[Any, Tensor] = {}  # the oldest first
        self._captured: dict[Any, Tensor] = {}

    @property
    def takes(self) -> tuple[str, ...]:
        """What the reward inside takes."""
        return tuple(getattr(self.reward, "takes", ()))

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the reward inside and the views."""
        settings: list[Any] = [self.views, self.shift, self.scale, self.noise, self.seed]
        if self.change is not None:
            settings.append(self.change.fingerprint)
        return combined_fingerprint("augmented-v2", self.reward.fingerprint, settings)

    def draw(self, height: int, width: int, seed: int) -> list[View]:
        """The views of images of one size: the same for the same seed, on every machine.

        Raises:
            ValueError: a side that is not longer than `shift`, which mirroring at the borders needs.
        """
        if min(height, width) <= self.shift:
            raise ValueError(f"images: expected sides above shift = {self.shift}, got {height}x{width}")
        generator = torch.Generator().manual_seed(seed)
        views = []
        for _ in range(self.views):
            top, left = torch.randint(self.shift + 1, (2,), generator=generator).tolist()
            share = torch.rand((), dtype=torch.float64, generator=generator).item()
            factor = self.scale[0] + share * (self.scale[1] - self.scale[0])
            size = (max(1, round(factor * (height + self.shift))), max(1, round(factor * (width + self.shift))))
            views.append(View(top, left, size, int(torch.randint(2**62, (), generator=generator))))
        return views

    def forward(self, images: Tensor, *, seed: int | None = None, **context: Any) -> RewardOutput:
        """Mean scores (B,) and mean maps (B,1,H,W), each map moved back onto the image; no map where a view has none.

        Differentiable where the reward inside is; the gradient passes the rounding to 8 bits unchanged.

        Args:
            images: (B,3,H,W), float in [0, 1].
            seed: of the views; None: the one given at first.
            **context: see `Reward.takes`.

        Raises:
            TypeError: integers, which would be taken for images that are white nearly everywhere.
        """
        if not images.is_floating_point():
            raise TypeError(f"images: expected float in [0, 1], got {images.dtype}")
        height, width = images.shape[-2:]
        images = as_stored(images)
        scores, maps = [], []
        for view in self.draw(height, width, self.seed if seed is None else seed):
            output = call_reward(self.reward, self._look(images, view), context)
            scores.append(output.score)
            if isinstance(output.map, Tensor):
                maps.append(self._back(output.map, view, height, width))
        mean_map = torch.stack(maps).mean(0) if len(maps) == len(scores) else None
        return RewardOutput(torch.stack(scores).mean(0), mean_map)

    def _look(self, images: Tensor, view: View) -> Tensor:
        """The images (B,3,*view.size) of one view."""
        if self.shift:
            border = (view.left, self.shift - view.left, view.top, self.shift - view.top)
            images = F.pad(images, border, mode="reflect")
        images = resized(images, view.size, "bicubic").clamp(0, 1)
        if self.noise:
            images = (images + self._noise_of(view, images) * (self.noise / 255)).clamp(0, 1)
        return images if self.change is None else self.change(images, view.seed)

    @torch.compiler.disable  # a cache is none of a compiled graph's business
    def _noise_of(self, view: View, images: Tensor) -> Tensor:
        """Noise (1,3,*view.size) of a view in the type of the images, kept on their device.

        Drawn on the CPU, so that every device has the same; one for the batch, so that its images compare.

        Raises:
            RuntimeError: a CUDA graph is being captured, and the noise is not there: the graph would copy it, at each
                replay, from memory that is gone.
        """
        device = images.device
        # Of each stream its own: on another one the copy may not have come yet.
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        key = (view.seed, view.size, images.dtype, device, stream)
        captures = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        found = self._captured.get(key, self._noises.get(key))
        if captures and found is None:
            raise RuntimeError(
                f"images: expected a size and a seed that were called before a CUDA graph is captured, got {view.size}"
            )
        if captures and found is not None:
            self._captured[key] = found  # a graph reads it for as long as it is replayed
        if found is None:
            noise = torch.randn(1, 3, *view.size, generator=torch.Generator().manual_seed(view.seed))
            found = self._noises[key] = uploaded(noise.to(images.dtype), device)
            while len(self._noises) > NOISES * self.views:
                self._noises.pop(next(iter(self._noises)))
        return found

    def _back(self, degradation: Tensor, view: View, height: int, width: int) -> Tensor:
        """A view's map (B,1,h,w) on the pixels of the image: (B,1,H,W)."""
        whole = resized(degradation, (height + self.shift, width + self.shift), "bilinear")
        return whole[..., view.top : view.top + height, view.left : view.left + width]

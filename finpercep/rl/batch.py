"""What a generator is given: low-resolution images, with the photos behind them where there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

LATENT = "latent_lr"
"""Of a batch's extras: latents of the enlarged low-resolution images."""
TEXTS = ("prompt_embeds", "pooled_prompt_embeds")
"""Of a batch's extras: embeddings of the images' texts."""


@dataclass(frozen=True)
class Batch:
    """Low-resolution images and what belongs to them, sample by sample.

    Attributes:
        lr: (B,3,h,w), float in [0, 1].
        ids: (B,) int64 on the CPU; names the low-quality image. Groups are formed by it, never by the prompt.
        photo: (B,3,H,W), float in [0, 1], H/h = W/w a whole number; None where only low-resolution images are known.
        extras: name -> (B, ...), what is known of each image besides: embeddings of its text (`TEXTS`), latents of the
            enlarged low-resolution image (`LATENT`), and results (B,3,H,W) of it ("chosen", "rejected").
        has_photo: (B,) bool, where some rows have no photo, whose place in `photo` is 0; None where all have one, or
            none has.
        prompt: the text of all images, for rewards that take one.
        aligned: (B,) bool, like ids on the CPU: whether photo and image lie on the same pixels (`data.Scene.aligned`),
            which only measures of faults ask; None where all do.

    Raises:
        ValueError: sides or lengths that do not fit each other.
    """

    lr: Tensor
    ids: Tensor
    photo: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    has_photo: Tensor | None = None
    prompt: str = ""
    aligned: Tensor | None = None

    def __post_init__(self) -> None:
        if self.lr.dim() != 4 or self.lr.shape[1] != 3:
            raise ValueError(f"lr: expected (B,3,h,w), got {tuple(self.lr.shape)}")
        if self.ids.shape != self.lr.shape[:1]:
            raise ValueError(f"ids: expected ({len(self.lr)},), one for each image, got {tuple(self.ids.shape)}")
        if self.photo is not None:
            scale_of(self.lr.shape, self.photo.shape)
        for name, tensor in self.extras.items():
            if len(tensor) != len(self.lr):
                raise ValueError(
                    f"extras: expected {len(self.lr)} rows of {name}, one for each image, got {len(tensor)}"
                )

    def __len__(self) -> int:
        return len(self.lr)

    def __getitem__(self, part: slice | Tensor) -> Batch:
        """Samples of a slice, or those whose numbers a tensor has."""
        on_cpu = part.cpu() if isinstance(part, Tensor) else part
        return self._map(lambda tensor: tensor[part], lambda tensor: tensor[on_cpu])

    def repeat(self, times: int) -> Batch:
        """Every sample `times` times, copies side by side: the groups of that size."""

        def repeated(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(times, 0)

        return self._map(repeated, repeated)

    def to(self, device: torch.device) -> Batch:
        """The same on `device`; ids stay on the CPU, where seeds are made of them."""
        return self._map(lambda tensor: tensor.to(device), lambda tensor: tensor)

    def with_extras(self, extras: Mapping[str, Tensor]) -> Batch:
        """The same with more `extras`."""
        return replace(self, extras={**self.extras, **extras})

    def _map(self, change: Callable[[Tensor], Tensor], on_cpu: Callable[[Tensor], Tensor]) -> Batch:
        """`change` of all tensors but those that stay on the CPU, which are changed by `on_cpu`."""
        photo = None if self.photo is None else change(self.photo)
        extras = {name: change(tensor) for name, tensor in self.extras.items()}
        has_photo = None if self.has_photo is None else change(self.has_photo)
        aligned = None if self.aligned is None else on_cpu(self.aligned)
        return Batch(change(self.lr), on_cpu(self.ids), photo, extras, has_photo, self.prompt, aligned)


def scale_of(lr: Sequence[int], photo: Sequence[int], names: str = "lr, photo") -> int:
    """How many times larger photos (N,…,H,W) are than their low-resolution images (N,…,h,w), by their shapes.

    Args:
        lr, photo: the shapes; of single images N is the channels.
        names: of both, for the message.

    Raises:
        ValueError: the sides have no common whole factor, or N differs.
    """
    (h, w), (height, width) = lr[-2:], photo[-2:]
    scale = height // max(h, 1)
    if lr[0] != photo[0] or scale < 1 or (h * scale, w * scale) != (height, width):
        raise ValueError(
            f"{names}: expected a photo whose sides are the same whole multiple of the low-resolution image's, got "
            f"{tuple(photo)} for {tuple(lr)}"
        )
    return scale

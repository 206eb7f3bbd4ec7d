"""One reward on one device: groups of decoded images of one size become outcomes on the CPU."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finpercep.engine.batches import halving, most_images, padded_count, padded_to
from finpercep.engine.graphs import Graphs
from finpercep.models.evaluation_view import evaluation_view
from finpercep.models.output import RewardOutput
from finpercep.models.reward_model import RewardModel
from finpercep.models.scoring import as_float, score_tiled, tile_side
from finpercep.rewards.protocol import Reward, call_reward

__all__ = ["COMPILE", "DTYPES", "Executor", "Outcome"]

COMPILE = (None, "default", "reduce-overhead", "max-autotune")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Outcome(NamedTuple):
    """Score () and map (1,H,W) of one image, float32 on the CPU; the map is None of a reward without one."""

    score: Tensor
    map: Tensor | None


class Executor:
    """Calls a reward; see `Scorer` for the arguments."""

    def __init__(
        self,
        reward: Reward,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        compile: str | None,
        graphs: bool,
        deterministic: bool,
        batch_size: int,
        tile: int | None,
    ) -> None:
        self.device, self.deterministic, self.batch_size = device, deterministic, batch_size
        self.reward = _placed(reward, device, dtype)
        self.dtype = next((p.dtype for p in _floats(self.reward)), torch.float32)
        self._view: Any = evaluation_view(self.reward) if isinstance(self.reward, nn.Module) else self.reward
        self.side = tile_side(self._view, tile) if isinstance(self._view, RewardModel) else None
        self._call: Any = self._view
        if compile is not None:
            self._call = torch.compile(self._view, dynamic=True, mode=None if compile == "default" else compile)
        self._compiles = threading.Lock() if compile is not None else None  # until the first call is through
        if graphs:
            self._call = Graphs(self._call)
        self.padded = graphs or (deterministic and device.type == "cuda")
        self._bytes_per_pixel = 0.0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def capacity(self, height: int, width: int) -> int:
        """How many images of a size go through together."""
        if self.side is not None and max(height, width) > self.side:
            return 1
        if self.device.type != "cuda":
            return 1 if self.deterministic else most_images(height * width, self.batch_size)
        free = torch.cuda.mem_get_info(self.device)[0]
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return most_images(height * width, self.batch_size, free=free + unused, bytes_per_pixel=self._bytes_per_pixel)

    @torch.no_grad()
    def batch(self, images: Tensor, context: Mapping[str, Any]) -> RewardOutput:
        """The reward of a batch (B,3,H,W) on its device, as float in [0, 1] or uint8; does not wait for a GPU."""
        images = as_float(images.to(self.device, non_blocking=True), self.dtype)
        count = len(images)
        if self.padded and not context:
            images = padded_to(images, padded_count(count, max(count, self.batch_size), full=self.deterministic))
        with self._kernels():
            output = self._answer(images, context)
        found = output.map
        return RewardOutput(output.score[:count], found[:count] if isinstance(found, Tensor) else None)

    @torch.no_grad()
    def outcomes(
        self, images: Sequence[Tensor], contexts: Sequence[Mapping[str, Any]], after: torch.cuda.Event | None = None
    ) -> list[Outcome]:
        """Outcomes of some images (3,H,W) of one size, in their order; waits for the device.

        Args:
            after: when images on a GPU are made; None is when they were given.

        Raises:
            Exception: what the reward raises, out of memory for a single image included.
        """
        pairs = list(zip(images, contexts, strict=True))
        return halving(partial(self._together, after=after), pairs, self._shrink)

    def _together(
        self, pairs: Sequence[tuple[Tensor, Mapping[str, Any]]], after: torch.cuda.Event | None
    ) -> list[Outcome]:
        images = [image for image, _ in pairs]
        if self.side is not None and max(images[0].shape[-2:]) > self.side:
            return [Outcome(*score_tiled(self._view, image, self.side)) for image in images]
        contexts = [context for _, context in pairs]
        if self._stream is not None:
            return self._on_stream(images, contexts, after)
        output = self.batch(_stacked(images), _joined(contexts))
        return _split(output.score.float().cpu(), output.map.float().cpu() if isinstance(output.map, Tensor) else None)

    def _on_stream(
        self, images: Sequence[Tensor], contexts: Sequence[Mapping[str, Any]], after: torch.cuda.Event | None
    ) -> list[Outcome]:
        """Upload, compute and download on a stream of our own, and wait for that alone."""
        assert self._stream is not None
        if after is not None:
            self._stream.wait_event(after)
        before = torch.cuda.memory_allocated(self.device)
        if not self._bytes_per_pixel:
            torch.cuda.reset_peak_memory_stats(self.device)
        with torch.cuda.stream(self._stream):
            stacked = _stacked(images)
            stacked = stacked if stacked.is_cuda else stacked.pin_memory()
            output = self.batch(stacked, _joined(contexts))
            score = output.score.float().to("cpu", non_blocking=True)
            found = output.map.float().to("cpu", non_blocking=True) if isinstance(output.map, Tensor) else None
            done = self._stream.record_event()
        if not self._bytes_per_pixel:
            self._bytes_per_pixel = (torch.cuda.max_memory_allocated(self.device) - before) / stacked[:, 0].numel()
        done.synchronize()
        return _split(score, found)

    def _shrink(self, count: int) -> None:
        self.batch_size = max(1, min(self.batch_size, count))

    def _kernels(self) -> AbstractContextManager[Any]:
        if self.device.type != "cuda" or not self.deterministic:
            return nullcontext()
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)

    def _answer(self, images: Tensor, context: Mapping[str, Any]) -> RewardOutput:
        compiles = self._compiles
        with compiles or nullcontext():
            answer = call_reward(self._call, images, context) if context else self._call(images)
        self._compiles = None
        return answer


def _floats(reward: Any) -> list[Tensor]:
    parameters = reward.parameters() if isinstance(reward, nn.Module) else ()
    return [p for p in parameters if p.is_floating_point()]


def _placed(reward: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The reward on its device in its type: itself where it is so already, else a copy that no one else trains."""
    if not isinstance(reward, nn.Module):
        if dtype is not None:
            raise ValueError(f"dtype: expected none for a reward that is no module, got {dtype}")
        return reward
    if all(p.device == device and p.dtype == (dtype or p.dtype) for p in _floats(reward)):
        return reward
    return copy.deepcopy(reward).to(device=device, dtype=dtype)


def _joined(contexts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What belongs to each image as what belongs to the batch: tensors stacked, the rest in lists."""
    return {
        name: torch.stack([c[name] for c in contexts])
        if isinstance(contexts[0][name], Tensor)
        else [c[name] for c in contexts]
        for name in contexts[0]
    }


def _stacked(images: Sequence[Tensor]) -> Tensor:
    return images[0][None] if len(images) == 1 else torch.stack(list(images))


def _split(scores: Tensor, maps: Tensor | None) -> list[Outcome]:
    return [Outcome(score, None if maps is None else maps[i]) for i, score in enumerate(scores)]

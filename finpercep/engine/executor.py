"""One reward on one device: groups of decoded images of one size become outcomes on the CPU."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finpercep.engine.batches import halving, is_out_of_memory, most_images, padded_count, padded_to, unpadded_count
from finpercep.engine.graphs import Graphs
from finpercep.engine.streams import lent_streams
from finpercep.models.evaluation_view import lasting_view
from finpercep.models.output import RewardOutput
from finpercep.models.precision import is_of, without_autocast
from finpercep.models.reward_model import RewardModel
from finpercep.models.scoring import as_float, score_tiled, tile_side
from finpercep.rewards.protocol import Reward, call_reward, checked

__all__ = ["COMPILE", "Executor", "Outcome"]

COMPILE = (None, "default", "reduce-overhead", "max-autotune")


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
        self._view: Any = lasting_view(self.reward) if isinstance(self.reward, nn.Module) else self.reward
        if tile is not None and not isinstance(self._view, RewardModel):
            raise ValueError(f"tile: expected none for a reward that is no RewardModel, got {tile}")
        self.side = tile_side(self._view, tile) if isinstance(self._view, RewardModel) else None
        mode, own_graphs = compiled_as(compile, device)
        graphs = graphs or own_graphs
        streams = lent_streams(self, device, 3) if device.type == "cuda" else []
        self._call: Any = self._view if mode is None else torch.compile(self._view, dynamic=True, mode=mode)
        self._compiles = threading.Lock() if compile is not None else None  # until the first call is through
        # For images without context. What is captured is on a stream of its own: another thread's work would join it.
        self._alone: Any = (
            Graphs(self._call, stream=lambda own: lent_streams(own, device, 1)[0]) if graphs else self._call
        )
        self.padded = graphs or (deterministic and device.type == "cuda")
        self._bytes_per_pixel, self._measured = 0.0, 0  # what a batch of so many pixels took
        self._tight = False  # whether that is what bounds batches
        self._most_pixels = sys.maxsize  # of a batch: there was no memory for more
        self._launching = threading.RLock()  # two batches that are launched at once would need memory for both
        self._streams = tuple(streams) or None  # uploads, computation, downloads

    def after_fork(self) -> None:
        """In a forked process: whoever compiles in the other one is not here to give the lock back."""
        if self._compiles is not None:
            self._compiles = threading.Lock()

    def capacity(self, height: int, width: int) -> int:
        """How many images of a size go through together."""
        if self._tiles(height, width):
            return 1
        most = max(1, min(self.batch_size, self._most_pixels // (height * width)))
        if self.device.type != "cuda":
            return 1 if self.deterministic else most_images(height * width, most)
        if self.deterministic:
            return self.batch_size  # fewer are padded to it
        free = torch.cuda.mem_get_info(self.device)[0]
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        found = most_images(height * width, most, free=free + unused, bytes_per_pixel=self._bytes_per_pixel)
        self._tight = found < most
        return unpadded_count(found, self.batch_size) if self.padded else found  # memory is for what goes through

    def _tiles(self, height: int, width: int) -> bool:
        return self.side is not None and max(height, width) > self.side

    def _padded(self, count: int) -> int:
        """The images of a batch that `count` go through in."""
        return padded_count(count, max(count, self.batch_size), full=self.deterministic) if self.padded else count

    @torch.no_grad()
    def batch(self, images: Tensor, context: Mapping[str, Any]) -> RewardOutput:
        """The reward of a batch (B,3,H,W) on its device, as float in [0, 1] or uint8; does not wait for a GPU.

        Raises:
            TypeError: a batch of other numbers.
        """
        images = as_float(images.to(self.device, non_blocking=self.device.type == "cuda"), self.dtype)
        count = len(images)
        if not context:
            images = padded_to(images, self._padded(count))
        with self._kernels():
            output = self._answer(images, context)
        return RewardOutput(output.score[:count], output.map[:count] if isinstance(output.map, Tensor) else None)

    @torch.no_grad()
    def outcomes(
        self, images: Sequence[Tensor], contexts: Sequence[Mapping[str, Any]], after: Sequence[torch.cuda.Event] = ()
    ) -> list[Outcome]:
        """Outcomes of some images (3,H,W) of one size, in their order; waits for the device.

        Args:
            after: when images on a GPU are made; nothing is when they were given.

        Raises:
            MemoryError: deterministic mode has no memory for the batch that it pads all others to.
            Exception: what the reward raises, out of memory for a single image included.
        """
        pairs = list(zip(images, contexts, strict=True))
        height, width = images[0].shape[-2:]
        is_full = self.deterministic and self.padded and not contexts[0]
        if not is_full or self._tiles(height, width):
            return halving(partial(self._together, after=after), pairs, partial(self._shrink, height * width))
        try:  # halves would be padded to the same size, and other sizes have other bits
            return self._together(pairs, after)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # outside of `except`: the error holds the tensors of the call that failed
        raise MemoryError(
            f"batch_size: expected one whose batches fit in memory, got {self.batch_size} images of {height} x "
            f"{width}, to which deterministic mode pads every batch; lower it"
        )

    def _together(
        self, pairs: Sequence[tuple[Tensor, Mapping[str, Any]]], after: Sequence[torch.cuda.Event]
    ) -> list[Outcome]:
        images = [image for image, _ in pairs]
        if self.side is not None and self._tiles(*images[0].shape[-2:]):
            with self.own_stream(after), self._kernels():
                return [Outcome(*score_tiled(self._view, image, self.side)) for image in images]
        contexts = [context for _, context in pairs]
        if self._streams is not None:
            return self._on_streams(images, contexts, after)
        output = self.batch(_stacked(images), _joined(contexts))
        return _split(output.score.float().cpu(), output.map.float().cpu() if isinstance(output.map, Tensor) else None)

    def _on_streams(
        self, images: Sequence[Tensor], contexts: Sequence[Mapping[str, Any]], after: Sequence[torch.cuda.Event]
    ) -> list[Outcome]:
        """Upload, compute and download on streams of our own, beside the batches before and behind; waits for this one.

        Whatever one stream made and another reads stays referenced until then, and so is what the caller gave.
        """
        assert self._streams is not None
        uploads, compute, downloads = self._streams
        given = None
        if not images[0].is_cuda:
            pinned = _stacked(images).pin_memory()
            with torch.cuda.stream(uploads):
                given = pinned.to(self.device, non_blocking=True)
                uploaded = uploads.record_event()
        with self.own_stream(after):
            if given is not None:
                compute.wait_event(uploaded)
            count = len(images) if contexts[0] else self._padded(len(images))
            with self._measuring(count * images[0][0].numel()):
                output = self.batch(_stacked(images) if given is None else given, _joined(contexts))
            computed = compute.record_event()
        with torch.cuda.stream(downloads):
            downloads.wait_event(computed)
            score = output.score.float().to("cpu", non_blocking=True)
            found = output.map.float().to("cpu", non_blocking=True) if isinstance(output.map, Tensor) else None
            downloaded = downloads.record_event()
        downloaded.synchronize()
        # copies: what came is pinned, of the whole batch, and for as long as anyone keeps one of its maps
        return _split(score.clone(), None if found is None else [one.clone() for one in found])

    @contextmanager
    def own_stream(self, after: Sequence[torch.cuda.Event] = ()) -> Iterator[None]:
        """On a GPU: compute on our stream, behind `after`, launched by one thread at a time. Nothing on a CPU."""
        if self._streams is None:
            yield
            return
        compute = self._streams[1]
        with self._launching, torch.cuda.stream(compute):
            for event in after:
                compute.wait_event(event)
            yield

    @contextmanager
    def _measuring(self, pixels: int) -> Iterator[None]:
        """See what a batch takes, if it is much larger than those before: small ones are mostly what all have.

        Where that bounds batches, all but small ones are looked at: what others allocate meanwhile counts as ours, so
        the least holds. The replay of a graph allocates nothing and says nothing.
        """
        again = self._tight and 2 * pixels >= self._measured and not isinstance(self._alone, Graphs)
        if pixels <= 2 * self._measured and not again:
            yield
            return
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        yield
        found = (torch.cuda.max_memory_allocated(self.device) - before) / pixels
        self._bytes_per_pixel = min(found, self._bytes_per_pixel or found)
        self._measured = max(pixels, self._measured)

    def _shrink(self, pixels: int, count: int) -> None:
        """There was no memory for more than `count` images of so many pixels; smaller ones may still be more."""
        self._most_pixels = min(self._most_pixels, count * pixels)

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        """What a caller has set for its own thread alone, autocast, does not count: others score too.

        On a GPU: its device is the current one, and deterministic mode takes cuDNN's deterministic algorithms.
        """
        with ExitStack() as inside:
            inside.enter_context(without_autocast(self.device))
            if self.device.type == "cuda":
                inside.enter_context(torch.cuda.device(self.device))
                if self.deterministic:
                    inside.enter_context(self._launching)
                    inside.enter_context(_deterministic_cudnn())
            yield

    def _answer(self, images: Tensor, context: Mapping[str, Any]) -> RewardOutput:
        compiles = self._compiles
        with compiles or nullcontext():
            answer = call_reward(self._call, images, context) if context else self._alone(images)
        self._compiles = None
        return checked(answer, images, self._call)


def compiled_as(compile: str | None, device: torch.device) -> tuple[str | None, bool]:
    """The mode of `torch.compile` (None: not at all), and whether graphs of ours take the place of inductor's.

    On a GPU they do: inductor's belong to the thread that made them first (torch 2.11), and here threads take turns.
    """
    modes = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}
    if device.type != "cuda" or compile not in modes:
        return compile, False
    return modes[compile], True


@contextmanager
def _deterministic_cudnn() -> Iterator[None]:
    """These two settings and no other: `torch.backends.cudnn.flags` would set TF32 as well."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _floats(reward: Any) -> list[Tensor]:
    parameters = reward.parameters() if isinstance(reward, nn.Module) else ()
    return [p for p in parameters if p.is_floating_point()]


def _placed(reward: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The reward on its device in its type: itself where it is so already, else a copy that no one else trains."""
    if not isinstance(reward, nn.Module):
        if dtype is not None:
            raise ValueError(f"dtype: expected none for a reward that is no module, got {dtype}")
        return reward
    if all(p.device == device for p in _floats(reward)) and (dtype is None or is_of(reward, dtype)):
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


def _split(scores: Tensor, maps: Tensor | Sequence[Tensor] | None) -> list[Outcome]:
    return [Outcome(score, None if maps is None else maps[i]) for i, score in enumerate(scores)]

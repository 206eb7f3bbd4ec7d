"""Rewards of ours in the form that other trainers call: flow_grpo, Flow-Factory, verl-omni."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finpercep.io.images import to_tensor
from finpercep.models import RewardOutput
from finpercep.rewards.load import load_reward
from finpercep.rewards.protocol import Reward, call_reward, check_higher_better


def flow_grpo(device: str = "cpu", *, reward: str | Path | Reward = "finpercep-tiny") -> Callable[..., Any]:
    """A reward function of flow_grpo's kind: put ``"finpercep": flow_grpo`` into `score_functions` in its rewards.py.

    Args:
        device: where to score.
        reward: what `load_reward` takes, or a reward.

    Returns:
        `score(images, prompts, metadata) -> (scores (B,), info)`, where images are a tensor (B,3,H,W) in [0, 1] or a
        uint8 array (B,H,W,3).

    Raises:
        ValueError: see `load_reward`; no reward, or one whose lower scores are better.
    """
    loaded = load_reward(reward, device=device) if isinstance(reward, (str, Path)) else reward
    if not callable(loaded):
        raise ValueError(f"reward: expected a reward or its name, got {type(loaded).__name__}")
    check_higher_better(loaded)
    # A hash of all weights; a reward given may change.
    known = loaded.fingerprint if isinstance(reward, (str, Path)) else None

    def score(images: Any, prompts: Sequence[str], metadata: Sequence[Any]) -> tuple[Tensor, dict[str, Any]]:
        output = _score(loaded, _batch(images, device), {"prompts": prompts, "metadata": metadata})
        return output.score, {"fingerprint": known or loaded.fingerprint}

    return score


class FlowFactoryOutput(NamedTuple):
    """What Flow-Factory reads of a reward's answer: `rewards` (B,) and `extra_info`."""

    rewards: Tensor
    extra_info: dict[str, Any]


def _pointwise() -> Any:
    """Flow-Factory's base class where it is installed: it calls rewards of no other class, and says nothing."""
    try:
        from flow_factory.rewards.abc import PointwiseRewardModel
    except ImportError:
        return object
    return PointwiseRewardModel


class FlowFactoryReward(_pointwise()):  # type: ignore[misc]
    """A pointwise reward of Flow-Factory's kind: give its class path as `reward_model` in the YAML of a run.

    Args:
        config: Flow-Factory's RewardArguments; `device` is read, and `reward`, what `load_reward` takes, if it is set.
        accelerator: Flow-Factory's Accelerator; its device is taken where the configuration names CUDA in general.
    """

    required_fields = ("image",)
    use_tensor_inputs = True

    def __init__(self, config: Any = None, accelerator: Any = None) -> None:
        device = torch.device(getattr(config, "device", None) or "cpu")
        if accelerator is not None and device == torch.device("cuda"):
            device = accelerator.device
        self.config, self.accelerator, self.device = config, accelerator, device
        self.dtype = getattr(config, "dtype", torch.float32)
        self.model: Any = load_reward(getattr(config, "reward", None) or "finpercep-tiny", device=str(device))
        self.fingerprint = self.model.fingerprint  # once: it is a hash of all weights

    def to(self, device: torch.device) -> FlowFactoryReward:
        """Move the reward inside; Flow-Factory does between sampling and training."""
        if isinstance(self.model, nn.Module):
            self.model.to(device)
        self.device = torch.device(device)
        return self

    def __call__(self, prompt: Sequence[str] | None = None, image: Any = None, video: Any = None) -> FlowFactoryOutput:
        """Scores of a list of tensors (3,H,W) in [0, 1], of any sizes, or of PIL images, each with its prompt.

        It names what it takes: of a function with `**`, Flow-Factory would gather every field of its samples.

        Raises:
            ValueError: no image, another number of prompts, or batches in place of images.
        """
        if image is None or not len(image):
            raise ValueError("image: expected a list of images, got none")
        if prompt is not None and len(prompt) != len(image):
            raise ValueError(f"prompt: expected {len(image)}, one for each image, got {len(prompt)}")
        prompts = [None] * len(image) if prompt is None else [[one] for one in prompt]
        scores = [
            _score(self.model, _batch(one, str(self.device)), {"prompts": text}).score
            for one, text in zip(image, prompts, strict=True)
        ]
        if any(len(one) != 1 for one in scores):
            raise ValueError(f"image: expected images (3,H,W), got a batch of {max(map(len, scores))} as one")
        return FlowFactoryOutput(torch.cat(scores), {"fingerprint": self.fingerprint})


def compute_score(
    data_source: str,
    solution_image: Any,
    ground_truth: Any = None,
    extra_info: Any = None,
    *,
    reward: str = "finpercep-tiny",
    device: str = "cpu",
    **_: Any,
) -> dict[str, Any]:
    """A scorer of verl-omni's kind: {"score": float} of a uint8 image (3,H,W), or a list of them for a batch (B,3,H,W).

    Args:
        data_source, ground_truth, extra_info: not used.
        reward: what `load_reward` takes; loaded once.
    """
    scores = _score(_loaded(reward, device), _batch(solution_image, device), {}).score.tolist()
    return {"score": scores if getattr(solution_image, "ndim", 3) == 4 else scores[0]}


@lru_cache(maxsize=4)
def _loaded(reward: str, device: str) -> Reward:
    return load_reward(reward, device=device)


@torch.no_grad()
def _score(reward: Reward, images: Tensor, context: dict[str, Any]) -> RewardOutput:
    return call_reward(reward, images, {name: value for name, value in context.items() if value is not None})


def _batch(images: Any, device: str) -> Tensor:
    """(B,3,H,W), float32 in [0, 1], of a batch or one image. Float batches are not checked, so that no GPU waits."""
    if isinstance(images, Tensor) and images.dim() == 4 and images.is_floating_point():
        return images.to(device, torch.float32)
    several = getattr(images, "ndim", 0) == 4
    batch = torch.stack([to_tensor(image) for image in images]) if several else to_tensor(images)[None]
    batch = batch.to(device)
    return batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()

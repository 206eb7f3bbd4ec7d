"""``python -m benchmarks.reward_step``: one training step of the paper's model, with random weights of its layout.

Triplets of noise at 224², finpercep-vit-l-14 with a full decoder and the literal Eq. 7, and a frozen CLIP vision tower
of the same size that stands for CLIP-IQA. Prints, as JSON, the time of a step, the share of it that is not spent in the
two encoders, and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

import torch
from torch import nn

from finpercep.data.triplets import Triplet
from finpercep.models import RewardModel, RewardOutput
from finpercep.models.presets import PRESETS
from finpercep.runs.machine import device_name
from finpercep.runs.ranks import Ranks
from finpercep.training import RewardTrainConfig, total_loss
from finpercep.training.build import parameter_groups
from finpercep.training.checkpointing import checkpoint_layers
from finpercep.training.objective import Objective

SIDE = 224
CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": SIDE,
    "patch_size": 14,
}


class Base(nn.Module):
    """As much work as CLIP-IQA: an encoder without taps before the last layer, and one number an image."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor) -> RewardOutput:
        return RewardOutput(self.encoder(images)[-1].mean((1, 2, 3)).sigmoid(), None)


def step(objective: Objective, optimizer: torch.optim.Optimizer, batch: Triplet, config: RewardTrainConfig) -> None:
    optimizer.zero_grad(set_to_none=True)
    total_loss(objective.terms(batch, 0), config.loss).backward()
    optimizer.step()


def encoders(model: RewardModel, base: Base, images: torch.Tensor, precision: str) -> None:
    """What a step does in the encoders alone: forward and backward of all images, and forward of the photos."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        features = model.encoder(images)
        with torch.no_grad():
            base.encoder(images[: len(images) // 3])
    torch.autograd.backward([f.float().mean() for f in features])


def timed(work: Any, device: torch.device) -> float:
    """Seconds of the clock on a GPU; of one thread's work on a CPU, which other programs lengthen less."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=1, help="steps that are timed; the best counts")
    parser.add_argument("--layers", type=int, default=24, help="fewer, to try this program")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device, taps = torch.device(args.device), [t for t in PRESETS["finpercep-vit-l-14"].taps if t <= args.layers]
    encoder = {"type": "vit", "config": {**CLIP_L, "num_hidden_layers": args.layers}, "taps": taps or [args.layers]}
    model = RewardModel(encoder, {"width": "full"}, {"gate": "degradation"}).to(device).train()
    if args.checkpointing:
        checkpoint_layers(model.encoder)
    base = Base(RewardModel(encoder).encoder).to(device).eval().requires_grad_(False)
    config = RewardTrainConfig(data="", out="", batch=args.batch, precision=args.precision)
    objective = Objective(config, model, base, Ranks(device), device)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(parameter_groups(model, config))
    draw = torch.Generator().manual_seed(0)
    photo, fault = (torch.rand(args.batch, 3, SIDE, SIDE, generator=draw) for _ in range(2))
    target = torch.rand(args.batch, 1, SIDE, SIDE, generator=draw)
    parts = (photo, 0.5 * photo + 0.5 * fault, fault, target, target, torch.ones(args.batch, dtype=torch.bool))
    batch = Triplet(*(part.to(device) for part in parts))
    images = torch.cat(batch[:3])
    whole = min(timed(lambda: step(objective, optimizer, batch, config), device) for _ in range(args.rounds))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    inside = min(timed(lambda: encoders(model, base, images, args.precision), device) for _ in range(args.rounds))
    figures = {
        **vars(args),
        "machine": device_name(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(whole, 2),
        "share_outside_encoders": round(1 - inside / whole, 3),
        "peak_gib": round(peak, 2),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

"""Training on the device: two steps of each loop, and whether a run that was stopped ends as one that was not.

On a CPU it ends with the same bits. On a GPU backward passes add in an order of their own (atomics), so the difference
is held against how far training has moved the weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from finpercep import RewardModel
from finpercep.data.triplets import TripletConfig
from finpercep.io.pictures import as_picture, save_image
from finpercep.rl import load_generator
from finpercep.rl.config import AlgorithmConfig, RLConfig, StageConfig
from finpercep.rl.dpo import DPOConfig
from finpercep.rl.grpo import GRPOConfig
from finpercep.rl.loop import train as train_generator
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.nft import NFTConfig
from finpercep.rl.refl import ReFLConfig
from finpercep.training.climbing import ClimbConfig
from finpercep.training.config import RewardTrainConfig
from finpercep.training.trainer import RewardTrainer
from finpercep.training.trainer import train as train_model

ALGORITHMS: Mapping[str, AlgorithmConfig] = {
    "grpo": GRPOConfig(group_size=4, map_weight=0.5, beta=0.01),
    "refl": ReFLConfig(),
    "nft": NFTConfig(group_size=4),
    "dpo": DPOConfig(group_size=4),
}
APART = {"cpu": 0.0, "cuda": 0.05}
"""Largest distance between the weights of both runs, as a share of the distance from where they began."""
VIT = {
    "type": "vit",
    "config": {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 16,
        "image_size": 64,
    },
    "taps": [1, 2],
}


def reinforce(device: str, algorithm: str) -> dict[str, Any]:
    """The embedded generator by an algorithm; then again from the checkpoint before the last."""
    with _photos() as folder:
        config = RLConfig(
            (str(folder),),
            str(folder / "run"),
            algorithm=ALGORITHMS[algorithm],
            stages=(StageConfig(steps=2, lr=1e-3),),
            monitors=MonitorConfig(judge=""),
            batch=2,
            side=32,
            save_every=1,
            eval_every=9,
            eval_photos=2,
            eval_steps=1,
            device=device,
        )
        before = _weights(load_generator(config.generator))
        whole = _weights(train_generator(config))
        shutil.rmtree(folder / "run" / "checkpoint-2")
        return _compared(before, whole, _weights(train_generator(config)), device)


def reward_model(device: str) -> dict[str, Any]:
    """A small vision transformer with its map: bf16, a moving average, climbed images."""
    with _photos() as folder:
        torch.manual_seed(0)
        model = RewardModel(VIT, {"width": "light"})
        model.save_pretrained(folder / "init")
        config = RewardTrainConfig(
            str(folder),
            str(folder / "whole"),
            init=str(folder / "init"),
            steps=2,
            batch=2,
            lr_encoder=1e-3,
            lr_new=1e-3,
            warmup=1,
            precision="bf16",
            ema=0.5,
            climb=ClimbConfig(climbed=0.5, climb_networks=0.5),
            triplets=TripletConfig(crop=64),
            save_every=1,
            workers=0,
            device=device,
        )
        whole = _weights(train_model(config))
        config = replace(config, out=str(folder / "stopped"))
        trainer = RewardTrainer(config)
        trainer.step(next(trainer.batches()))
        trainer.save()
        return _compared(_weights(model), whole, _weights(train_model(config)), device)


@contextmanager
def _photos() -> Iterator[Path]:
    """A folder with an index: four photos, one of them held out, each with a low-resolution version and a result."""
    with TemporaryDirectory() as name:
        root, draw, lines = Path(name), torch.Generator().manual_seed(0), []
        for number in range(4):
            split = "val" if number == 3 else "train"
            light = torch.rand(1, 3, 12, 12, generator=draw)
            photo = torch.nn.functional.interpolate(light, (96, 96), mode="bicubic").clamp(0, 1)[0]
            small = torch.nn.functional.avg_pool2d(photo, 4)
            faulty = (photo + 0.1 * torch.randn(photo.shape, generator=draw)).clamp(0, 1)
            for file, image in {"gt": photo, "lr": small, "sr": faulty}.items():
                save_image(as_picture(image), root / split / str(number) / f"{file}.png")
            row = {"split": split, "id": str(number), "gt": "gt.png", "lr": "lr.png", "sr": {"noise": "sr.png"}}
            lines.append(json.dumps(row) + "\n")
        (root / "index.jsonl").write_text("".join(lines))
        yield root


def _weights(module: Any) -> Tensor:
    """All weights as one row on the CPU."""
    return torch.cat([value.detach().float().flatten().cpu() for value in module.state_dict().values()])


def _compared(before: Tensor, whole: Tensor, resumed: Tensor, device: str) -> dict[str, Any]:
    moved, apart = float((whole - before).norm()), float((resumed - whole).norm())
    same = moved > 0 and apart <= APART[torch.device(device).type] * moved  # NaN is neither
    return {"moved": moved, "resumed apart": apart, "ok": same}

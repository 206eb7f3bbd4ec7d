"""Shared fixtures: small synthetic photos, and the folder of real super-resolution pairs, where present."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from finpercep.models import RewardModel

REPOSITORY = Path(__file__).resolve().parent.parent

# Whole files and folders that `make check` leaves out, and why; single tests carry their mark themselves.
MARKS = {
    "cuda/test_compiled.py": "compile",
    "cuda/test_emulated.py": "emulator",
    "kernels/test_compile.py": "compile",
    "kernels/test_interpreter.py": "interpreter",
    "benchmarks": "slow",
    "cli/test_make_dataset.py": "training",
    "cli/test_train_reward.py": "training",
    "data/dataset/test_make.py": "training",
    "demo": "training",
    "docs": "slow",
    "evaluation/test_evaluate.py": "training",
    "examples": "training",
    "gpu": "slow",
    "models/test_vit_encoder.py": "slow",
    "ops/test_build.py": "slow",
    "rl": "training",
    "training/test_trainer.py": "training",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        inside = item.path.relative_to(tests) if item.path.is_relative_to(tests) else Path()
        for place in (inside, *inside.parents):
            if (mark := MARKS.get(place.as_posix())) is not None:
                item.add_marker(mark)


def synthetic_photo(height: int = 64, width: int = 96, seed: int = 0) -> torch.Tensor:
    """A float ``(3, H, W)`` picture in [0, 1] with what photos have: smooth light, edges, fine texture."""
    generator = torch.Generator().manual_seed(seed)
    light = torch.rand(1, 3, 4, 4, generator=generator)
    shapes = torch.rand(1, 3, 16, 16, generator=generator).round()
    grain = torch.rand(1, 3, height, width, generator=generator)
    photo = 0.6 * F.interpolate(light, (height, width), mode="bicubic")
    photo = photo + 0.3 * F.interpolate(shapes, (height, width), mode="nearest") + 0.1 * grain
    return photo.clamp(0, 1)[0]


@pytest.fixture(scope="session")
def make_photo() -> Callable[..., torch.Tensor]:
    """`synthetic_photo`, for tests that need several or other sizes."""
    return synthetic_photo


@pytest.fixture
def photo() -> torch.Tensor:
    """Float ``(3, 64, 96)`` in [0, 1]."""
    return synthetic_photo()


@pytest.fixture
def photo_u8() -> torch.Tensor:
    """uint8 ``(3, 64, 96)``."""
    return (synthetic_photo() * 255).round().to(torch.uint8)


@pytest.fixture(scope="session")
def sr_pairs() -> Path:
    """Folder of the sr-pairs data (``train/``, ``val/``); the test is skipped where it is not at hand."""
    folder = Path(os.environ.get("FINPERCEP_SR_PAIRS", REPOSITORY.parent / "shared" / "data" / "sr-pairs"))
    if not (folder / "val").is_dir():
        pytest.skip(f"no sr-pairs data at {folder} (set FINPERCEP_SR_PAIRS)")
    return folder


@pytest.fixture(scope="session")
def small_model() -> RewardModel:
    """A random reward model with a map, small enough for milliseconds per image; the same every time."""
    from finpercep.models import RewardModel

    torch.manual_seed(0)
    return RewardModel({"type": "conv", "channels": [8, 16], "depths": [1, 1]}, {"width": "light"}).eval()


@pytest.fixture(scope="session")
def model_folder(small_model: RewardModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_model`, saved."""
    folder = tmp_path_factory.mktemp("model")
    small_model.save_pretrained(folder)
    return folder


def close_folders(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let folders of a name refuse to be listed, also for root."""
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if os.path.basename(path) == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)

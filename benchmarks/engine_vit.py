"""`python -m benchmarks.engine_vit [--batch 4] [--turns 2]`: a whole ViT-L/14 reward beside its bare encoder, 448².

Random weights, float32, no gradients; encoder and whole take turns. Also the stages behind the encoder alone, which are
so short that the quotient of the two long times does not show them. Writes `benchmarks/results/engine_vit.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.gpu.model import SIDE, reward
from benchmarks.report import RESULTS, device_name


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    model = reward("cpu")[0].float().requires_grad_(False)
    images = torch.rand(arguments.batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    features = model.encoder(images)  # and what is made on first use
    encoder, whole = [], []
    for _ in range(arguments.turns):
        encoder.append(seconds(lambda: model.encoder(images)))
        whole.append(seconds(lambda: model(images)))
    behind = statistics.median(seconds(lambda: _behind(model, features)) for _ in range(5))
    first = statistics.median(encoder)
    found = {
        "device": device_name(),
        "torch": torch.__version__,
        "batch": arguments.batch,
        "side": SIDE,
        "encoder_seconds": encoder,
        "whole_seconds": whole,
        "behind_seconds": behind,
        "whole_of_encoder": statistics.median(b / a for a, b in zip(encoder, whole, strict=True)),
        "whole_of_encoder_by_stages": (first + behind) / first,
    }
    print(json.dumps(found, indent=1))
    (RESULTS / "engine_vit.json").write_text(json.dumps(found, indent=1) + "\n")


def _behind(model: object, features: list[torch.Tensor]) -> torch.Tensor:
    """Decoder, Eq. 7 and head."""
    from finpercep import RewardModel

    assert isinstance(model, RewardModel)
    assert model.decoder is not None
    degradation = model.decoder(features, (SIDE, SIDE))
    return model.head.regress(model.head.pool(features[-1], degradation))


if __name__ == "__main__":
    main()

"""The page of cases: whole, and with the model's own figures."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from finpercep.data import load_scenes, synthetic_source
from finpercep.evaluation.baselines import difference_oracle
from finpercep.evaluation.cases_page import write_cases_page
from finpercep.evaluation.evaluate import evaluate
from finpercep.models import RewardOutput

SIDE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    lines = []
    for number in range(3):
        folder = root / "val" / f"<{number}>"
        folder.mkdir(parents=True)
        photo = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(number))
        for name, image in {"gt": photo, "smooth": synthetic_source("smooth", photo, torch.Generator())}.items():
            picture = Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
            picture.save(folder / f"{name}.png")
        lines.append(json.dumps({"split": "val", "id": f"<{number}>", "gt": "gt.png", "sr": {"smooth": "smooth.png"}}))
    (root / "index.jsonl").write_text("\n".join(lines) + "\n")
    return root


def judge(images: list[Tensor]) -> RewardOutput:
    """Scores by brightness; the map knows the photo, which is the first image of a call."""
    return RewardOutput(torch.stack([image.mean() for image in images]), difference_oracle()(images).map)


def test_the_page_shows_what_was_measured(data: Path, tmp_path: Path) -> None:
    scenes = load_scenes(data, "val")
    evaluation = evaluate(judge, scenes, name="a <judge>")
    text = write_cases_page(tmp_path / "page.html", judge, evaluation, scenes).read_text()
    assert "<h1>a &lt;judge&gt;: cases</h1>" in text
    assert "&lt;0&gt;, smooth" in text
    assert "<0>" not in text
    for pair in evaluation.results:
        assert pair.scores is not None
        assert pair.map is not None
        photo, result, implanted = pair.scores
        assert f"scores: photo {photo:.3f}, result {result:.3f}, implanted {implanted:.3f}" in text
        assert f"AUC {pair.map['auc']:.3f}, CC {pair.map['cc']:.3f}" in text
    assert text.count("<article>") == 5 * 3  # five groups of all three scenes
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)" alt="([^"]+)"', text)
    assert len(pictures) == 5 * 3 * 7
    assert [title for _, title in pictures[:3]] == ["photo", "result", "implanted"]
    assert pictures[3][1] == "map: photo, mean 0.000"  # of the oracle, which has the photo
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0][0]))).size == (SIDE, SIDE)


def test_a_judge_without_maps_has_one_group(data: Path, tmp_path: Path) -> None:
    scenes = load_scenes(data, "val")

    def scorer(images: list[Tensor]) -> RewardOutput:
        return RewardOutput(judge(images).score, None)

    text = write_cases_page(tmp_path / "page.html", scorer, evaluate(scorer, scenes), scenes).read_text()
    assert text.count("<h2>") == 1
    assert text.count("<img") == 3 * 3

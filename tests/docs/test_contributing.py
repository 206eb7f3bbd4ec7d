"""The templates of CONTRIBUTING.md work as they stand, and the places that it names are those that there are."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

from finpercep.data import MakeConfig, load_scenes, make_dataset
from finpercep.data.features.kinds import FEATURE_KINDS
from finpercep.data.kinds import Kind
from finpercep.data.masks.kinds import MASK_KINDS
from finpercep.data.sources.kinds import SOURCE_KINDS, SourceKind
from finpercep.io.pictures import as_picture, save_image
from finpercep.rewards import Mixture, StageReward, load_reward

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
REWARD, SOURCE, MASK, FEATURES = (
    dedent(code) for code in re.findall(r"^ *```python\n(.*?)```", TEXT, flags=re.S | re.M)
)


def test_reward_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    reward: Any = load_reward("my_rewards:Colorfulness")
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    images = torch.cat([red, torch.full((1, 3, 4, 4), 0.5)])
    assert reward(images).score.tolist() == [1.0, 0.0]
    assert StageReward(reward)(images).score.tolist() == [1.0, 0.0]
    assert Mixture({"color": (reward, 2.0)})(images).score.tolist() == [2.0, 0.0]


def test_operator_template_names_files_that_exist() -> None:
    copied = re.findall(r"for file in (.*?); do", TEXT, flags=re.S)[0].replace("\\\n", " ").split()
    assert len(copied) == 7
    assert [name for name in copied if not (ROOT / name).is_file()] == []


def places_of_an_operator() -> set[str]:
    """The files that begin the numbered items, for the operator that is the template."""
    section = TEXT.partition("## Adding an operator")[2].partition("\n## ")[0]
    return {name.replace("foo", "grpo") for name in re.findall(r"^\d+\. `([\w/.]+)`:", section, flags=re.M)}


def test_an_operator_is_at_most_twelve_places() -> None:
    places = places_of_an_operator()
    assert len(places) <= 12
    assert [name for name in places if not (ROOT / name).is_file()] == []


def test_no_other_place_names_the_operator_that_is_the_template() -> None:
    """Of those that are needed: comments apart, and tests beyond those that every operator gets."""
    written_by_a_command = {"tests/budgets.json"}
    only_where_it_applies = {"kernels/_config.py", "tests/kernels/cases.py"}
    searched = [
        *(ROOT / "finpercep" / "ops").glob("*.py"),
        *(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cuh", ".cu")),
        *(ROOT / "kernels").glob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
        *(ROOT / "docs" / "api").glob("ops.md"),
        *(path for name in ("", "cuda", "gpu", "kernels") for path in (ROOT / "tests" / name).glob("*.[pj]*")),
        *(ROOT / name for name in ("setup.py", "Makefile", "pyproject.toml", "docs/kernels.md")),
    ]
    found = {
        str(p.relative_to(ROOT)) for p in searched if re.search(r"grpo_loss|grpo_\w+_kernel|grpo\.h", p.read_text())
    }
    more = {"tests/cuda/emulated_cases.py", "tests/cuda/emulated_offsets.py"}  # of several blocks; of 2^31 elements
    assert found - places_of_an_operator() <= written_by_a_command | only_where_it_applies | more
    assert places_of_an_operator() - found <= {"csrc/include/grpo.h", "tests/ops/test_grpo.py"}


def test_the_places_of_an_algorithm_are_those_that_name_the_template() -> None:
    section = TEXT.partition("## Adding an algorithm")[2].partition("\n## ")[0]
    items = "".join(re.findall(r"^\d+\. .*", section, flags=re.M))
    places = {name.replace("foo", "nft") for name in re.findall(r"`([\w/]+\.(?:py|md))`", items)}
    assert [name for name in places if not (ROOT / name).is_file()] == []
    searched = [*(ROOT / "finpercep").rglob("*.py"), *(ROOT / "docs").rglob("api/rl.md")]
    naming = {str(path.relative_to(ROOT)) for path in searched if re.search(r"\bNFTConfig\b", path.read_text())}
    assert naming <= places
    assert "refl, dpo, grpo or nft" in (ROOT / "finpercep/cli/train_rl.py").read_text()


@pytest.fixture
def with_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of the templates as modules, and their lines in the tables."""
    monkeypatch.syspath_prepend(tmp_path)
    for table, name, kind_of, code in (
        (SOURCE_KINDS, "poster", SourceKind, SOURCE),
        (MASK_KINDS, "stripe", Kind, MASK),
        (FEATURE_KINDS, "colors", Kind, FEATURES),
    ):
        (tmp_path / f"{name}.py").write_text(code)
        line = re.findall(rf'"{name}": (\w*Kind\(.*?\))`', TEXT)[0]
        line = re.sub(r"\{_[A-Z]+\}\.", "", line)
        monkeypatch.setitem(table, name, eval(line, {kind_of.__name__: kind_of}))


CONFIG = MakeConfig(masks_per_image=2, val_share=0.0, feathered=0.0)


@pytest.mark.usefixtures("with_templates")
def test_source_mask_and_feature_templates(photo: torch.Tensor, tmp_path: Path) -> None:
    save_image(as_picture(photo), tmp_path / "photos" / "a.png")
    config = replace(CONFIG, masks=("stripe",), features="colors")
    made = make_dataset(str(tmp_path / "photos"), ["poster:4"], tmp_path / "fgr", config)
    assert sum(entry["rows"] for entry in made.manifest["files"]) == 2
    (scene,) = load_scenes(tmp_path / "fgr", "train")
    assert scene.sources == ["4"]  # as SOURCE names it where no NAME= stands before
    assert (scene.gt // 64 * 64 == scene.sr("4")).all()
    sample = scene.draw(torch.Generator().manual_seed(0))
    assert sample is not None
    assert sample.row["mask_kind"] == "stripe"
    assert sample.row["features"] == "colors"
    assert set(sample.mask.float().mean((0, 2)).tolist()) == {0.0, 255.0}


@pytest.mark.usefixtures("with_templates")
def test_another_value_of_a_source_is_another_data_set(photo: torch.Tensor, tmp_path: Path) -> None:
    """Under the same name too: nothing that the template leaves to whoever copies it."""
    save_image(as_picture(photo), tmp_path / "photos" / "a.png")
    make_dataset(str(tmp_path / "photos"), ["poster:x=4"], tmp_path / "fgr", CONFIG)
    with pytest.raises(ValueError, match=r"sources\.x: was 'poster-1-4', now 'poster-1-64'"):
        make_dataset(str(tmp_path / "photos"), ["poster:x=64"], tmp_path / "fgr", CONFIG)
    for value in ("many", "0", "257"):
        with pytest.raises(ValueError, match=f"^sr: expected poster:LEVELS with 2 to 256 levels, got '{value}'$"):
            make_dataset(str(tmp_path / "photos"), [f"poster:x={value}"], tmp_path / "other", CONFIG)
    assert not (tmp_path / "other").exists()

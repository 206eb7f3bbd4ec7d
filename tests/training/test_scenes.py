import dataclasses
import math

import pytest
import torch
from PIL import Image

from finpercep.data.triplets import TripletConfig
from finpercep.training.config import RewardTrainConfig, check_folders
from finpercep.training.scenes import training_scenes, with_steps
from tests.data.conftest import write_scenes
from tests.data.fgr import make


@pytest.fixture
def config(tmp_path):
    write_scenes(tmp_path / "one", 4)
    write_scenes(tmp_path / "two", 2, sources=("c",))
    data = (str(tmp_path / "one"), str(tmp_path / "two"))
    return RewardTrainConfig(data=data, out="", batch=3, triplets=TripletConfig(crop=32))


def test_photos_smaller_than_the_crop_are_named_before_the_first_step(config, tmp_path):
    photos = [tmp_path / "one" / "train" / f"scene{number}" / "gt.png" for number in range(4)]
    first = tmp_path / "two" / "train" / "scene0" / "gt.png"
    message = f"crop: expected at most the shorter side of every photo, got 65 for {photos[1]} (72x64)"
    write_scenes(tmp_path / "large", 1, size=(80, 90))
    data = (str(tmp_path / "large"), str(tmp_path / "one"), str(tmp_path / "two"))
    config = dataclasses.replace(config, data=data, triplets=TripletConfig(crop=65))
    with pytest.raises(ValueError, match=r"^crop: expected at most") as error:
        training_scenes(config)
    named = ", ".join(f"{path} (72x64)" for path in (*photos, first))
    assert str(error.value) == message.replace(f"{photos[1]} (72x64)", f"{named} and 1 more")
    for path in (*photos[:1], *photos[2:], first, first.parents[1] / "scene1" / "gt.png"):
        Image.new("RGB", (65, 65)).save(path)
    with pytest.raises(ValueError, match=r"^crop: ") as error:
        training_scenes(config)
    assert str(error.value) == message


def test_what_is_held_out_is_not_trained_on(config):
    fit, dev = training_scenes(dataclasses.replace(config, dev_every=2))
    assert [scene.id for scene in fit] == ["scene0", "scene2", "scene0"]
    assert [scene.id for scene in dev] == ["scene1", "scene3", "scene1"]
    fit, dev = training_scenes(config)
    assert (len(fit), dev) == (6, [])
    with pytest.raises(
        ValueError, match=r"^data: expected scenes of train to fit, got none \(6 held out by dev_every=1\)$"
    ):
        training_scenes(dataclasses.replace(config, dev_every=1))


def test_scenes_that_lose_all_results_are_left_out(config):
    fit, dev = training_scenes(dataclasses.replace(config, leave_out=["c"], dev_every=2))
    assert [scene.sources for scene in fit] == [["a", "b"]] * 2
    assert [scene.id for scene in dev] == ["scene1", "scene3"]
    with pytest.raises(ValueError, match=r"^leave_out: expected some of the sources \['a', 'b', 'c'\], got \['d'\]$"):
        training_scenes(dataclasses.replace(config, leave_out=["d"]))


def test_more_of_a_source(config):
    """Each scene with its results, and then, as often as asked for, those that have the source with it alone."""
    fit, dev = training_scenes(dataclasses.replace(config, more=["b=2", "c=1"], dev_every=2))
    assert [scene.sources for scene in fit] == [["a", "b"]] * 2 + [["c"]] + [["b"]] * 4 + [["c"]]
    assert [scene.id for scene in fit[3:]] == ["scene0", "scene2"] * 2 + ["scene0"]
    assert [scene.sources for scene in dev] == [["a", "b"]] * 2 + [["c"]]  # what is held out stays as it is
    assert fit[3].gt is fit[0].gt  # read once
    for wrong, message in (
        ("d=2", r"^more: expected a source of the scenes to fit, \['a', 'b', 'c'\], got 'd'$"),
        ("b=0", r"^more: expected SOURCE=N with N of at least 1, got 'b=0'$"),
        ("b", r"^more: expected SOURCE=N with N of at least 1, got 'b'$"),
    ):
        with pytest.raises(ValueError, match=message):
            training_scenes(dataclasses.replace(config, more=[wrong]))


def test_more_of_a_source_of_a_data_set(tmp_path):
    """Of stored samples, those of the source."""
    pytest.importorskip("pyarrow")
    make(tmp_path / "photos", tmp_path / "fgr")
    config = RewardTrainConfig(data=str(tmp_path / "fgr"), out="", triplets=TripletConfig(crop=32))
    plain, _ = training_scenes(config)
    source = plain[0].sources[-1]
    fit, _ = training_scenes(dataclasses.replace(config, more=[f"{source}=1"]))
    assert len(fit) == len(plain) + sum(source in scene.sources for scene in plain)
    for number in range(4):
        assert fit[-1].draw(torch.Generator().manual_seed(number)).row["source"] == source


def test_a_data_set_that_loses_all_results_is_left_out(config, tmp_path):
    pytest.importorskip("pyarrow")
    make(tmp_path / "photos", tmp_path / "fgr")
    both = dataclasses.replace(config, data=(str(tmp_path / "two"), str(tmp_path / "fgr")))
    sources = {name for scene in training_scenes(both)[0] for name in scene.sources} - {"c"}
    fit, _ = training_scenes(dataclasses.replace(both, leave_out=sorted(sources)))
    assert [scene.sources for scene in fit] == [["c"]] * 2


def test_a_run_does_not_start_from_what_it_overwrites(tmp_path):
    for start in ("", "best"):
        config = RewardTrainConfig(data="d", out=str(tmp_path), init=str(tmp_path / start))
        with pytest.raises(ValueError, match="out: expected another folder than that of init"):
            check_folders(config)
    check_folders(RewardTrainConfig(data="d", out=str(tmp_path / "best"), init=str(tmp_path)))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"steps": 0}, {"batch": -1}, {"lr_new": -1.0}, {"save_every": 0}, {"workers": -1}),
        *({"lr_new": math.nan}, {"lr_encoder": math.nan}, {"weight_decay": math.nan}),
    ],
)
def test_settings_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}: expected at least"):
        RewardTrainConfig(data="d", out="o", **wrong)


def test_an_epoch_is_every_pair_once(config):
    fit, _ = training_scenes(config)
    assert with_steps(config, fit) == config
    assert with_steps(dataclasses.replace(config, epochs=5), fit).steps == 17  # 5 · (4·2 + 2·1) pairs in batches of 3


def test_an_epoch_of_a_data_set_is_every_sample_once(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    make(tmp_path / "photos", tmp_path / "fgr")
    config = RewardTrainConfig(data=str(tmp_path / "fgr"), out="", batch=1, epochs=2, triplets=TripletConfig(crop=32))
    samples = sum(parquet.read_metadata(file).num_rows for file in (tmp_path / "fgr").rglob("train*.parquet"))
    assert samples > 0
    assert with_steps(config, training_scenes(config)[0]).steps == 2 * samples

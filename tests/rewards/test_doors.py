"""The forms that flow_grpo, Flow-Factory and verl-omni call give the model's own scores."""

import importlib.util
import inspect
import sys
import types
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import pytest
import torch

from finpercep.models import RewardModel, RewardOutput
from finpercep.rewards import doors, load_reward
from tests.conftest import synthetic_photo
from tests.rewards.conftest import Brightness


@pytest.fixture(scope="module")
def photos():
    return torch.stack([(synthetic_photo(40, 56, seed=s) * 255).round() for s in range(3)]).to(torch.uint8)


@pytest.fixture(scope="module")
def expected(photos):
    return RewardModel.from_pretrained("finpercep-tiny").score(photos).score


def test_flow_grpo(photos, expected):
    score = doors.flow_grpo("cpu")
    assert "device" in doors.flow_grpo.__code__.co_varnames  # how flow_grpo tells factories apart
    scores, info = score(photos.float() / 255, ["", "", ""], [{}] * 3)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    arrays, _ = score(np.ascontiguousarray(photos.permute(0, 2, 3, 1).numpy()), [""] * 3, [{}] * 3)
    torch.testing.assert_close(arrays, expected, atol=1e-6, rtol=0)
    assert info["fingerprint"] == load_reward("finpercep-tiny").fingerprint
    assert torch.as_tensor(scores).float().shape == (3,)  # what its trainer does with them
    given = (photos.double() / 255).requires_grad_()
    seen = []
    reward = types.SimpleNamespace(fingerprint="first")
    called = doors.flow_grpo("cpu", reward=Asked(reward, seen))
    scores, info = called(given, [""] * 3, [{}] * 3)
    assert [one.dtype for one in seen] == [torch.float32]
    assert not scores.requires_grad
    reward.fingerprint = "trained"  # of a reward that is given, it is asked for each time
    assert (info["fingerprint"], called(given, [""] * 3, [{}] * 3)[1]["fingerprint"]) == ("first", "trained")


class Asked:
    """Brightness, with the fingerprint of something that changes."""

    def __init__(self, of, seen):
        self.of, self.seen = of, seen

    @property
    def fingerprint(self):
        return self.of.fingerprint

    def __call__(self, images):
        self.seen.append(images)
        return RewardOutput(images.mean((1, 2, 3)), None)


def test_flow_factorys_device_is_that_of_its_settings():
    elsewhere = types.SimpleNamespace(device=torch.device("cuda", 3))
    reward = doors.FlowFactoryReward(types.SimpleNamespace(device="cpu"), elsewhere)
    assert reward.device == next(reward.model.parameters()).device == torch.device("cpu")
    assert reward.to("meta").device == next(reward.model.parameters()).device == torch.device("meta")


def test_verl_omnis_reward_is_loaded_once(photos, monkeypatch):
    loaded, seen = [], []
    make = types.SimpleNamespace(fingerprint="x")
    monkeypatch.setattr(doors, "load_reward", lambda name, **_: loaded.append(name) or Asked(make, seen))
    for _ in range(3):
        doors.compute_score("sr", photos[0], reward="one of its own")
    assert (loaded, len(seen)) == (["one of its own"], 3)


def test_flow_grpo_takes_what_load_reward_takes_and_a_reward(photos, expected):
    images = photos.float() / 255
    scores, info = doors.flow_grpo(reward=Path("finpercep-tiny"))(images, [""] * 3, [{}] * 3)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert info["fingerprint"] == load_reward("finpercep-tiny").fingerprint
    with pytest.raises(ValueError, match=r"^reward: expected a reward or its name, got int$"):
        doors.flow_grpo(reward=3)
    bright = Brightness()
    bright.lower_better = True
    with pytest.raises(ValueError, match=r"^reward: expected a reward whose higher .*, but lower ones are; negate it"):
        doors.flow_grpo(reward=bright)


def test_flow_factory(photos, expected):
    reward = doors.FlowFactoryReward(types.SimpleNamespace(device=torch.device("cpu")), None)
    assert reward.required_fields == ("image",)
    assert reward.use_tensor_inputs
    out = reward(prompt=["a", "b", "c"], image=list(photos.float() / 255), video=None)
    torch.testing.assert_close(out.rewards, expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="image: expected a list of images"):
        reward(prompt=["a"])
    with pytest.raises(ValueError, match=r"^image: expected a list of images, got none$"):
        reward(prompt=[], image=[])
    with pytest.raises(ValueError, match=r"^prompt: expected 3, one for each image, got 2$"):
        reward(prompt=["a", "b"], image=list(photos.float() / 255))
    with pytest.raises(ValueError, match=r"^image: expected images \(3,H,W\), got a batch of 3 as one$"):
        reward(prompt=["a"], image=[photos.float() / 255])


def test_prompts_reach_flow_factorys_reward(photos, monkeypatch):
    seen = []

    def score(images, prompts, metadata):
        seen.append(list(prompts))
        return [1.0] * len(images), {}

    monkeypatch.setitem(sys.modules, "somebodys_prompts", types.SimpleNamespace(score=score))
    reward = doors.FlowFactoryReward(types.SimpleNamespace(device="cpu", reward="somebodys_prompts:score"))
    reward(prompt=["a cat", "a dog"], image=list(photos[:2]))
    reward(image=[photos[0]])
    assert seen == [["a cat"], ["a dog"], [""]]


def test_verl_omni(photos, expected):
    answer = doors.compute_score("sr", photos[0], None, {"index": 1})
    assert answer["score"] == pytest.approx(float(expected[0]), abs=1e-6)
    alone = doors.compute_score("sr", photos[:1])["score"]
    assert alone == pytest.approx([float(expected[0])], abs=1e-6)  # a batch of one is a batch
    assert doors.compute_score("sr", photos)["score"] == pytest.approx(expected.tolist(), abs=1e-6)


def test_weights_are_hashed_once(photos, monkeypatch):
    count = []
    real = RewardModel.fingerprint.fget
    monkeypatch.setattr(RewardModel, "fingerprint", property(lambda model: count.append(1) or real(model)))
    score = doors.flow_grpo("cpu")
    images = photos[:1].float() / 255
    infos = [score(images, [""], [{}])[1]["fingerprint"] for _ in range(3)]
    assert len(count) == 1
    reward = doors.FlowFactoryReward(types.SimpleNamespace(device=torch.device("cpu")), None)
    infos += [reward(image=list(images)).extra_info["fingerprint"] for _ in range(3)]
    assert len(count) == 2
    assert set(infos) == {real(reward.model)}


@pytest.fixture
def flow_factory(monkeypatch):
    """The base class of Flow-Factory's pointwise rewards as recorded: names and arguments, abstract `__call__`."""

    class PointwiseRewardModel(ABC):
        required_fields = ("image", "prompt")
        use_tensor_inputs = False

        @abstractmethod
        def __call__(self, prompt, image=None, video=None, audio=None, condition_images=None, **kwargs): ...

    module = types.ModuleType("flow_factory.rewards.abc")
    module.PointwiseRewardModel = PointwiseRewardModel
    for name in ("flow_factory", "flow_factory.rewards"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "flow_factory.rewards.abc", module)
    return PointwiseRewardModel


def test_flow_factory_keeps_the_reward_and_gives_it_images_alone(flow_factory, photos, expected):
    spec = importlib.util.find_spec("finpercep.rewards.doors")
    fresh = importlib.util.module_from_spec(spec)  # as first imported where Flow-Factory is
    spec.loader.exec_module(fresh)
    config = types.SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, batch_size=2)
    accelerator = types.SimpleNamespace(device=torch.device("cpu"))
    reward = fresh.FlowFactoryReward(config, accelerator)
    kept = {name: one for name, one in {"finpercep": reward}.items() if isinstance(one, flow_factory)}
    assert list(kept) == ["finpercep"]
    assert (reward.config, reward.accelerator, reward.dtype) == (config, accelerator, torch.bfloat16)
    assert reward.to(torch.device("cpu")) is reward
    assert reward.device == torch.device("cpu")
    sample = {"prompt": "", "image": photos[0] / 255, "latents": 1, "unique_id": 2}
    parameters = inspect.signature(reward.__call__).parameters
    assert all(one.kind is not one.VAR_KEYWORD for one in parameters.values())
    taken = [name for name in sample if name in parameters]
    assert taken == ["prompt", "image"]
    out = reward(prompt=[""] * 3, image=list(photos.float() / 255))
    torch.testing.assert_close(out.rewards, expected, atol=1e-6, rtol=0)


def test_as_flow_grpos_multi_score_calls(photos, expected):
    """Made with a device, called with (images, prompts, metadata), weighted and added as lists."""
    made = {"finpercep": doors.flow_grpo("cpu")}
    images, prompts, metadata = photos.float() / 255, [""] * 3, [{}] * 3
    total = [0.0] * 3
    for name, weight in {"finpercep": 0.5}.items():
        scores, _ = made[name](images, prompts, metadata)
        total = [a + weight * b for a, b in zip(total, scores, strict=True)]
    torch.testing.assert_close(torch.as_tensor(total).float(), 0.5 * expected, atol=1e-6, rtol=0)


def test_as_verl_omni_calls(photos, expected):
    answer = doors.compute_score(
        data_source="sr",
        solution_image=photos[0],
        ground_truth="",
        extra_info={"index": 1},
        reward_model_tokenizer=None,
    )
    assert isinstance(answer["score"], float)
    assert answer["score"] == pytest.approx(float(expected[0]), abs=1e-6)

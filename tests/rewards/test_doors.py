"""The forms that flow_grpo, Flow-Factory and verl-omni call give the model's own scores."""

import sys
import types

import numpy as np
import pytest
import torch

from finpercep.models import RewardModel
from finpercep.rewards import doors, load_reward
from tests.conftest import synthetic_photo


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


def test_flow_factory(photos, expected):
    reward = doors.FlowFactoryReward(types.SimpleNamespace(device=torch.device("cpu")), None)
    assert reward.required_fields == ("image",)
    assert reward.use_tensor_inputs
    out = reward(prompt=["a", "b", "c"], image=list(photos.float() / 255), video=None)
    torch.testing.assert_close(out.rewards, expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="image: expected a list of images"):
        reward(prompt=["a"])


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

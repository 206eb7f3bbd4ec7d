"""Rewards by name, and functions of other packages as rewards."""

import shutil
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from finpercep.models import RewardModel, RewardOutput
from finpercep.rewards import FunctionReward, LRConsistency, Mixture, call_reward, load_reward
from finpercep.rewards.protocol import WrongAnswerError, combined_fingerprint
from tests.rewards.conftest import Brightness


def jpeg_like(images, prompts, metadata):
    assert prompts == [""] * len(images)
    assert metadata == [{}] * len(images)
    return np.array([float(image.mean()) for image in images]), {}


def multi(images, prompts, metadata):
    return {"one": [1.0] * len(images), "avg": [0.5] * len(images)}, {}


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("somebodys_rewards")
    made.plain = jpeg_like
    made.multi = multi
    made.with_device = lambda device: multi
    made.without = lambda: jpeg_like
    made.ours = Brightness()
    made.Ours = Brightness
    made.number = 3
    made.alone = lambda images: images.flatten(1).mean(1)
    made.wrong = lambda images, prompts, metadata: [1.0]
    made.makes_alone = lambda device: made.alone
    made.network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    monkeypatch.setitem(sys.modules, "somebodys_rewards", made)
    return made


def test_embedded_model():
    reward = load_reward("finpercep-tiny")
    assert isinstance(reward, RewardModel)
    assert not any(p.requires_grad for p in reward.parameters())


@pytest.mark.parametrize("spec", ["finpercep-tiny", "somebodys_rewards:plain", "http://localhost:1"])
def test_unknown_options(spec, module):
    with pytest.raises(TypeError, match="revison: unknown option; expected revision"):
        load_reward(spec, revison="main")
    with pytest.raises(TypeError, match="revison: unknown option"):
        load_reward(f"{spec} + somebodys_rewards:multi", revison="main")


def test_functions(module, images):
    mean = images.flatten(1).mean(1)
    torch.testing.assert_close(load_reward("somebodys_rewards:plain")(images).score, mean)
    torch.testing.assert_close(load_reward("somebodys_rewards:without")(images).score, mean)
    for name in ("multi", "with_device"):
        out = load_reward(f"somebodys_rewards:{name}")(images)
        assert out.score.tolist() == [0.5] * 3
        assert out.map is None


def test_rewards_of_ones_own(module, images):
    assert load_reward("somebodys_rewards:ours") is module.ours
    assert isinstance(load_reward("somebodys_rewards:Ours"), Brightness)


def test_modules_of_ones_own_are_not_in_training(module, images):
    """One image has one score, and nothing in the module changes by asking for it."""

    class Dropping(nn.Module):
        fingerprint = "dropping"

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout())

        def forward(self, images):
            return RewardOutput(self.layers(images).flatten(1).mean(1), None)

    module.Dropping = Dropping
    reward = load_reward("somebodys_rewards:Dropping")
    assert torch.equal(reward(images).score, reward(images).score)
    assert int(reward.layers[0].num_batches_tracked) == 0


def test_a_mixture_by_name(module, images):
    """Weights mean what they say, and what a part needs beside images reaches it."""
    spec = "somebodys_rewards:ours + 2.5e-1*somebodys_rewards:multi + 2 * finpercep.rewards:LRConsistency"
    mixture = load_reward(spec)
    assert isinstance(mixture, Mixture)
    names = ("somebodys_rewards:ours", "somebodys_rewards:multi", "finpercep.rewards:LRConsistency")
    assert mixture.weights == dict(zip(names, (1.0, 0.25, 2.0), strict=True))
    assert isinstance(mixture.parts[names[2]], LRConsistency)
    low = torch.nn.functional.interpolate(images, scale_factor=0.5, mode="area")
    expected = module.ours(images).score + 0.125 + 2 * LRConsistency()(images, lr=low).score
    torch.testing.assert_close(mixture(images, lr=low).score, expected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("finpercep-tiny + 2*finpercep-tiny", "expected each part once, got 'finpercep-tiny' twice"),
        ("finpercep-tiny + ", "expected each part once, got ''"),
        ("1.2.3*finpercep-tiny + finpercep-small", r"expected a number before \*, got '1.2.3'"),
        ("0*finpercep-tiny + finpercep-small", r"parts\['finpercep-tiny'\]: expected a positive weight, got 0.0"),
        ("finpercep-tiny + -0.5*finpercep-small", r"parts\['finpercep-small'\]: expected a positive weight, got -0.5"),
        ("finpercep-small + 0.5*finpercep-tinny", "finpercep-tinny: no such model"),
        ("finpercep-small+0.5*finpercep-tiny", r"several are written 'A \+ 0.5\*B', with blanks around each plus"),
        ("finpercep-small+finpercep-tiny", "with blanks around each plus"),
        ("finpercep-small + finpercep-tiny*0.5", r"finpercep-tiny\*0.5: no such reward; several are written"),
        ("pyiqa:musiq+0.5*finpercep-tiny", "with blanks around each plus"),
    ],
)
def test_mixtures_that_are_none(spec, message):
    with pytest.raises(ValueError, match=message):
        load_reward(spec)


def test_a_folder_may_have_what_a_mixture_is_written_with(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a + b", "a+b", "2*a"):
        folder = shutil.copytree(model_folder, tmp_path / name)
        for spec in (folder, str(folder), f"~/{name}"):
            assert load_reward(spec).fingerprint == load_reward(model_folder).fingerprint


def test_prompts_reach_a_function(images):
    seen = {}

    def function(images, prompts, metadata):
        seen.update(prompts=prompts, metadata=metadata)
        return torch.zeros(len(images), 1).flatten()

    context = {"prompts": ["a", "b", "c"], "metadata": [1, 2, 3], "lr": images}
    call_reward(FunctionReward(function, "f"), images, context)
    assert seen == {"prompts": ["a", "b", "c"], "metadata": [1, 2, 3]}


def test_errors(module, images, tmp_path):
    with pytest.raises(ValueError, match="finpercep-tiny"):
        load_reward("finpercep-tinny")
    with pytest.raises(ImportError, match="no_such_module:x: expected a module"):
        load_reward("no_such_module:x")
    with pytest.raises(ValueError, match="has no 'plane'; did you mean plain"):
        load_reward("somebodys_rewards:plane")
    with pytest.raises(ValueError, match="math:sqrt: expected a function of images, or one that needs none but"):
        load_reward("math:sqrt")
    with pytest.raises(
        ValueError,
        match=r"alone: expected a scoring function \(images, prompts, metadata\) -> .*, got \(images\): too many",
    ):
        load_reward("somebodys_rewards:alone")
    with pytest.raises(ValueError, match=r"makes_alone: expected a scoring function .*, got \(images\): too many"):
        load_reward("somebodys_rewards:makes_alone")
    with pytest.raises(ValueError, match=r"network: expected a scoring function .*, got \(input\): too many"):
        load_reward("somebodys_rewards:network")
    with pytest.raises(ValueError, match="somebodys_rewards:number: expected a reward or a function, got int"):
        load_reward("somebodys_rewards:number")
    module.ours.lower_better = True
    with pytest.raises(ValueError, match=r"somebodys_rewards:ours: .* but lower ones are; negate it"):
        load_reward("somebodys_rewards:ours")
    with pytest.raises(ValueError, match=r"somebodys_rewards:wrong: expected 3 scores, got shape \(1,\)"):
        load_reward("somebodys_rewards:wrong")(images)
    with pytest.raises(ValueError, match='expected scores under "avg"'):
        FunctionReward(lambda *_: {"one": [1.0]}, "f")(images)
    with pytest.raises(ValueError, match="f: expected 3 scores, got str"):
        FunctionReward(lambda *_: "good", "f")(images)


def test_a_fingerprint_is_of_contents_and_not_of_their_order():
    one, other = combined_fingerprint("x", {"a": 1, "b": [2.0]}), combined_fingerprint("x", {"b": [2.0], "a": 1})
    assert one == other != combined_fingerprint("x", {"a": 1, "b": [2.5]})
    assert len(one) == 16


def test_a_reward_of_the_wrong_shape_is_named(images):
    class Wrong(Brightness):
        def forward(self, images, **context):
            out = super().forward(images)
            return out._replace(score=out.score[:, None])

    with pytest.raises(ValueError, match=r"expected scores \(3,\) for 3 images, got \(3, 1\) from Wrong"):
        call_reward(Wrong(), images, {})


SCORES = torch.rand(3)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"expected RewardOutput\(score, map\) with scores in a tensor, got NoneType from Odd"),
        (SCORES, r"expected RewardOutput\(score, map\) with scores in a tensor, got Tensor from Odd"),
        (RewardOutput([0.5] * 3, None), r"scores in a tensor, got list from Odd"),
        (RewardOutput(torch.ones(3, dtype=torch.int64), None), r"expected scores of floats, got torch\.int64 from Odd"),
        (RewardOutput(torch.ones(3) > 0, None), r"expected scores of floats, got torch\.bool from Odd"),
        (RewardOutput(SCORES, np.zeros((3, 1, 4, 4))), r"expected a map of floats in a tensor, or None, got float64"),
        (
            RewardOutput(SCORES, torch.zeros(3, 1, 2, 2)),
            r"expected a map \(3, 1, 4, 5\) for images \(3, 3, 4, 5\)",
        ),
    ],
)
def test_a_reward_of_the_wrong_kind_is_named(answer, message):
    class Odd:
        fingerprint = "odd"

        def __call__(self, images):
            return answer

    with pytest.raises(WrongAnswerError, match=message):
        call_reward(Odd(), torch.rand(3, 3, 4, 5), {})


def test_pyiqa_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ImportError, match=r"pyiqa:musiq needs the package pyiqa: pip install 'finpercep\[eval\]'"):
        load_reward("pyiqa:musiq")


class FakeMetric(torch.nn.Module):
    """As pyiqa's InferenceModel: brightness, where lower is better."""

    lower_better = True

    def forward(self, images):
        return images.flatten(1).mean(1, keepdim=True)


def test_pyiqa_metric(monkeypatch, images):
    fake = types.ModuleType("pyiqa")
    fake.list_models = lambda metric_mode: ["niqe", "piqe", "musiq"]
    fake.create_metric = lambda name, **options: FakeMetric()
    monkeypatch.setitem(sys.modules, "pyiqa", fake)
    x = images.clone().requires_grad_()
    out = load_reward("pyiqa:niqe")(x)
    torch.testing.assert_close(out.score, -images.flatten(1).mean(1))
    out.score.sum().backward()
    assert (x.grad < 0).all()
    prints = set()
    for release in ("1", "2"):  # another release of the package may measure otherwise
        monkeypatch.setattr("importlib.metadata.version", lambda name, release=release: release)
        prints |= {load_reward("pyiqa:niqe").fingerprint, load_reward("pyiqa:piqe").fingerprint}
    assert len(prints) == 4

    def offline(name, **options):
        raise OSError("[Errno 101] Network is unreachable:\n  musiq.pth")

    fake.create_metric = offline
    message = r"^pyiqa:musiq: pyiqa cannot load it: \[Errno 101\] Network is unreachable: musiq.pth$"
    with pytest.raises(ValueError, match=message):
        load_reward("pyiqa:musiq")
    with pytest.raises(ValueError, match="pyiqa:nique: expected a no-reference metric of pyiqa; did you mean niqe"):
        load_reward("pyiqa:nique")

"""The metric "finpercep" in pyiqa: its registries, filled as pyiqa reads them, and pyiqa itself where installed."""

import sys
import types

import pytest
import torch

from finpercep.rewards import load_reward, pyiqa_plugin


@pytest.fixture
def registries(monkeypatch):
    """The two tables of pyiqa that the plug-in writes to."""
    configs, archs = types.ModuleType("pyiqa.default_model_configs"), types.ModuleType("pyiqa.utils.registry")
    configs.DEFAULT_CONFIGS = {}
    archs.known = {}
    archs.ARCH_REGISTRY = types.SimpleNamespace(register=lambda obj, name: archs.known.update({name: obj}))
    for name, module in (
        ("pyiqa", types.ModuleType("pyiqa")),
        ("pyiqa.utils", types.ModuleType("pyiqa.utils")),
        ("pyiqa.default_model_configs", configs),
        ("pyiqa.utils.registry", archs),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return configs.DEFAULT_CONFIGS, archs.known


def test_registers_once_as_a_no_reference_metric(registries, images):
    configs, known = registries
    pyiqa_plugin.register()
    pyiqa_plugin.register()
    options = dict(configs["finpercep"]["metric_opts"])
    assert configs["finpercep"]["metric_mode"] == "NR"
    assert configs["finpercep"]["lower_better"] is False
    metric = known[options.pop("type")](**options)
    torch.testing.assert_close(metric(images), load_reward("finpercep-tiny")(images).score[:, None])


def test_without_pyiqa(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ImportError, match=r"pip install 'finpercep\[eval\]'"):
        pyiqa_plugin.register()


@pytest.fixture
def pyiqa(monkeypatch):
    """pyiqa as it is before anyone has told it of "finpercep"."""
    package = pytest.importorskip("pyiqa", reason="pyiqa is not installed (extra: eval)")
    from pyiqa.default_model_configs import DEFAULT_CONFIGS
    from pyiqa.utils.registry import ARCH_REGISTRY

    monkeypatch.delitem(DEFAULT_CONFIGS, "finpercep", raising=False)
    monkeypatch.delitem(ARCH_REGISTRY._obj_map, "FinPercep", raising=False)
    monkeypatch.setattr(ARCH_REGISTRY, "_entry_points_loaded", False)
    yield package
    DEFAULT_CONFIGS.pop("finpercep", None)
    ARCH_REGISTRY._obj_map.pop("FinPercep", None)


def test_in_pyiqa_itself(pyiqa, make_photo):
    pyiqa_plugin.register()
    metric = pyiqa.create_metric("finpercep", device="cpu")
    images = torch.stack([make_photo(64, 96, seed=i) for i in range(3)])
    scores = metric(images)
    assert scores.shape == (3, 1)
    torch.testing.assert_close(scores[:, 0], load_reward("finpercep-tiny")(images).score, atol=1e-6, rtol=0)
    assert (metric.metric_mode, metric.lower_better, metric.score_range) == ("NR", False, "0, 1")
    assert "finpercep" in pyiqa.list_models(metric_mode="NR")
    other = pyiqa.create_metric("finpercep", device="cpu", reward="finpercep-small")
    torch.testing.assert_close(other(images)[:, 0], load_reward("finpercep-small")(images).score, atol=1e-6, rtol=0)


def test_by_its_entry_point(pyiqa, images):
    """Known once pyiqa has made another metric."""
    with pytest.raises(AssertionError, match="finpercep not implemented"):
        pyiqa.create_metric("finpercep", device="cpu")
    pyiqa.create_metric("psnr", device="cpu")
    metric = pyiqa.create_metric("finpercep", device="cpu")
    torch.testing.assert_close(metric(images)[:, 0], load_reward("finpercep-tiny")(images).score, atol=1e-6, rtol=0)


def test_as_a_loss_of_pyiqa(pyiqa, images):
    pyiqa_plugin.register()
    loss = pyiqa.create_metric("finpercep", device="cpu", as_loss=True)
    ours, theirs = (images.clone().requires_grad_(True) for _ in range(2))
    value = loss(theirs)
    (-value).backward()
    score = load_reward("finpercep-tiny")(ours).score.mean()
    score.backward()
    assert value.item() == pytest.approx(score.item(), abs=1e-6)
    assert ours.grad.abs().max() > 0
    torch.testing.assert_close(theirs.grad, -ours.grad)

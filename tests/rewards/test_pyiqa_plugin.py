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


def test_in_pyiqa_itself(images):
    pyiqa = pytest.importorskip("pyiqa", reason="pyiqa is not installed (extra: eval)")
    pyiqa_plugin.register()
    metric = pyiqa.create_metric("finpercep", device="cpu")
    torch.testing.assert_close(metric(images).flatten(), load_reward("finpercep-tiny")(images).score)
    assert "finpercep" in pyiqa.list_models(metric_mode="NR")

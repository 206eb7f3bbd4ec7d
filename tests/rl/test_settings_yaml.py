"""What `--print-config` writes: each setting with what it is, and nothing that changes it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from finpercep.data import DegradationConfig
from finpercep.rl.config import KINDS, RLConfig, StageConfig
from finpercep.rl.curriculum import CurriculumConfig
from finpercep.rl.generators import GeneratorConfig
from finpercep.rl.grpo import GRPOConfig
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.refresh import RefreshConfig
from finpercep.rl.settings import resolve
from finpercep.rl.settings_yaml import as_yaml, descriptions

EVERY = [RLConfig, StageConfig, CurriculumConfig, GeneratorConfig, MonitorConfig, RefreshConfig, *KINDS.values()]


@pytest.mark.parametrize("kind", EVERY)
def test_every_setting_is_described_and_nothing_else(kind):
    found = descriptions(kind)
    assert set(found) == {field.name for field in fields(kind)}
    assert all(found.values())


def test_descriptions():
    @dataclass
    class Some:
        """What it is.

        Attributes:
            one: of the first; longer than
                a line.
            two, three: both.

        Raises:
            ValueError: no setting.
        """

        one: int = 0

    assert descriptions(Some) == {"one": "of the first; longer than a line.", "two": "both.", "three": "both."}
    assert descriptions(int) == {}


def test_the_file_of_a_curriculum(tmp_path):
    """Read back it is the same; a stage's settings are explained at the first stage."""
    stages = (StageConfig("a: b", 3, 1e-4), StageConfig("null", 4))
    mild = DegradationConfig(jpeg_range=(60.0, 95.0))
    config = RLConfig(("x", "ü"), algorithm=GRPOConfig(window=(1, 2)), stages=stages, degradation=mild)
    text = as_yaml(config)
    (tmp_path / "run.yaml").write_text(text)
    assert resolve(tmp_path / "run.yaml") == config
    assert "\nbatch: 4\n# of the crops of photos, pixels.\nside: 96\n" in text
    assert "\nalgorithm:\n  name: grpo\n  # of the sampler.\n  steps: " in text
    assert "\n  # quality.\n  jpeg_range: [60.0, 95.0]\n" in text
    assert "\n-\n  reward: 'null'\n  steps: 4\n" in text
    assert text.count("# λ1 and λ2.\n  score_weight: ") == 1
    assert max(map(len, text.splitlines())) <= 120

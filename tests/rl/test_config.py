"""Settings that do not go together are refused."""

from __future__ import annotations

import pytest

from finpercep.rl.config import RLConfig, StageConfig, check_held
from finpercep.rl.curriculum import CurriculumConfig
from finpercep.rl.dpo import DPOConfig
from finpercep.rl.generators import GeneratorConfig
from finpercep.rl.grpo import GRPOConfig
from finpercep.rl.nft import NFTConfig
from finpercep.rl.refl import ReFLConfig
from finpercep.rl.refresh import RefreshConfig


def test_the_first_stage_that_is_refreshed_is_one_of_them():
    stages = (StageConfig(), StageConfig())
    RLConfig(stages=stages[:1], refresh=RefreshConfig(every=2, first_stage=3))
    RLConfig(stages=stages, refresh=RefreshConfig(first_stage=3))
    with pytest.raises(ValueError, match=r"^refresh\.first_stage: expected at most 1, the last stage, got 2$"):
        RLConfig(stages=stages, refresh=RefreshConfig(every=2, first_stage=2))
    with pytest.raises(ValueError, match=r"^first_stage: expected 0 or more, got -1$"):
        RefreshConfig(first_stage=-1)


def test_auto_needs_two_held_out_photos():
    config = RLConfig(curriculum=CurriculumConfig("auto"), dev_every=2)
    check_held(config, 2)
    check_held(RLConfig(), 1)
    with pytest.raises(ValueError, match=r"^curriculum.switch: auto .* expected at least 2 of them, got 1; see eval_"):
        check_held(config, 1)


def test_half_precision_that_would_lose_gradients():
    with pytest.raises(ValueError, match=r"generator_options\.dtype: expected float32 or bfloat16 .*, got float16"):
        RLConfig(generator_options=GeneratorConfig(dtype="float16"))
    assert RLConfig(generator_options=GeneratorConfig(dtype="bfloat16")).generator_options.dtype == "bfloat16"


def test_results_of_a_step():
    """Those of all processes: of each image one or a group's, but where the data bring them."""
    algorithms = (ReFLConfig(), GRPOConfig(group_size=6), NFTConfig(group_size=5), DPOConfig(group_size=4))
    assert [RLConfig(algorithm=one, batch=3).results for one in algorithms] == [3, 18, 15, 12]
    given = RLConfig(algorithm=DPOConfig(group_size=4, pairs="given"), batch=3)
    assert (given.results, given.given_pairs, RLConfig(algorithm=DPOConfig()).given_pairs) == (3, True, False)
    assert [RLConfig(algorithm=one(across=True)).across for one in (GRPOConfig, NFTConfig)] == [True, True]
    assert [RLConfig(algorithm=one()).across for one in (ReFLConfig, DPOConfig, GRPOConfig)] == [False, False, False]

"""Flow-GRPO: Eq. 4 to 6 against flow_grpo's formulas, by finite differences, and its ratio of 1."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from finpercep.models import RewardOutput
from finpercep.rewards import Mixture
from finpercep.rl.dpo import DPO, DPOConfig
from finpercep.rl.experience import DeadGroups
from finpercep.rl.grpo import GRPO, GRPOConfig, RatioError, _check_ratio
from finpercep.rl.nft import NFT, NFTConfig
from finpercep.rl.rollout import sample_generators
from finpercep.rl.scores import as_file, group_advantages, result_advantages, scores_and_map
from finpercep.rl.spatial import spatial_advantages
from tests.rl.toy import Given, Green, Red, Toy, batch, check_gradient

CONFIG = GRPOConfig(steps=4, group_size=3, clip=0.05, beta=0.3, micro_batch=5)


def flow_grpo_step(v, x, after, s, s_next, level, first):
    """flow_grpo's sde_step_with_logprob, written out: log-probability, mean, std."""
    dt = s_next - s
    std = level * math.sqrt(s / (1 - (first if s == 1 else s)))
    mean = x * (1 + std**2 / (2 * s) * dt) + v * (1 + std**2 * (1 - s) / (2 * s)) * dt
    width = std * math.sqrt(-dt)
    log_prob = -((after - mean) ** 2) / (2 * width**2) - math.log(width) - math.log(math.sqrt(2 * math.pi))
    return log_prob.mean((1, 2, 3)), mean, std


def flow_grpo_loss(generator, reference, rows, given, config, first):
    """flow_grpo's training loss, written out, row by row."""
    losses, divergences = [], []
    for i in range(len(rows["s"])):
        one = slice(i, i + 1)
        x, after, s, s_next = rows["x"][one], rows["next"][one], float(rows["s"][i]), float(rows["s_next"][i])
        condition = generator.condition(given[one])
        level = torch.tensor([s])
        log_prob, mean, std = flow_grpo_step(
            generator.velocity(x, level, condition), x, after, s, s_next, config.noise_level, first
        )
        _, mean_reference, _ = flow_grpo_step(
            reference.velocity(x, level, condition), x, after, s, s_next, config.noise_level, first
        )
        ratio = torch.exp(log_prob - rows["old_log_prob"][one])
        advantage = rows["advantage"][i].clamp(-5, 5)
        losses.append(torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - config.clip, 1 + config.clip)))
        gap = ((mean - mean_reference) ** 2).mean()
        divergences.append(gap / (2 * std**2 * (s - s_next)))  # flow_grpo leaves out the step's length
    return torch.cat(losses).mean() + config.beta * torch.stack(divergences).mean()


def test_gradient():
    generator = Toy()
    algorithm = GRPO(generator, CONFIG)
    experience = replace(algorithm.collect(batch(), Red(), 0), fresh=False)
    generator.move()
    check_gradient(generator, lambda: algorithm.loss(experience)["loss"])


def test_against_flow_grpo():
    generator, given = Toy(), batch()
    algorithm = GRPO(generator, CONFIG)
    experience = replace(algorithm.collect(given, Red(), 0), fresh=False)
    generator.move()
    loss = algorithm.loss(experience)["loss"]
    expected = flow_grpo_loss(generator, generator.reference[0], experience.tensors, experience.batch, CONFIG, 0.75)
    torch.testing.assert_close(loss, expected)


def test_advantages_are_those_of_flow_grpo():
    """(r - mean) / (std + 1e-4) by image, population std, limited."""
    ids, values = torch.tensor([3, 9, 3, 9]), {"avg": torch.tensor([0.1, 0.5, 0.3, 0.9])}
    advantages, figures = group_advantages(Red(), values, ids, clip=5.0)
    expected = torch.tensor([-0.1 / 0.1001, -0.2 / 0.2001, 0.1 / 0.1001, 0.2 / 0.2001])
    torch.testing.assert_close(advantages, expected)
    assert float(figures["reward_avg"]) == pytest.approx(0.45)
    assert float(figures["reward_std_mean"]) == pytest.approx(0.15)
    assert float(figures["zero_std_ratio"]) == 0
    limited, _ = group_advantages(Red(), values, ids, clip=0.5)
    assert limited.abs().max() == 0.5


def test_figures_of_groups_and_of_a_mixture_s_parts():
    """Of two groups of two, one whose second part is dead."""
    scores = {"a": torch.tensor([0.1, 0.3, 0.5, 0.9]), "b": torch.tensor([2.0, 2.0, 1.0, 4.0])}
    reward = Mixture({"a": (Red(), 1.0), "b": (Red(), 1.0)})
    ids = torch.tensor([3, 3, 9, 9])
    _, figures = group_advantages(reward, {**scores, "avg": scores["a"] + scores["b"]}, ids, clip=5.0)
    expected = {
        "reward_a": 0.45,
        "reward_b": 2.25,
        "reward_avg": 2.7,
        "reward_std_mean": (0.1 + 1.7) / 2,
        "zero_std_ratio": 0.0,
        "group_size": 2.0,
        "reward_a_group_std_mean": (0.1 + 0.2) / 2,
        "reward_a_zero_std_ratio": 0.0,
        "reward_b_group_std_mean": 1.5 / 2,
        "reward_b_zero_std_ratio": 0.5,
        "adv_abs_mean": (0.1 / 0.1001 + 0.2 / 0.2001 + 1.5 / 1.5001) / 2,
    }
    assert {name: float(value) for name, value in figures.items()} == pytest.approx(expected)


def test_clipped_ratios_are_counted_on_either_side():
    generator = Toy()
    config = replace(CONFIG, clip=1e-3, beta=0.0, micro_batch=18)
    algorithm = GRPO(generator, config)
    experience = replace(algorithm.collect(batch(), Red(), 0), fresh=False)
    old = experience.tensors["old_log_prob"]
    generator.move(0.003)
    ratio = (algorithm._transition(experience).log_prob.detach() - old).exp()
    above, below = (ratio > 1.001).double().mean(), (ratio < 0.999).double().mean()
    assert 0 < float(above) != float(below) > 0
    terms = algorithm.loss(experience)
    assert float(terms["clipfrac_gt_one"]) == pytest.approx(float(above))
    assert float(terms["clipfrac_lt_one"]) == pytest.approx(float(below))
    assert float(terms["clipfrac"]) == pytest.approx(float(above + below))


def test_parts_of_a_mixture_are_normalized_before_they_are_added():
    wide, narrow = Given([0.0, 100.0]), Given([0.2, 0.1])
    reward = Mixture({"wide": (wide, 1.0), "narrow": (narrow, 3.0)})
    given = batch(1).repeat(2)
    scores, _ = scores_and_map(reward, given.photo, given)
    assert scores["avg"].tolist() == pytest.approx([0.6, 100.3])
    advantages, figures = group_advantages(reward, scores, given.ids, clip=5.0)
    assert advantages.tolist() == pytest.approx([-1 + 3, 1 - 3], abs=0.01)
    assert float(figures["reward_narrow"]) == pytest.approx(0.15)


def test_ratio_is_exactly_one_before_the_first_update():
    algorithm = GRPO(Toy(), CONFIG)
    experience = algorithm.collect(batch(), Red(), 0)
    assert len(experience) == 2 * 3 * 3
    for part in experience.parts(CONFIG.micro_batch):
        terms = algorithm.loss(part)
        assert float(terms["ratio"]) == 1.0
        assert float(terms["approx_kl"]) == 0.0
        assert float(terms["kl_loss"]) == 0.0


def test_a_ratio_that_is_not_one_is_explained():
    generator = Toy()
    algorithm = GRPO(generator, CONFIG)
    experience = algorithm.collect(batch(), Red(), 0)
    generator.move()
    algorithm.loss(experience)
    (look,) = experience.looks
    with pytest.raises(RatioError, match=r"ratio: expected 1 before the first update.*dropout"):
        look()
    later = replace(experience, fresh=False, looks=[])
    algorithm.loss(later)
    assert later.looks == []  # once updated it may be anything
    for low, high in ((1.0, 1 + 2e-5), (1 - 2e-5, 1.0)):
        with pytest.raises(RatioError, match="ratio: expected 1"):
            _check_ratio(torch.tensor(low).double(), torch.tensor(high).double(), 1e-5)
    near = GRPO(Toy(), CONFIG)
    experience = near.collect(batch(), Red(), 0)
    near.generator.move(1e-4)  # far less than what the ratio is clipped at
    near.loss(experience)
    with pytest.raises(RatioError, match="ratio: expected 1"):
        experience.looks[0]()


def test_window_and_noise():
    """Steps outside of the window are deterministic; the samples of a group differ and do not depend on the batch."""
    algorithm = GRPO(Toy(), replace(CONFIG, window=(1, 2)))
    rows = algorithm.collect(batch(), Red(), 0).tensors
    assert rows["s"].tolist() == [0.75] * 6
    assert rows["s_next"].tolist() == [0.5] * 6
    assert (rows["x"][0] - rows["x"][1]).abs().max() > 0.1
    alone = algorithm.collect(batch()[1:], Red(), 0).tensors
    torch.testing.assert_close(rows["next"][3:], alone["next"])
    again = algorithm.collect(batch(), Red(), 1).tensors
    assert (rows["x"] - again["x"]).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["flow", "cps", "dance"])
def test_each_kind_takes_the_steps_that_it_scores(kind):
    """x' = mean + spread·ε, by the published formulas, with ε of the row's generator; and its log-probability."""
    generator = Toy()
    algorithm = GRPO(generator, replace(CONFIG, kind=kind, window=(1, 2)))
    rows = algorithm.collect(batch(), Red(), 4).tensors
    x, s, s_next, level = rows["x"], 0.75, 0.5, 0.7
    condition = generator.condition(batch().repeat(3))
    v, dt = generator.velocity(x, torch.full((6,), s), condition), s_next - s
    if kind == "cps":
        spread = s_next * math.sin(level * math.pi / 2)
        mean = (x - s * v) * (1 - s_next) + (x + (1 - s) * v) * math.sqrt(s_next**2 - spread**2)
    else:
        std = level * math.sqrt(s / (1 - s)) if kind == "flow" else level
        mean = x * (1 + std**2 / (2 * s) * dt) + v * (1 + std**2 * (1 - s) / (2 * s)) * dt
        spread = std * math.sqrt(-dt)
    noise = []
    for draw in sample_generators(batch().repeat(3).ids, 0, "noise", 4):
        torch.randn(3, 6, 6, generator=draw)  # where it begins
        noise.append(torch.randn(3, 6, 6, generator=draw).double())
    torch.testing.assert_close(rows["next"], (mean + spread * torch.stack(noise)).detach())
    square = (rows["next"] - mean).square()
    density = -square if kind == "cps" else -square / (2 * spread**2) - math.log(spread * math.sqrt(2 * math.pi))
    torch.testing.assert_close(rows["old_log_prob"], density.mean((1, 2, 3)).detach())


def test_old_log_probabilities_are_those_of_the_micro_batches_that_train(monkeypatch):
    """The sampler sees all six results at once, four times; then their 18 rows come five by five."""
    algorithm, seen = GRPO(Toy(), CONFIG), []
    velocity = algorithm.generator.velocity
    monkeypatch.setattr(algorithm.generator, "velocity", lambda x, *rest: seen.append(len(x)) or velocity(x, *rest))
    algorithm.collect(batch(), Red(), 0)
    assert seen == [6] * 4 + [5, 5, 5, 3]


def test_flow_grpos_defaults():
    config = GRPOConfig()
    assert (config.noise_level, config.kind, config.clip, config.advantage_clip) == (0.7, "flow", 1e-4, 5.0)


def test_the_reward_falls_on_the_right_samples():
    algorithm = GRPO(Toy(), replace(CONFIG, group_size=2))
    rows = algorithm.collect(batch(), Given([0.0, 1.0, 1.0, 0.0]), 0).tensors
    assert [round(a) for a in rows["advantage"].tolist()] == [-1] * 3 + [1] * 6 + [-1] * 3


def test_bad_rewards():
    algorithm = GRPO(Toy(), replace(CONFIG, group_size=2))
    with pytest.raises(FloatingPointError, match="expected finite scores, got nan for image 8"):
        algorithm.collect(batch(), Given([0.0, 1.0, float("nan"), 0.0]), 0)
    opposite = {"a": (Given([0.0, 1.0, 1.0, 0.0]), 0.5), "b": (Given([1.0, 0.0, 0.0, 1.0]), 0.5)}
    with pytest.raises(DeadGroups, match=r"all 2 groups have equal rewards"):
        algorithm.collect(batch(), Mixture(opposite), 0)  # each part differs, their sum does not
    with pytest.raises(ValueError, match=r"all 2 groups have equal rewards.*raise noise_level or group_size"):
        algorithm.collect(batch(), Given([0.5] * 4), 0)
    with pytest.raises(ValueError, match=r"expected scores \(4,\) for 4 images, got \(3,\)"):
        algorithm.collect(batch(), Given([0.5] * 3), 0)
    with pytest.raises(ValueError, match="expected two results of every image or more, got 1 with one"):
        group_advantages(Red(), {"avg": torch.tensor([0.1, 0.2, 0.3])}, torch.tensor([1, 1, 2]), 5.0)


def test_dead_groups_are_left_out():
    """A group whose results have equal rewards would only make every mean smaller."""
    algorithm = GRPO(Toy(), replace(CONFIG, group_size=2))
    some = algorithm.collect(batch(), Given([0.5, 0.5, 0.0, 1.0]), 0)
    assert some.batch.ids.tolist() == [8] * 6
    assert [round(a) for a in some.tensors["advantage"].tolist()] == [-1] * 3 + [1] * 3
    everything = algorithm.collect(batch(), Given([0.4, 0.5, 0.0, 1.0]), 0).tensors
    for name in ("x", "next", "s", "old_log_prob"):
        torch.testing.assert_close(some.tensors[name], everything[name][6:])


def test_dead_groups_are_kept_if_so_asked():
    """With advantage 0: the loss is that of the others, over more rows."""
    kept = GRPO(Toy(), replace(CONFIG, group_size=2, keep_dead=True))
    rows = kept.collect(batch(), Given([0.5, 0.5, 0.0, 1.0]), 0)
    assert rows.batch.ids.tolist() == [7] * 6 + [8] * 6
    assert [round(a) for a in rows.tensors["advantage"].tolist()] == [0] * 6 + [-1] * 3 + [1] * 3
    assert float(kept.collect(batch(), Given([0.5] * 4), 0).tensors["advantage"].abs().max()) == 0
    dropped = GRPO(Toy(), replace(CONFIG, group_size=2)).collect(batch(), Given([0.5, 0.5, 0.0, 1.0]), 0)
    losses = [float(kept.loss(experience)["policy_loss"]) for experience in (rows, dropped)]
    assert losses[0] == pytest.approx(losses[1] / 2, abs=1e-7)


class Equal(Green):
    """One score for all; the map is how green."""

    def __call__(self, images):
        output = super().__call__(images)
        return RewardOutput(torch.full_like(output.score, 0.5), output.map)


def test_equal_rewards_with_a_map_that_differs_teach():
    """By the map alone, whether or not the rewards of another group differ."""
    algorithm = GRPO(Toy(), replace(CONFIG, map_weight=0.5))
    both = algorithm.collect(batch(), Equal(), 0)
    assert both.batch.ids.tolist() == [7] * 9 + [8] * 9
    assert float(both.tensors["advantage"].abs().min()) > 0
    torch.testing.assert_close(both.tensors["advantage"].view(2, 3, 3, -1).sum(1), torch.zeros(2, 3, 36).double())
    alone = algorithm.collect(batch()[:1], Equal(), 0)
    torch.testing.assert_close(both.tensors["advantage"][:9], alone.tensors["advantage"])


def test_equal_rewards_and_equal_maps_teach_nothing():
    class Flat(Equal):
        def __call__(self, images):
            return RewardOutput(super().__call__(images).score, torch.full_like(images[:, :1], 0.5))

    with pytest.raises(DeadGroups, match="all 2 groups have equal rewards and maps, so that nothing can be learned"):
        GRPO(Toy(), replace(CONFIG, map_weight=0.5)).collect(batch(), Flat(), 0)


@pytest.mark.parametrize(
    "algorithm",
    [
        GRPO(Toy(), replace(CONFIG, map_weight=0.5, micro_batch=4)),
        GRPO(Toy(), replace(CONFIG, shared_noise=True, window=(1, 2), micro_batch=4)),
        NFT(Toy(), NFTConfig(group_size=3)),
        DPO(Toy(), DPOConfig(group_size=3, map_weight=0.5)),
    ],
    ids=["grpo", "grpo shared", "nft", "dpo"],
)
def test_a_rollout_in_portions_is_that_of_all_at_once(algorithm, monkeypatch):
    whole = algorithm.collect(batch(), Green(), 0)
    monkeypatch.setattr(algorithm, "config", replace(algorithm.config, rollout_batch=4))
    seen = []

    class Counted(Green):
        def __call__(self, images):
            seen.append(len(images))
            return super().__call__(images)

    velocity = algorithm.generator.velocity
    monkeypatch.setattr(algorithm.generator, "velocity", lambda x, *rest: seen.append(len(x)) or velocity(x, *rest))
    parts = algorithm.collect(batch(), Counted(), 0)
    assert max(seen) == 4
    assert parts.batch.ids.tolist() == whole.batch.ids.tolist()
    assert parts.tensors.keys() == whole.tensors.keys()
    for name, values in whole.tensors.items():
        torch.testing.assert_close(parts.tensors[name], values)


def test_the_ratio_may_be_off_by_less_than_its_limit():
    """Or every ratio could begin outside of a narrow one."""
    generator = Toy()
    algorithm = GRPO(generator, replace(CONFIG, clip=1e-9))
    experience = algorithm.collect(batch(), Red(), 0)
    generator.move(1e-8)
    algorithm.loss(experience)
    (look,) = experience.looks
    with pytest.raises(RatioError, match=r"expected 1 before the first update, got 0\.99999"):
        look()


def test_one_part_of_a_mixture_may_be_dead():
    """Equal values of one part everywhere: the others still rank."""
    reward = Mixture({"a": (Given([0.1, 0.3, 0.5, 0.9]), 1.0), "b": (Given([2.0] * 4), 1.0)})
    found = GRPO(Toy(), replace(CONFIG, group_size=2)).collect(batch(), reward, 0)
    assert [round(a) for a in found.tensors["advantage"].tolist()] == [-1] * 3 + [1] * 3 + [-1] * 3 + [1] * 3


def test_the_map_of_a_mixture_is_that_of_its_last_part():
    class Blue(Red):
        def __call__(self, images):
            return RewardOutput(super().__call__(images).score, images[:, 2:3])

    given = batch()
    parts = {"green": (Green(), 1.0), "blue": (Blue(), 1.0), "red": (Red(), 1.0)}
    scores, faults = scores_and_map(Mixture(parts), given.photo, given)
    torch.testing.assert_close(faults, as_file(given.photo)[:, 2:3])
    torch.testing.assert_close(scores["avg"], 3 * scores["red"])


def test_what_is_scored_is_within_its_range():
    assert as_file(torch.tensor([1.2, -0.1, 0.5])).tolist() == pytest.approx([1, 0, 128 / 255])


def test_maps_are_averaged_to_the_grid_of_the_latents():
    """Of 6 x 6 pixels at 3 x 2 positions; what lies beyond the limit of advantages is cut."""
    algorithm = GRPO(Toy(), replace(CONFIG, group_size=3))
    given = batch().repeat(3)
    options = {"map_weight": 4.0, "keep_dead": False, "at_once": 0}
    results = given.photo + 0.1 * torch.arange(6).view(6, 1, 1, 1)
    found, rows, _ = result_advantages(Green(), results, given, (3, 2), algorithm.groups, clip=1.5, **options)
    images = as_file(results)
    scalar, _ = group_advantages(Green(), {"avg": images[:, 0].mean((1, 2))}, given.ids, 1.5)
    coarse = images[:, 1].unflatten(1, (3, 2)).unflatten(3, (2, 3)).mean((2, 4))[:, None]
    expected = spatial_advantages(scalar, coarse, 3, (3, 2), 4.0)
    assert expected.abs().max() > 1.6
    torch.testing.assert_close(found, expected.clamp(-1.5, 1.5))
    assert rows.tolist() == list(range(6))


def test_options():
    with pytest.raises(ValueError, match=r"noise_level: expected at most 1 for cps, got 1\.5"):
        GRPOConfig(kind="cps", noise_level=1.5)
    with pytest.raises(ValueError, match=r"clip: expected at most 1, .* got 1\.5"):
        GRPOConfig(clip=1.5)
    with pytest.raises(ValueError, match=r"beta: expected 0 or more, got -0\.1"):
        GRPOConfig(beta=-0.1)
    with pytest.raises(ValueError, match="group_size: expected 2 or more"):
        GRPOConfig(group_size=1)
    with pytest.raises(ValueError, match="window: expected steps within 0 to 4, without the last one"):
        GRPOConfig(steps=5, window=(2, 5))


@pytest.mark.parametrize("shared", [False, True])
def test_shared_noise(shared):
    """All results of an image begin at one noise, of other images at others; what the SDE adds is their own."""
    algorithm = GRPO(Toy(), GRPOConfig(steps=3, group_size=3, shared_noise=shared))
    rows = algorithm.collect(batch(2), Red(), 0).tensors
    x, after = (rows[name].unflatten(0, (2, 3, 2)) for name in ("x", "next"))  # image, result, trained step
    assert all(torch.equal(x[:, 0, 0], x[:, k, 0]) == shared for k in (1, 2))
    assert not torch.equal(x[0, 0, 0], x[1, 0, 0])
    assert not torch.equal(after[:, 0, 0], after[:, 1, 0])

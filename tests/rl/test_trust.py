"""Limits of the ratio and what stands beside Eq. 6: by value against their formulas written out, and by differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from finpercep.rl.batch import Batch
from finpercep.rl.grpo import GRPO, GRPOConfig
from finpercep.rl.trust import guarded, kept, limited_loss, norm_hinge, spread
from tests.rl.test_grpo import flow_grpo_step
from tests.rl.toy import Red, Toy, batch, check_gradient

CONFIG = GRPOConfig(steps=4, group_size=3, micro_batch=18)


def collected(config, by=0.02, seed=0):
    """Algorithm and experience; the generator has moved since."""
    generator = Toy()
    algorithm = GRPO(generator, config, seed)
    experience = replace(algorithm.collect(batch(), Red(), 0), fresh=False)
    generator.move(by)
    return algorithm, experience


def written_out(generator, experience, config):
    """Of each row: log p, log p_old, μ, μ_old and σ, by flow_grpo's formulas."""
    rows, found = experience.tensors, []
    for i in range(len(experience)):
        one = slice(i, i + 1)
        s, s_next = float(rows["s"][i]), float(rows["s_next"][i])
        x, after = rows["x"][one], rows["next"][one]
        answers = []
        for model in (generator, generator.reference[0]):  # before it moved it was the reference
            v = model.velocity(x, torch.tensor([s]), model.condition(experience.batch[one]))
            log_prob, mean, std = flow_grpo_step(v, x, after, s, s_next, config.noise_level, 0.75)
            answers += [log_prob, mean]
        found.append((answers[0], answers[2], answers[1], answers[3], std * math.sqrt(s - s_next)))
    return found


def test_guard():
    """Flow-Factory's GRPO-Guard: ρ = exp((log p - log p_old)·σ + mean|μ - μ_old|²/(2σ))."""
    config = replace(CONFIG, limit="guard", clip=2e-3)
    algorithm, experience = collected(config)
    terms, losses, ratios = algorithm.loss(experience), [], []
    for i, (new, old, mean, old_mean, sigma) in enumerate(written_out(algorithm.generator, experience, config)):
        ratio = torch.exp((new - old) * sigma + (mean - old_mean).square().mean() / (2 * sigma))
        advantage = experience.tensors["advantage"][i]
        losses.append(torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - 2e-3, 1 + 2e-3)))
        ratios.append(float(ratio.detach()))
    torch.testing.assert_close(terms["loss"], torch.cat(losses).mean())
    assert any(abs(ratio - 1) > 2e-3 for ratio in ratios)
    assert any(0 < abs(ratio - 1) < 2e-3 for ratio in ratios)


def test_what_guard_leaves():
    """mean(ε·(μ - μ_old)): of x' = μ_old + σ·ε nothing else is left."""
    draw = torch.Generator().manual_seed(0)
    old, new, noise = (torch.randn(1, 48, generator=draw, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.3], dtype=torch.float64)
    x = old + sigma * noise

    def log_prob(mean):
        return (-((x - mean) ** 2) / (2 * sigma**2)).mean(1)

    first, second = guarded(log_prob(new), log_prob(old), (new - old).square().mean(1), sigma)
    torch.testing.assert_close(first - second, (noise * (new - old)).mean(1))


def test_a_step_without_noise_has_no_limit():
    """σ = 0: the ratio is 1 and nothing is divided by it. Of kind "flow" √(-dt) is left out of std, of others not."""
    one, gap, sigma = torch.ones(1), torch.full((1,), 0.5), torch.zeros(1)
    first, second = guarded(one, one, gap, sigma)
    assert (first.item(), second.item()) == (0.25, 0.0)
    assert kept(one + 1, one, one, gap, sigma, 1.0).item() == 1
    assert kept(one + 1, one, one, gap, sigma, 0.2).item() == 0
    std, s, s_next = torch.tensor([0.6]), torch.tensor([0.75]), torch.tensor([0.5])
    found = [spread(kind, std, s, s_next).item() for kind in ("flow", "cps", "dance")]
    assert found == pytest.approx([0.3, 0.6, 0.6])


def test_dppo_does_not_clip():
    """Ratios of 1.5 and 0.5 near where they were sampled: -1·1.5 and 1·0.5, however narrow the clip."""
    log_prob, advantage = torch.tensor([1.5, 0.5]).log(), torch.tensor([1.0, -1.0])
    given = log_prob, torch.zeros(2), advantage, torch.zeros(2), torch.ones(2)
    loss, _ = limited_loss("dppo", *given, clip=0.1, bound=0.1, kl=None, beta=0.0)
    assert loss.item() == pytest.approx((-1.5 + 0.5) / 2)
    loss, _ = limited_loss("clip", *given, clip=0.1, bound=0.1, kl=None, beta=0.0)
    assert loss.item() == pytest.approx((-1.1 + 0.9) / 2)


def test_dppo():
    """Rows whose divergence is beyond the bound teach nothing where they would go on; no ratio is clipped."""
    config = replace(CONFIG, limit="dppo", divergence=2e-4)
    algorithm, experience = collected(config)
    losses, masked = [], 0
    for i, (new, old, mean, old_mean, sigma) in enumerate(written_out(algorithm.generator, experience, config)):
        ratio, advantage = torch.exp(new - old), experience.tensors["advantage"][i]
        far = float((mean - old_mean).square().mean() / (2 * sigma**2)) > 2e-4
        further = (advantage > 0 and ratio > 1) or (advantage < 0 and ratio < 1)
        masked += bool(far and further)
        losses.append(-advantage * ratio * (0.0 if far and further else 1.0))
    assert 0 < masked < len(losses)
    torch.testing.assert_close(algorithm.loss(experience)["loss"], torch.cat(losses).mean())


@pytest.mark.parametrize("limit", ["guard", "dppo"])
def test_gradient(limit):
    algorithm, experience = collected(replace(CONFIG, limit=limit, clip=0.05, divergence=2e-4, beta=0.1))
    check_gradient(algorithm.generator, lambda: algorithm.loss(experience)["loss"])


@pytest.mark.parametrize("limit", ["guard", "dppo"])
def test_ratio_is_one_before_the_first_update(limit):
    algorithm = GRPO(Toy(), replace(CONFIG, limit=limit))
    assert float(algorithm.loss(algorithm.collect(batch(), Red(), 0))["ratio"]) == 1.0


def test_std_weight():
    """Advantages times std_t/mean(std_t) of the three trained steps of each sample."""
    plain, weighted = (GRPO(Toy(), replace(CONFIG, std_weight=on)).collect(batch(), Red(), 0) for on in (False, True))
    std = torch.tensor([0.7 * math.sqrt(s / (1 - min(s, 0.75))) for s in (1.0, 0.75, 0.5)])
    expected = plain.tensors["advantage"].view(-1, 3) * (std / std.mean()).double()
    torch.testing.assert_close(weighted.tensors["advantage"].view(-1, 3), expected.to(weighted.tensors["advantage"]))


@pytest.mark.parametrize(("window", "sliding"), [((1, 2), 0), ((0, 3), 1)])
def test_std_weight_where_one_step_is_trained(window, sliding):
    """The mean is over all steps but the last: a window of one step is weighed, too."""
    config = replace(CONFIG, window=window, sliding=sliding)
    std = torch.tensor([0.7 * math.sqrt(s / (1 - min(s, 0.75))) for s in (1.0, 0.75, 0.5)])
    plain, weighted = (
        GRPO(Toy(), replace(config, std_weight=on)).collect(batch(), Red(), 0).tensors["advantage"]
        for on in (False, True)
    )
    torch.testing.assert_close(weighted, plain * float(std[window[0]] / std.mean()))


def test_norm_hinge_by_hand():
    """|v| = 5 against 4, and 3 against 4: (1/4 + 0)/2."""
    v = torch.tensor([[3.0, 4.0], [0.0, 3.0]])
    reference = torch.tensor([[0.0, 4.0], [4.0, 0.0]])
    assert float(norm_hinge(v, reference)) == pytest.approx(0.125)
    assert float(norm_hinge(torch.zeros(2, 2), torch.zeros(2, 2))) == 0  # a last layer that begins at 0


def test_norm_and_photo_terms():
    """Both are added by their weights; the term on photos has seeds of its own for each row."""
    config = replace(CONFIG, norm_weight=2.0, photo_weight=0.5)
    algorithm, experience = collected(config, 0.2)
    plain = collected(CONFIG, 0.2)
    terms = algorithm.loss(experience)
    rows = experience.tensors
    at = rows["x"], rows["s"], algorithm.generator.condition(experience.batch)
    lengths = [
        ask(*at).flatten(1).norm(dim=1)
        for ask in (algorithm.generator.velocity, algorithm.generator.reference_velocity)
    ]
    hinge = torch.relu(lengths[0] / lengths[1] - 1).mean()
    assert float(hinge) > 0
    torch.testing.assert_close(terms["norm_loss"], hinge.detach())
    assert len(set(rows["seed"].tolist())) == len(experience)
    assert set(rows["seed"].tolist()).isdisjoint(algorithm.collect(batch(), Red(), 1).tensors["seed"].tolist())
    expected = plain[0].loss(plain[1])["loss"] + 2.0 * hinge + 0.5 * terms["photo_loss"]
    torch.testing.assert_close(terms["loss"], expected)
    again = torch.stack([algorithm.loss(part)["photo_loss"] for part in experience.parts(1)]).mean()
    torch.testing.assert_close(terms["photo_loss"], again)
    check_gradient(algorithm.generator, lambda: algorithm.loss(experience)["loss"])
    with pytest.raises(ValueError, match="photo_weight: expected photos"):
        algorithm.collect(Batch(batch().lr, batch().ids), Red(), 0)


def test_options():
    with pytest.raises(ValueError, match="limit: expected one of clip, guard, dppo, got 'kl'"):
        GRPOConfig(limit="kl")
    with pytest.raises(ValueError, match="limit: expected clip or dppo with kind cps"):
        GRPOConfig(limit="guard", kind="cps")
    with pytest.raises(ValueError, match="norm_weight: expected 0 or more, got -1"):
        GRPOConfig(norm_weight=-1.0)

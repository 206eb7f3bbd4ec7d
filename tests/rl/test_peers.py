"""Against peers: what their own code made of shared tensors, once, is in peers.json, with repository and commit.

Log-probabilities, losses with their gradients, and advantages. Where a peer counts otherwise, the test says how.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from finpercep import ops
from finpercep.rewards import Mixture
from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import mix
from finpercep.rl.dpo import DPO, DPOConfig
from finpercep.rl.experience import Experience
from finpercep.rl.grpo import GRPO, GRPOConfig
from finpercep.rl.nft import NFT, NFTConfig
from tests.rl.toy import Given

PEERS = json.loads((Path(__file__).parent / "peers.json").read_text())
CLOSE = {"atol": 1e-6, "rtol": 1e-5}


def given(name):
    """A tensor that the peers were given; those of images have their shape."""
    values = torch.tensor(PEERS["inputs"][name])
    return values.view(PEERS["shape"]) if values.numel() == math.prod(PEERS["shape"]) else values


def found(values):
    return torch.tensor(values).view(PEERS["shape"])


def named(row):
    return "-".join(str(row[name]) for name in ("source", "kind", "error", "aggregation", "scale", "s") if name in row)


class Told:
    """A generator that answers what it is told to, one call after the other."""

    def __init__(self, velocities, references):
        self.velocities, self.references = iter(velocities), iter(references)

    def condition(self, batch):
        return None

    def velocity(self, x, s, condition):
        return next(self.velocities)

    def reference_velocity(self, x, s, condition):
        return next(self.references)


def experience(**rows):
    """Rows that have been trained on before: no ratio has to be 1."""
    count = PEERS["shape"][0]
    return Experience(Batch(torch.zeros(count, 3, 1, 1), torch.arange(count)), rows, fresh=False)


def test_where_the_figures_are_from():
    assert sorted(PEERS["sources"]) == ["DiffusionNFT", "Flow-Factory", "diffusers", "flow_grpo"]
    assert all(len(source["commit"]) == 40 for source in PEERS["sources"].values())


@pytest.mark.parametrize("peer", PEERS["steps"], ids=named)
def test_steps(peer):
    """Flow-Factory's Dance-SDE names the noise level alone as its std; ours has the step's length in it."""
    step = ops.sde_step(
        given("velocity"),
        given("x"),
        peer["s"],
        peer["s_next"],
        noise_level=peer["noise_level"],
        next_sample=given("next"),
        kind=peer["kind"],
    )
    torch.testing.assert_close(step.log_prob, torch.tensor(peer["log_prob"]), **CLOSE)
    torch.testing.assert_close(step.mean, found(peer["mean"]), **CLOSE)
    length = math.sqrt(peer["s"] - peer["s_next"]) if peer["kind"] == "dance" else 1.0
    torch.testing.assert_close(step.std, length * torch.tensor(peer["std"]), **CLOSE)


def grpo(peer, **options):
    """Algorithm, rows, and the velocity that has the gradient."""
    v, old = given("velocity").requires_grad_(), given("old_velocity")
    levels = {name: torch.full((len(v),), peer[name]) for name in ("s", "s_next")}
    taken = {"x": given("x"), "next": given("next"), **levels}
    before = ops.sde_step(old, given("x"), peer["s"], peer["s_next"], next_sample=given("next"), noise_level=0.7)
    rows = experience(
        **taken,
        old_log_prob=torch.tensor(peer["old_log_prob"]),
        old_mean=before.mean,
        advantage=given("advantage").clamp(-peer["advantage_clip"], peer["advantage_clip"]),
    )
    config = GRPOConfig(noise_level=peer["noise_level"], clip=peer["clip"], **options)
    return GRPO(Told([v], [given("reference_velocity")]), config), rows, v


def test_flow_grpo():
    """Its divergence leaves out the length of the step, which the variance of the transition has."""
    peer = PEERS["grpo"]
    length = peer["s"] - peer["s_next"]
    algorithm, rows, v = grpo(peer, beta=peer["beta"] * length)
    terms = algorithm.loss(rows)
    assert float(terms["policy_loss"]) == pytest.approx(peer["policy_loss"], rel=1e-5)
    assert float(terms["kl_loss"]) * length == pytest.approx(peer["kl_loss"], rel=1e-5)
    assert float(terms["loss"].detach()) == pytest.approx(peer["loss"], rel=1e-5)
    assert 0 < float(terms["clipfrac"]) < 1
    terms["loss"].backward()
    torch.testing.assert_close(v.grad, found(peer["gradient"]), **CLOSE)


@pytest.mark.parametrize(("name", "limit"), [("factory_grpo", "clip"), ("guard", "guard")])
def test_flow_factory(name, limit):
    peer = PEERS[name]
    algorithm, rows, v = grpo(peer, limit=limit)
    terms = algorithm.loss(rows)
    assert float(terms["loss"].detach()) == pytest.approx(peer["policy_loss"], rel=1e-5)
    assert 0 < float(terms["clipfrac"]) < 1
    terms["loss"].backward()
    torch.testing.assert_close(v.grad, found(peer["gradient"]), **CLOSE)


@pytest.mark.parametrize("peer", PEERS["dpo"], ids=named)
def test_dpo(peer):
    """Diffusers has no ½ before its beta: the figures of its run at 1.5 are those of β = 3."""
    s = torch.full((PEERS["shape"][0],), 0.5)
    rows = {"win": given("x0"), "lose": given("lose"), "epsilon": given("noise"), "s": s}
    predictions = [given(name).requires_grad_() for name in ("velocity", "lose_velocity")]
    references = [given(name) for name in ("reference_velocity", "lose_reference")]

    def velocities(answers):
        """Answers of a model that predicts what the peer's does."""
        if peer["error"] == "velocity":
            return answers
        at = [mix(rows[name], rows["epsilon"], s) for name in ("win", "lose")]
        return [(answer - x) / 0.5 for answer, x in zip(answers, at, strict=True)]

    algorithm = DPO(
        Told(velocities(predictions), velocities(references)), DPOConfig(beta=peer["beta"], error=peer["error"])
    )
    terms = algorithm.loss(experience(**rows))
    assert float(terms["loss"].detach()) == pytest.approx(peer["loss"], rel=1e-5)
    assert float(terms["implicit_acc"]) == peer["accuracy"]
    terms["loss"].backward()
    gradients = torch.tensor(peer["gradient"]).view(2, *PEERS["shape"])
    for prediction, gradient in zip(predictions, gradients, strict=True):
        torch.testing.assert_close(prediction.grad, gradient, **CLOSE)


@pytest.mark.parametrize("peer", PEERS["nft"], ids=named)
def test_nft(peer):
    clip, v = peer["advantage_clip"], given("velocity").requires_grad_()
    share = 0.5 + given("advantage").clamp(-clip, clip) / clip / 2
    if "share" in peer:
        torch.testing.assert_close(share, torch.tensor(peer["share"]), **CLOSE)
    s = given("levels")
    x = mix(given("x0"), given("noise"), s)
    config = NFTConfig(mix=peer["mix"], advantage_clip=clip, reference_weight=peer["reference_weight"])
    algorithm = NFT(Told([v], [given("reference_velocity")]), config)
    terms = algorithm.loss(experience(x0=given("x0"), x=x, s=s, old=given("old_velocity"), share=share))
    assert float(terms["loss"].detach()) == pytest.approx(peer["loss"], rel=1e-5)
    terms["loss"].backward()
    torch.testing.assert_close(v.grad, found(peer["gradient"]), **CLOSE)


@pytest.mark.parametrize("peer", PEERS["advantages"], ids=named)
def test_advantages(peer):
    """GDPO divides the sum of the normalized rewards by its spread over the batch at the end; a `Mixture` does not, so
    that the weights decide how much there is to learn, and not how alike the parts' orders are."""
    scores = {name: given(name).double() for name in ("first", "second")}
    where = {"group_ids": given("ids"), "eps": peer["eps"]}
    kind = peer.get("aggregation")
    if kind == "gdpo":
        reward = Mixture({name: (Given([]), weight) for name, weight in peer["weights"].items()})
        sum_of_parts, _ = reward.advantages(scores, **where)
        advantages = (sum_of_parts - sum_of_parts.mean()) / sum_of_parts.std(correction=0)
        assert float(sum_of_parts.std(correction=0)) != pytest.approx(1, abs=0.1)
    else:
        parts = [scores["first"]] if kind is None else [peer["weights"][name] * scores[name] for name in scores]
        advantages, _ = ops.group_advantage(torch.stack(parts).sum(0), scale=peer["scale"], **where)
    torch.testing.assert_close(advantages, torch.tensor(peer["advantages"], dtype=torch.float64), **CLOSE)

"""The mean over views by value: what a view is, its gradient, its map, and that a seed decides."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finpercep.data import RandomJPEG
from finpercep.models import RewardOutput
from finpercep.rewards import Augmented, LRConsistency, Mixture, augmented
from tests.rewards.conftest import Brightness

PLAIN = {"shift": 0, "scale": (1, 1), "noise": 0}


class Prompted(Brightness):
    takes = ("prompts",)


class Curved(nn.Module):
    """A smooth score that is no mean, so that shifts, sizes and noise change it; no map."""

    fingerprint = "curved"

    def forward(self, images: Tensor) -> RewardOutput:
        rows = torch.linspace(0.5, 2.5, images.shape[-2], dtype=images.dtype).sin()[:, None]
        return RewardOutput((images.pow(3) * rows).flatten(1).mean(1), None)


def test_without_changes_it_is_the_reward_itself(images):
    inner = Prompted()
    output = Augmented(inner, views=1, **PLAIN)(images)
    assert torch.equal(output.score, inner(images).score)
    assert torch.equal(output.map, images[:, :1])
    assert Augmented(Prompted(with_map=False), **PLAIN)(images).map is None


def test_is_the_mean_of_its_views_made_by_hand(images):
    reward = Augmented(Curved(), views=3, shift=4, scale=(0.7, 1.3), noise=2.0, seed=5)
    views = reward.draw(20, 10, 5)
    assert len({(view.top, view.left, view.size) for view in views}) == 3
    scores = []
    for top, left, size, seed in views:
        x = F.pad(images, (left, 4 - left, top, 4 - top), mode="reflect")
        assert torch.equal(x[..., top : top + 20, left : left + 10], images)
        x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))
        scores.append(Curved()((x + noise * 2 / 255).clamp(0, 1)).score)
    assert not torch.allclose(scores[0], scores[1])
    torch.testing.assert_close(reward(images).score, torch.stack(scores).mean(0))


def test_a_change_is_made_last_by_the_seed_of_the_view(images):
    """JPEG of another quality in each view; by hand, and with a gradient."""
    change = RandomJPEG(40, 90)
    reward = Augmented(Curved(), views=3, **PLAIN, change=change)
    images = images.requires_grad_()
    views = [change(images, view.seed) for view in reward.draw(20, 10, 0)]
    assert not torch.equal(views[0], views[1])
    torch.testing.assert_close(reward(images).score, torch.stack([Curved()(view).score for view in views]).mean(0))
    reward(images).score.sum().backward()
    assert images.grad.abs().min() > 0
    prints = {Augmented(Curved(), change=one).fingerprint for one in (None, change, RandomJPEG())}
    assert len(prints) == 3


def test_views_stay_within_their_bounds(images):
    reward = Augmented(Prompted(), views=200, shift=3, scale=(0.5, 1.5))
    views = reward.draw(40, 60, 0)
    assert {view.top for view in views} == {view.left for view in views} == {0, 1, 2, 3}
    heights, widths = ([view.size[axis] for view in views] for axis in (0, 1))
    assert 0.5 * 43 - 1 < min(heights) < 0.55 * 43
    assert 1.45 * 63 < max(widths) < 1.5 * 63 + 1
    assert all(abs(view.size[0] / 43 - view.size[1] / 63) < 0.03 for view in views)  # one factor for both sides


def test_noise_has_the_given_size():
    class Last(Prompted):
        def forward(self, images: Tensor, **context: object) -> RewardOutput:
            self.seen = images
            return super().forward(images)

    inner = Last()
    Augmented(inner, views=1, shift=0, scale=(1, 1), noise=3.0)(torch.full((2, 3, 64, 64), 0.5))
    levels = (inner.seen - 0.5) * 255
    assert levels.std().item() == pytest.approx(3, abs=0.05)
    assert torch.equal(levels[0], levels[1])  # images of a batch are compared under the same views


def test_a_seed_decides(images):
    reward = Augmented(Curved(), shift=4, seed=1)
    state = torch.get_rng_state()
    first = reward(images).score
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(reward(images).score, first)
    assert torch.equal(reward(images[1:2]).score, first[1:2])  # alone as in a batch
    other = reward(images, seed=2).score
    assert not torch.allclose(other, first)
    assert torch.equal(Augmented(Curved(), shift=4, seed=2)(images).score, other)


@pytest.mark.parametrize(
    "changes",
    [PLAIN, {"shift": 4}, {"scale": (0.6, 0.9)}, {"scale": (1.2, 1.5)}, {"noise": 1.0}, {"shift": 4, "noise": 1.0}],
)
def test_gradient_is_that_of_finite_differences(changes, monkeypatch):
    """But for the rounding to 8 bits, which the gradient passes unchanged."""
    monkeypatch.setattr(augmented, "as_stored", lambda images: images)
    generator = torch.Generator().manual_seed(3)
    images = 0.2 + 0.6 * torch.rand(2, 3, 9, 7, dtype=torch.float64, generator=generator)
    reward = Augmented(Curved(), views=2, **{**PLAIN, **changes})
    x = images.clone().requires_grad_()
    reward(x).score.sum().backward()
    for _ in range(3):
        way = torch.randn(images.shape, dtype=torch.float64, generator=generator)
        ahead, behind = (reward(images + step * way).score.sum() for step in (1e-5, -1e-5))
        assert ((ahead - behind) / 2e-5).item() == pytest.approx((x.grad * way).sum().item(), rel=1e-6)
    assert x.grad.abs().min() > 0


def test_what_no_file_holds_moves_no_score(images):
    """Noise and resizes would carry it past the rounding of the reward inside."""
    generator = torch.Generator().manual_seed(2)
    between = (images + 0.49 / 255 * (2 * torch.rand(images.shape, generator=generator) - 1)).requires_grad_()
    stored = images.clone().requires_grad_()
    for options in ({"shift": 4}, {"shift": 4, "change": RandomJPEG()}, PLAIN):
        reward = Augmented(Curved(), **options)
        found, expected = reward(between).score, reward(stored).score
        torch.testing.assert_close(found, expected, atol=0, rtol=0)
        inside = ((between > 0) & (between < 1)).detach()
        grads = (torch.autograd.grad(score.sum(), x)[0] for score, x in ((found, between), (expected, stored)))
        torch.testing.assert_close(*(grad[inside] for grad in grads), atol=0, rtol=0)


@pytest.mark.parametrize("scale", [(1, 1), (0.8, 1.2)])
def test_map_lies_on_the_image(scale):
    spot = torch.zeros(1, 3, 64, 48)
    spot[..., 20:30, 6:14] = 1
    for seed in range(4):
        found = Augmented(Prompted(), views=1, shift=12, scale=scale, noise=0, seed=seed)(spot).map
        assert found.shape == (1, 1, 64, 48)
        if scale == (1, 1):
            assert torch.equal(found, spot[:, :1])
        assert (found - spot[:, :1]).abs()[..., 21:29, 7:13].max() < 0.2
        mass = found[0, 0]
        rows = (mass.sum(1) * torch.arange(64)).sum() / mass.sum()
        columns = (mass.sum(0) * torch.arange(48)).sum() / mass.sum()
        assert (rows.item(), columns.item()) == pytest.approx((24.5, 9.5), abs=0.3)


def test_passes_on_what_the_reward_takes(images):
    inner = Prompted()
    reward = Augmented(inner)
    assert reward.takes == ("prompts",)
    reward(images, lr=images, prompts=["", "", ""])
    assert inner.given == ["prompts"]
    assert Augmented(Curved()).takes == ()


def test_fingerprint_names_the_reward_and_every_option():
    first = Augmented(Prompted())
    options = [{"views": 3}, {"shift": 6}, {"scale": (0.9, 1.2)}, {"noise": 0.5}, {"seed": 1}]
    prints = {Augmented(Prompted(), **option).fingerprint for option in options}
    assert len(prints | {first.fingerprint, Augmented(Curved()).fingerprint}) == 7
    usual = {"views": 4, "shift": 7, "scale": (0.8, 1.2), "noise": 1.0, "change": None, "seed": 0}
    assert first.fingerprint == Augmented(Prompted(), **usual).fingerprint


def test_errors(images):
    endless = ({"scale": (1, math.inf)}, {"noise": math.inf})
    for options in ({"views": 0}, {"shift": -1}, {"scale": (1.2, 0.8)}, {"scale": (0, 1)}, {"noise": -1}, *endless):
        with pytest.raises(ValueError, match=next(iter(options))):
            Augmented(Prompted(), **options)
    with pytest.raises(ValueError, match="expected sides above shift = 10, got 20x10"):
        Augmented(Prompted(), shift=10)(images)


def test_half_precision_is_seen_in_single(images):
    """Faint noise is less than half a step of bfloat16."""
    reward = Augmented(Curved(), shift=4)
    assert torch.equal(reward(images.bfloat16()).score, reward(images.bfloat16().float()).score)


def test_no_map_where_a_view_has_none(images):
    class Once(Prompted):
        def forward(self, images: Tensor, **context: object) -> RewardOutput:
            output = super().forward(images)
            self.with_map = False
            return output

    assert Augmented(Once(), views=2)(images).map is None


def test_integers_are_refused(images):
    """As floats they would be white nearly everywhere, once clamped."""
    with pytest.raises(TypeError, match=r"^images: expected float in \[0, 1\], got torch.uint8"):
        Augmented(Prompted())((images * 255).to(torch.uint8))


def test_noise_is_kept_for_the_next_call_and_the_oldest_goes(images):
    reward = Augmented(Curved(), views=2, shift=0)
    first = reward(images).score
    kept = {key: noise.data_ptr() for key, noise in reward._noises.items()}
    assert torch.equal(reward(images).score, first)
    assert {key: noise.data_ptr() for key, noise in reward._noises.items()} == kept
    for seed in range(1, 9):
        reward(images, seed=seed)
    assert len(reward._noises) == 8
    assert not kept.keys() & reward._noises.keys()
    assert torch.equal(reward(images).score, first)
    for other in (images[..., :8], images.double()):  # another size, another type: noise of its own
        assert torch.equal(reward(other).score, Augmented(Curved(), views=2, shift=0)(other).score)


class OnCUDA(Tensor):
    """A tensor that says that it is on a GPU."""

    device = torch.device("cuda", 0)


def test_a_graph_keeps_its_noise_and_new_noise_is_refused_in_one(images, monkeypatch):
    """Captured noise must outlive the cache: every replay reads it."""
    monkeypatch.setattr(augmented, "uploaded", lambda values, device: values)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)
    reward, given, captures = Augmented(Curved(), views=1, shift=0), images.as_subclass(OnCUDA), False
    (view,) = reward.draw(20, 10, 0)
    noise = reward._noise_of(view, given)
    captures = True
    assert reward._noise_of(view, given) is noise
    with pytest.raises(RuntimeError, match=r"^images: expected a size and a seed that were called before"):
        reward._noise_of(view._replace(seed=view.seed + 1), given)
    captures = False
    for seed in range(9):
        reward._noise_of(view._replace(seed=seed), given)
    assert reward._noise_of(view, given) is noise


def test_a_reward_that_takes_the_low_resolution_image_is_refused():
    """The views are shifted and resized, the low-resolution image would not be."""
    mixture = Mixture({"look": (Curved(), 1.0), "source": (LRConsistency(), 1.0)})
    for reward in (LRConsistency(), mixture):
        message = (
            f'^reward: expected one that does not take "lr".*, got {type(reward).__name__}; augment the other part'
        )
        with pytest.raises(ValueError, match=message):
            Augmented(reward)
    Mixture({"look": (Augmented(Curved()), 1.0), "source": (LRConsistency(), 1.0)})


def test_numbers_of_one_value_are_one_reward(images):
    plain = Augmented(Curved(), views=2, shift=3, seed=5, noise=1)
    same = Augmented(Curved(), views=np.int64(2), shift=np.int64(3), seed=5.0, noise=np.float32(1))
    assert same.fingerprint == plain.fingerprint
    assert torch.equal(same(images).score, plain(images).score)
    with pytest.raises(ValueError, match=r"^shift: expected a whole number, got 2\.5"):
        Augmented(Curved(), shift=2.5)


@pytest.mark.compile
def test_its_gradient_compiles_for_any_number_of_rows(small_model):
    images = torch.rand(3, 3, 64, 64)

    def gradient(reward, rows):
        given = images[:rows].clone().requires_grad_()
        return torch.autograd.grad(reward(given).score.sum(), given)[0]

    reward, compiled = Augmented(small_model, views=2), Augmented(small_model, views=2)
    compiled.compile(dynamic=True, backend="aot_eager")
    for rows in (3, 2):
        torch.testing.assert_close(gradient(compiled, rows), gradient(reward, rows), atol=1e-6, rtol=1e-4)

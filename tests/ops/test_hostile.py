"""The registered operators called directly, past the checks of the public functions: an answer or one line, no crash.

`make sanitize` runs this file under AddressSanitizer and UBSan, where a read past an end is the end.
"""

import pytest
import torch

from tests.ops.direct import OPERATORS, fuzz, is_plain

CALLS = 60


@pytest.fixture
def checked(cpp):
    """The operators of a library that checks what it is given."""
    byte = torch.zeros(1, dtype=torch.uint8)
    try:  # older libraries read, but do not write, three bytes too many
        torch.ops.finpercep.grpo_loss(byte, byte, byte, None, 0.1, 0.1, 0.0)
    except RuntimeError:
        return torch.ops.finpercep
    pytest.fail("the compiled extension is older than these sources; build it again")


@pytest.mark.parametrize("name", OPERATORS)
def test_hostile_arguments(checked, name):
    answers = fuzz(getattr(checked, name), OPERATORS[name], CALLS)
    assert not [answer for answer in answers if not is_plain(answer)]
    assert 0 < answers.count("") < CALLS  # values pass, sizes and types do not


ZEROS, BOTH_FEATURES = torch.zeros, ("reference_features", "distorted_features")
IMAGE, FEATURES = ZEROS(1, 3, 8, 8), ZEROS(1, 2, 4, 4)
BYTES = ZEROS(2, 4, dtype=torch.uint8)
REFUSED = {
    "modulate": [
        ("features: expected float32", {"features": ZEROS(2, 4, 3, dtype=torch.uint8)}),
        ("degradation: expected float32", {"degradation": ZEROS(2, 1, 8, 8, dtype=torch.uint8)}),
        ("degradation: expected .B, 1, H, W. of", {"degradation": ZEROS(3, 1, 8, 8)}),
        ("degradation: expected .B, 1, H, W. of", {"degradation": ZEROS(2, 1, 0, 8), "resample": 1}),
        ("degradation: expected .B, 1, H, W. of", {"degradation": ZEROS(2, 1, 8, 0), "resample": 1}),
        ("features: expected .B, h.w, C.", {"features": ZEROS(8, 3)}),
        ("h, w: expected h.w = 4 tokens", {"h": -2, "w": -2}),
        ("h, w: expected h.w = 0 tokens", {"features": ZEROS(2, 0, 3), "h": 0, "w": 0}),
        ("h, w: expected h.w = 0 tokens", {"features": ZEROS(2, 0, 3), "h": 2**32, "w": 2**32}),
        ("gate: expected an index below 3, got 4294967296", {"gate": 2**32}),
        ("resample: expected an index below 2, got -1", {"resample": -1}),
    ],
    "modulate_backward": [
        ("grad: expected 24 elements, got 1", {"grad": ZEROS(1)}),
        ("grad: wrong dtype", {"grad": ZEROS(2, 4, 3).half()}),
        ("d: expected 8 elements, got 0", {"d": ZEROS(0)}),
        ("d: wrong dtype", {"d": ZEROS(2, 4).half()}),
    ],
    "degradation_target": [
        ("reference: expected float32", {"reference": IMAGE.int(), "distorted": IMAGE.int()}),
        ("reference: expected .B, 3, H, W.", {"reference": ZEROS(1, 3, 8, 0), "distorted": ZEROS(1, 3, 8, 0)}),
        ("distorted: expected the other's shape", {"distorted": ZEROS(2, 3, 8, 8)}),
        ("distorted: wrong dtype", {"distorted": IMAGE.half()}),
        ("reference_features, distorted_features: expected both", {"distorted_features": None}),
        ("reference_features: expected .B, C, h, w.", {"reference_features": ZEROS(1, 2, 0, 4)}),
        ("reference_features: expected .B, C, h, w.", {"reference_features": ZEROS(2, 2, 4, 4)}),
        (
            "reference_features: expected float64 with",
            dict.fromkeys(BOTH_FEATURES, FEATURES.double()),
        ),
        (
            "reference_features: expected float32",
            dict.fromkeys(BOTH_FEATURES, FEATURES.byte()),
        ),
        ("distorted_features: expected the other's shape", {"distorted_features": ZEROS(1, 2, 4, 5)}),
        ("normalize: expected an index below 4, got 4", {"normalize": 4}),
        ("percentile: expected in .0, 1., got 2", {"percentile": 2.0}),
        ("percentile: expected in .0, 1., got nan", {"percentile": float("nan")}),
    ],
    "degradation_target_backward": [
        ("grad: expected 64 elements, got 1", {"grad": ZEROS(1)}),
        ("out: expected 64 elements, got 63", {"out": ZEROS(63)}),
        ("bounds: expected 4 elements, got 0", {"bounds": ZEROS(0)}),
        ("moments: expected 48 elements, got 2", {"moments": ZEROS(2)}),
        ("raw: expected 64 elements, got 0", {"normalize": 2}),
        ("moments: wrong dtype", {"moments": ZEROS(48).half()}),
        ("needs: expected no gradient of uint8", {"reference": IMAGE.byte(), "distorted": IMAGE.byte()}),
        (
            "needs: expected no gradient of features without",
            {"reference_features": None, "distorted_features": None, "moments": ZEROS(0)},
        ),
    ],
    "group_advantage": [
        ("rewards: expected float32", {"rewards": ZEROS(8, dtype=torch.uint8)}),
        ("rewards: expected .N,.", {"rewards": ZEROS(2, 4)}),
        ("group_ids: expected int64, one per reward", {"group_ids": ZEROS(7, dtype=torch.int64)}),
        ("group_ids: expected int64, one per reward", {"group_ids": ZEROS(8)}),
        ("group_size: expected a divisor of 8 rewards, got 0", {"group_size": 0}),
        ("correction: expected 0 or 1, got -9223372036854775808", {"correction": -(2**63)}),
        ("scale: expected an index below 3", {"scale": 3}),
        ("resolution: expected in .0, 1., got 1", {"resolution": 1.0}),
        ("resolution: expected in .0, 1., got -1e-07", {"resolution": -1e-7}),
        ("resolution: expected in .0, 1., got nan", {"resolution": float("nan")}),
    ],
    "grpo_loss": [
        ("log_prob: expected float32", {"log_prob": BYTES}),
        ("old_log_prob: expected float32", {"old_log_prob": BYTES}),
        ("old_log_prob: expected 8 elements, got 7", {"old_log_prob": ZEROS(7)}),
        ("advantages: expected one per element, or per row", {"advantages": ZEROS(4)}),
        ("kl: expected 8 elements, got 1", {"kl": ZEROS(1)}),
        ("log_prob: expected at least one", {"log_prob": ZEROS(0, 3)}),
    ],
    "grpo_loss_backward": [
        ("grad_loss: expected 1 elements, got 0", {"grad_loss": ZEROS(0)}),
        ("grad_loss: wrong dtype", {"grad_loss": ZEROS((), dtype=torch.float64)}),
    ],
    "sde_step": [
        ("sample: expected float32", {"sample": BYTES}),
        ("velocity: expected float32", {"velocity": BYTES}),
        ("velocity: expected 8 elements, got 9", {"velocity": ZEROS(3, 3)}),
        ("noise: expected 8 elements, got 4", {"noise": ZEROS(2, 2)}),
        ("noise: expected it or next_sample", {"next_sample": ZEROS(2, 4)}),
        ("sigma: expected float32 or float64, one per", {"sigma": ZEROS(3)}),
        ("sigma_next: expected float32 or float64", {"sigma_next": ZEROS(2, dtype=torch.int64)}),
        ("kind: expected an index below 3, got 3", {"kind": 3}),
        ("reference_velocity: expected 8 elements", {"reference_velocity": ZEROS(0)}),
        ("positions: expected 0 or a divisor of 4 numbers per sample, got 3", {"positions": 3}),
        ("positions: expected 0 or a divisor of 4 numbers per sample, got 8", {"positions": 8}),
        ("positions: expected 0 or a divisor of 4 numbers per sample, got -4", {"positions": -4}),
    ],
    "sde_step_backward": [
        ("grad_log_prob: expected 2 elements, got 1", {"grad_log_prob": ZEROS(1)}),
        ("grad_kl: wrong dtype", {"grad_kl": ZEROS(2).double()}),
        ("grad_kl: expected only with", {"reference_velocity": None}),
        ("grad_mean: expected 8 elements, got 0", {"grad_mean": ZEROS(0)}),
        ("next_sample: expected 8 elements, got 16", {"next_sample": ZEROS(4, 4)}),
        ("grad_log_prob: expected 4 elements, got 2", {"positions": 2}),
        ("positions: expected 0 or a divisor of 4 numbers per sample, got 5", {"positions": 5}),
    ],
}


def given(names, *values):
    return dict(zip(names.split(), values, strict=True))


PAIR, LEVELS, TOKENS, MAP = ZEROS(2, 4), ZEROS(2), ZEROS(2, 4, 3), ZEROS(2, 1, 8, 8)
IMAGES = given("reference distorted reference_features distorted_features", IMAGE, IMAGE, FEATURES, FEATURES)
SIGMAS = given("sigma sigma_next", LEVELS + 0.8, LEVELS + 0.7)
OPTIONS = given("kind exact_kl noise_level sigma_max", 0, True, 0.7, 0.98)
GRID = given("h w gate resample pool", 2, 2, 0, 0, False)
RATIOS = given("log_prob old_log_prob advantages", PAIR, PAIR, LEVELS)
TAKEN = {
    "modulate": given("features degradation", TOKENS, MAP) | GRID,
    "modulate_backward": given("grad features degradation d", TOKENS, TOKENS, MAP, ZEROS(2, 4))
    | GRID
    | given("need_features need_map", True, True),
    "degradation_target": IMAGES | given("alpha normalize floor percentile scale", 0.5, 1, 0.01, 0.9, 0.1),
    "degradation_target_backward": given("grad", IMAGE[:, :1])
    | IMAGES
    | given("out bounds moments raw", IMAGE[:, :1], ZEROS(1, 4), ZEROS(1, 3, 4, 4), ZEROS(0))
    | given("alpha normalize floor scale needs", 0.5, 1, 0.01, 0.1, 15),
    "group_advantage": given("rewards group_ids group_size", ZEROS(8), None, 4)
    | given("eps correction scale clip resolution", 1e-4, 0, 0, 0.0, 0.0),
    "grpo_loss": RATIOS | given("kl clip_low clip_high beta", PAIR, 0.1, 0.1, 0.0),
    "grpo_loss_backward": given("grad_loss", ZEROS(())) | RATIOS | given("clip_low clip_high", 0.1, 0.1),
    "sde_step": given("velocity sample", PAIR, PAIR)
    | SIGMAS
    | given("noise next_sample reference_velocity", PAIR, None, PAIR)
    | OPTIONS
    | given("return_mean positions", True, 0),
    "sde_step_backward": given("grad_next_sample grad_mean grad_log_prob grad_kl", PAIR, PAIR, LEVELS, LEVELS)
    | given("velocity sample next_sample", PAIR, PAIR, PAIR)
    | SIGMAS
    | given("reference_velocity", PAIR)
    | OPTIONS
    | given("positions", 0),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_each_refusal_names_its_argument(checked, name):
    operator = getattr(checked, name)
    operator(*TAKEN[name].values())
    for message, changed in REFUSED[name]:
        with pytest.raises(RuntimeError, match=f", {message}") as caught:
            operator(*(TAKEN[name] | changed).values())
        assert len(str(caught.value).splitlines()) == 1

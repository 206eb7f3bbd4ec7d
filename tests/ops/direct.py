"""Arguments of every registered operator as the dispatcher takes them, without the checks of the public functions."""

from __future__ import annotations

import re

import torch

MODULATE = ("features", "degradation", "h", "w", "gate", "resample", "pool")
TARGET = ("reference", "distorted", "reference_features", "distorted_features", "alpha", "normalize", "floor")


def _integers(generator, low, high, count=1):
    return [int(n) for n in torch.randint(low, high, (count,), generator=generator)]


def modulate(generator):
    batch, h, w, channels, height, width = _integers(generator, 1, 12, 6)
    gate, pool = _integers(generator, 0, 3)[0], _integers(generator, 0, 2)[0]
    resample = _integers(generator, 0, 2)[0]
    features = torch.rand(batch, h * w, channels, generator=generator)
    degradation = torch.rand(batch, 1, height, width, generator=generator)
    return dict(zip(MODULATE, (features, degradation, h, w, gate, resample, bool(pool)), strict=True))


def modulate_backward(generator):
    given = modulate(generator)
    out, d = torch.ops.finpercep.modulate(*given.values())
    features, degradation, *options = given.values()
    names = ("features", "degradation", "d", *MODULATE[2:], "need_features", "need_map")
    return {"grad": out, **dict(zip(names, (features, degradation, d, *options, True, True), strict=True))}


def degradation_target(generator):
    batch, height, width, channels, h, w = _integers(generator, 1, 12, 6)
    reference, distorted = (torch.rand(batch, 3, height, width, generator=generator) for _ in range(2))
    features = [torch.randn(batch, channels, h, w, generator=generator) for _ in range(2)]
    normalize = _integers(generator, 0, 4)[0]
    given = dict(zip(TARGET, (reference, distorted, *features, 0.25, normalize, 0.01), strict=True))
    return {**given, "percentile": 0.9, "scale": 0.1}


def degradation_target_backward(generator):
    given = degradation_target(generator)
    saved = torch.ops.finpercep.degradation_target(*given.values())
    tensors = {name: given[name] for name in TARGET[:4]}
    saved = dict(zip(("out", "bounds", "moments", "raw"), saved, strict=True))
    options = {name: given[name] for name in ("alpha", "normalize", "floor", "scale")}
    return {"grad": torch.rand(saved["out"].shape, generator=generator), **tensors, **saved, **options, "needs": 15}


def group_advantage(generator):
    size, groups = _integers(generator, 1, 30, 2)
    rewards = torch.rand(size * groups, generator=generator)
    ids = torch.randint(-3, 4, rewards.shape, generator=generator) if groups % 2 else None
    options = {"eps": 1e-4, "correction": 0, "scale": size % 3, "clip": 5.0, "resolution": 1e-3}
    return {"rewards": rewards, "group_ids": ids, "group_size": size, **options}


def grpo_loss(generator):
    samples, steps = _integers(generator, 1, 70, 2)
    log_prob, old, kl = (0.1 * torch.randn(samples, steps, generator=generator) for _ in range(3))
    advantages = torch.randn(samples, generator=generator)
    tensors = {"log_prob": log_prob, "old_log_prob": old, "advantages": advantages, "kl": kl}
    return {**tensors, "clip_low": 0.2, "clip_high": 0.3, "beta": 0.1}


def grpo_loss_backward(generator):
    given = grpo_loss(generator)
    del given["kl"], given["beta"]
    return {"grad_loss": torch.ones(()), **given}


def sde_step(generator):
    batch, side, kind, draws, positions = _integers(generator, 1, 9, 5)
    velocity, sample, other, reference = (torch.randn(batch, 4, side, side, generator=generator) for _ in range(4))
    outcome = {"noise": None, "next_sample": other} if draws % 2 else {"noise": other, "next_sample": None}
    tensors = {
        "velocity": velocity,
        "sample": sample,
        "sigma": torch.full((batch,), 0.8),
        "sigma_next": torch.tensor(0.7),
    }
    options = {"kind": kind % 3, "exact_kl": True, "noise_level": 0.7, "sigma_max": 0.98}
    last = {"return_mean": True, "positions": side * side if positions % 2 else 0}
    return {**tensors, **outcome, "reference_velocity": reference, **options, **last}


def sde_step_backward(generator):
    given = sde_step(generator)
    other = given.pop("noise")
    given["next_sample"] = other if given["next_sample"] is None else given["next_sample"]
    del given["return_mean"]
    like, batch = given["sample"], given["sample"].shape[0]
    grads = {"grad_next_sample": torch.ones_like(like), "grad_mean": torch.ones_like(like)}
    scalars = {"grad_log_prob": torch.ones(batch, max(1, given["positions"])), "grad_kl": torch.ones(batch)}
    order = ("velocity", "sample", "next_sample", "sigma", "sigma_next", "reference_velocity")
    rest = ("kind", "exact_kl", "noise_level", "sigma_max", "positions")
    return {**grads, **scalars, **{name: given[name] for name in (*order, *rest)}}


OPERATORS = {
    make.__name__: make
    for make in (
        *(modulate, modulate_backward, degradation_target, degradation_target_backward),
        *(group_advantage, grpo_loss, grpo_loss_backward, sde_step, sde_step_backward),
    )
}

_INTEGERS = (-(2**63), -1, 0, 1, 2, 3, 7, 100, 2**20 + 1, 2**31, 2**32, 2**62, 2**63 - 1)
_NUMBERS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-320, 1e30, -1e308)
_DTYPES = (
    torch.uint8,
    torch.int64,
    torch.int32,
    torch.bool,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float32,
)


def _pick(generator, among):
    return among[int(torch.randint(0, len(among), (), generator=generator))]


def _hostile_tensor(generator, tensor):
    """Other values, another size, another type, another layout; or nothing at all."""
    kind = _pick(generator, ("value", "value", "size", "type", "layout", "empty"))
    if kind == "value" and tensor.numel():
        changed = tensor.clone(memory_format=torch.contiguous_format)
        if tensor.dtype == torch.bool:
            return torch.full(tensor.shape, _pick(generator, (2, 128, 255)), dtype=torch.uint8).view(torch.bool)
        value = _pick(generator, _NUMBERS if tensor.is_floating_point() else _INTEGERS)
        limits = torch.finfo(tensor.dtype) if tensor.is_floating_point() else torch.iinfo(tensor.dtype)
        if not abs(value) <= limits.max and abs(value) < float("inf"):
            value = limits.max if value > 0 else limits.min
        one = int(torch.randint(0, tensor.numel(), (), generator=generator))
        changed.view(-1)[_pick(generator, (one, slice(one, None)))] = value
        return changed
    if kind == "type":
        return tensor.to(_pick(generator, _DTYPES))
    if kind == "empty" or not tensor.dim():
        return tensor.new_empty(_pick(generator, ((0,), (0, 0, 0, 0), (0, *tensor.shape[1:]), (*tensor.shape, 0))))
    axis = int(torch.randint(0, tensor.dim(), (), generator=generator))
    if kind == "size":
        length = _pick(generator, (0, 1, tensor.shape[axis] - 1, tensor.shape[axis] + 1, 2 * tensor.shape[axis]))
        index = torch.arange(max(length, 0)) % max(tensor.shape[axis], 1)
        return tensor.index_select(axis, index) if tensor.shape[axis] else tensor
    strided = tensor.repeat_interleave(2, axis).movedim(axis, 0)[::2].movedim(0, axis)
    return _pick(generator, (strided, tensor.flip(axis), tensor.transpose(0, -1), tensor.unsqueeze(0)))


def hostile(generator, given):
    """`given` with one or two arguments that no public function would pass on."""
    changed = dict(given)
    for _ in range(int(torch.randint(1, 3, (), generator=generator))):
        name = _pick(generator, tuple(given))
        value = changed[name]
        if isinstance(value, torch.Tensor):
            changed[name] = _hostile_tensor(generator, value)
        elif isinstance(value, bool):
            changed[name] = not value
        elif isinstance(value, int):
            changed[name] = _pick(generator, _INTEGERS)
        elif isinstance(value, float):
            changed[name] = _pick(generator, _NUMBERS)
    return changed


def fuzz(operator, make, calls):
    """What hostile arguments are answered by: a message, or "" for a result. None may end the process."""
    generator = torch.Generator().manual_seed(0)
    answers = []
    for _ in range(calls):
        given = make(generator)
        operator(*given.values())  # as it is, it is taken
        try:
            operator(*hostile(generator, given).values())
            answers.append("")
        except RuntimeError as error:
            answers.append(str(error))
    return answers


def is_plain(answer):
    """A result, or one line that says what was expected of which argument."""
    return re.fullmatch(r"(.*: (expected |wrong dtype).*)?", answer) is not None

"""`load_reward`: a reward from its name."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

from torch import nn

from finpercep.io.hub import check_hub_options
from finpercep.io.modules import imported
from finpercep.models import load_base
from finpercep.rewards.adapters import FunctionReward, PyIQAReward
from finpercep.rewards.mixture import Mixture
from finpercep.rewards.protocol import Reward, check_higher_better
from finpercep.rewards.remote import RemoteReward

PLUS = " + "
"""Between the parts of a mixture: blanks around it, as names of folders may have a plus."""
WEIGHT = re.compile(r"\s*([+-]?[0-9.]+(?:e[+-]?[0-9]+)?)\s*\*\s*", re.IGNORECASE)


def load_reward(spec: str | Path, *, device: str = "cpu", **hub_options: Any) -> Reward:
    """A reward by its name, without gradients to its weights.

    - ``finpercep-tiny``, a folder, or a hub id: a `RewardModel`, or a `CLIPIQA` where the files are one;
    - ``http://host:port``: what `finpercep serve` serves there, with its map if it has one, see `RemoteReward`;
    - ``pyiqa:NAME``: a no-reference metric of pyiqa, see `PyIQAReward`;
    - ``module:name``: an object of a module that can be imported. A scoring function (first argument
      `images`) is taken as flow_grpo's, see `FunctionReward`. Any other function is called, with `device=` where it has
      such an argument, and gives a reward or a scoring function;
    - ``finpercep-tiny + 0.5*pyiqa:musiq``: the `Mixture` of several, each with its weight (1 where none is named).

    Args:
        device: where the reward is to be.
        hub_options: for downloads, where the name needs one, see `RewardModel.from_pretrained`.

    Raises:
        ImportError: pyiqa, or the module, is missing.
        ValueError: a name that names nothing; the nearest known one is suggested. An object with `lower_better`. A
            mixture with a part twice, or with a weight that is not positive.
        TypeError: an option that no download has.
    """
    check_hub_options(hub_options)
    if _is_mixture(spec):
        weights = weights_by_name(spec)
        return Mixture({name: (load_reward(name, device=device, **hub_options), w) for name, w in weights.items()})
    kind, colon, rest = str(spec).partition(":")
    if kind in ("http", "https") and colon:
        return RemoteReward(str(spec), maps="auto")
    if ("*" in str(spec) or ("+" in str(spec) and not colon)) and not _exists(spec):
        raise ValueError(f"{spec}: no such reward; several are written 'A + 0.5*B', with blanks around each plus")
    if kind == "pyiqa" and colon:
        return PyIQAReward(rest).requires_grad_(False).to(device)
    if colon and rest and not _exists(spec):
        return _own(kind, rest, device)
    return load_base(spec, **hub_options).requires_grad_(False).to(device)


def weights_by_name(spec: str | Path) -> dict[str, float]:
    """The parts of a mixture with their weights; of any other name itself, with weight 1. Nothing is loaded.

    Raises:
        ValueError: a part twice, none between two plus signs, or a weight that is no number.
    """
    if not _is_mixture(spec):
        return {str(spec): 1.0}
    weights: dict[str, float] = {}
    for term in str(spec).split(PLUS):
        found = WEIGHT.match(term)
        number, name = (found[1], term[found.end() :].strip()) if found else ("1", term.strip())
        if not name or name in weights:
            raise ValueError(f"{spec}: expected each part once, got {name!r}{' twice' if name else ''}")
        try:
            weights[name] = float(number)
        except ValueError:
            raise ValueError(f"{spec}: expected a number before *, got {number!r}") from None
    return weights


def _is_mixture(spec: str | Path) -> bool:
    return PLUS in str(spec) and not _exists(spec)


def _exists(spec: str | Path) -> bool:
    return os.path.exists(os.path.expanduser(spec))


def _own(module: str, name: str, device: str) -> Reward:
    spec, reward = f"{module}:{name}", imported(module, name)
    if not _is_reward(reward):
        reward = _made(reward, spec, device)
    if isinstance(reward, nn.Module):
        reward = reward.eval().requires_grad_(False).to(device)
    if _is_reward(reward):
        check_higher_better(reward, spec)
        return reward
    if callable(reward):
        _check_scoring(_signature(reward), spec)
        return FunctionReward(reward, spec)
    raise ValueError(f"{spec}: expected a reward or a scoring function, got {type(reward).__name__}")


def _made(value: Any, spec: str, device: str) -> Any:
    """What a function of a module gives; a scoring function is taken as it is."""
    if not callable(value):
        raise ValueError(f"{spec}: expected a reward or a function, got {type(value).__name__}")
    try:
        signature = _signature(value)
        if "images" in list(signature.parameters)[:1] or isinstance(value, nn.Module):
            return value
        options = {"device": device} if "device" in signature.parameters else {}
        signature.bind(**options)
    except (TypeError, ValueError) as error:  # other arguments; a built-in without a signature
        raise ValueError(f"{spec}: expected a function of images, or one that needs none but device: {error}") from None
    return value(**options)


def _signature(value: Any) -> inspect.Signature:
    """Of what is called; of a module its `forward`."""
    return inspect.signature(value.forward if isinstance(value, nn.Module) else value)


def _check_scoring(signature: inspect.Signature, spec: str) -> None:
    """Refuse a scoring function that could not be called.

    Raises:
        ValueError: it does not take what flow_grpo's are given.
    """
    try:
        signature.bind("images", "prompts", "metadata")
    except TypeError as error:
        raise ValueError(
            f"{spec}: expected a scoring function (images, prompts, metadata) -> (scores, info), got {signature}: "
            f"{error}"
        ) from None


def _is_reward(value: Any) -> bool:
    return not isinstance(value, type) and callable(value) and hasattr(value, "fingerprint")

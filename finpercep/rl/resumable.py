"""Which settings of a run may change when it is resumed, and which may not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finpercep.rl.config import RLConfig
from finpercep.runs.state import check_settings

# They change no weights and no other figure, only save memory, or say where something lies. Of data, which may have
# moved, there is a fingerprint. Decoding in tiles does give other images, and a jump in the figures: a run that had no
# memory for the whole can go on by it.
_FREE = ("data", "out", "save_every", "keep", "device", "accept_reward", "max_skipped")
_FREE_OF_MONITORS = ("alarm", "climb", "metrics")
_FREE_OF_GENERATOR = ("checkpointing", "decode")
_FREE_OF_ALGORITHM = ("rollout_batch",)


def comparable(config: RLConfig) -> dict[str, Any]:
    """What must not change when a run is resumed, with tuples as a state file gives them back."""
    settings = asdict(config) | {"kind": type(config.algorithm).__name__}
    settings["algorithm"] = _without(settings["algorithm"], _FREE_OF_ALGORITHM)
    settings["monitors"] = _without(settings["monitors"], _FREE_OF_MONITORS)
    settings["generator_options"] = _kept_options(settings["generator_options"])
    return _without(settings, _FREE)


def check_resumable(was: dict[str, Any], now: dict[str, Any], config: RLConfig, folder: Path) -> None:
    """`check_settings`; where states are older than fingerprints of data, of the names of the folders.

    A setting that is younger than the state had its default, wherever it stands; a judge was the present one. With
    `accept_reward`, rewards and judge were the present ones.

    Args:
        was: settings of the state, as `comparable` gave them then, and the run's fingerprints.
        now: the same of the present run.
        config: of the present run.
        folder: of the checkpoint, for the message.

    Raises:
        ValueError: names what differs.
    """
    if "data_fingerprint" not in was:
        now = {**now, "data": config.data, "data_fingerprint": None}
    defaults = comparable(RLConfig(algorithm=type(config.algorithm)()))
    if was.get("kind") != defaults["kind"]:  # its options have other names
        del defaults["algorithm"]
    if "judge_fingerprint" not in was and "judge_fingerprint" in now:
        was = {**was, "judge_fingerprint": now["judge_fingerprint"]}
    refresh = was.get("refresh", {})
    if refresh.get("every") and "first_stage" not in refresh and len(was["stages"]) > 1:
        was = {**was, "refresh": {**refresh, "first_stage": 0}}  # which was no setting then: all stages were refreshed
    was = _completed(_without(was, ("max_skipped",)), defaults)
    was |= {
        "monitors": _without(was["monitors"], _FREE_OF_MONITORS),
        "generator_options": _kept_options(was["generator_options"]),
    }
    if was.get("generator_fingerprint") == now.get("generator_fingerprint"):  # which has the side in pixels, if any
        was["generator_options"]["shift_side"] = now["generator_options"]["shift_side"]
    if config.accept_reward:
        was = _with_rewards_of(now, was)
    try:
        check_settings(was, now, folder)
    except ValueError as error:
        scores = ("reward_fingerprints", "judge_fingerprint")
        if all(was.get(name) == now.get(name) for name in scores):
            raise
        raise ValueError(f"{error}; accept_reward=true goes on with other rewards or another judge") from None


def changed_rewards(
    state: dict[str, Any],
    rewards: Sequence[str],
    now: dict[str, Any],
    config: RLConfig,
    steps: int,
    folder: Path,
) -> set[str]:
    """Which of "rewards" and "judge" are others than in a state: what the former ones gave is not to be compared with.

    Args:
        state: that was saved, with "step", "settings" and the fingerprints of its "rewards".
        rewards: fingerprints of the stages' rewards now, as refreshed as they were then.
        now: settings, as `check_resumable` takes them.
        config: of the present run.
        steps: of the whole curriculum.
        folder: of the checkpoint, for messages.

    Raises:
        ValueError: nothing allows other rewards, or no step is left for them.
    """
    found = set[str]()
    if list(rewards) != state["rewards"]:
        if not config.accept_reward:
            raise ValueError(
                f"{folder}: expected rewards {', '.join(state['rewards'])} as they were saved, got "
                f"{', '.join(rewards)}; accept_reward=true goes on with them"
            )
        found.add("rewards")
    judge = now["judge_fingerprint"]
    if state["settings"].get("judge_fingerprint", judge) != judge:
        found.add("judge")
    if found and state["step"] >= steps:
        raise ValueError(
            f"{folder}: expected steps that are left for other rewards, got a run that has ended; begin "
            "another one, whose generator is this one's folder generator/"
        )
    return found


def _without(settings: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _kept_options(options: dict[str, Any]) -> dict[str, Any]:
    """The generator's: of a cache, whether there is one."""
    kept = _without(options, _FREE_OF_GENERATOR)
    return kept | {"cache": bool(kept.get("cache"))}


def _with_rewards_of(now: dict[str, Any], was: dict[str, Any]) -> dict[str, Any]:
    """Settings `was` as if its stages had had the rewards of `now`, and its judge."""
    stages = [{**old, "reward": new["reward"]} for old, new in zip(was["stages"], now["stages"], strict=False)]
    same: dict[str, Any] = {name: now[name] for name in ("reward_fingerprints", "judge_fingerprint") if name in now}
    judge = {**was["monitors"], "judge": now["monitors"]["judge"]}
    return {**was, **same, "monitors": judge, "stages": (*stages, *was["stages"][len(stages) :])}


def _completed(was: Any, default: Any) -> Any:
    """Settings with the defaults of those that are missing; of a list, each has those of the default's first."""
    if isinstance(was, dict) and isinstance(default, dict):
        return default | {name: _completed(value, default.get(name)) for name, value in was.items()}
    if isinstance(was, (list, tuple)) and isinstance(default, (list, tuple)) and default:
        return type(was)(_completed(value, default[0]) for value in was)
    return was

"""What a run says at its start: consequences of its settings that may not have been meant."""

from __future__ import annotations

import math
from collections.abc import Mapping

from finpercep.rl.generators import GeneratorConfig
from finpercep.rl.generators.latent import LatentGenerator
from finpercep.rl.grpo import GRPOConfig
from finpercep.rl.refl import ReFLConfig
from finpercep.rl.sde_rollout import step_stds
from finpercep.rl.trainer import RLTrainer

FEW = 4
"""Held-out photos with whose spread hardly a change can be told from chance."""
LOUD, SPREAD = 4, 0.5
"""Noise of a random step is too much from so many times the level behind it on, where it is no less than half of what
images in [-1, 1] or latents vary by."""


def remarks(trainer: RLTrainer, before: Mapping[str, float]) -> list[str]:
    """Lines for the log and the screen.

    Args:
        trainer: of the run, before its first step.
        before: figures of the measurement before training; empty in a run that goes on.
    """
    lines = of_data(trainer) + of_options(trainer) + of_settings(trainer) + of_algorithm(trainer) + of_refresh(trainer)
    return lines + of_target(trainer, before)


def of_settings(trainer: RLTrainer) -> list[str]:
    """What follows from the settings, and may not have been meant."""
    config, lines = trainer.config, []
    if trainer.kept:
        lines.append(f"latents of {trainer.kept} images are kept: these are used as they are, never mirrored or turned")
    held = len(trainer.held_out.batch)
    if held < config.eval_photos:
        lines.append(
            f"{held} photos are held out, of {config.eval_photos} that eval_photos asks for: there are no more"
        )
    if config.monitors.alarm == "off":
        return lines
    if held == 1:
        lines.append("one held-out photo is too few for the alarm; see eval_photos")
    elif held < FEW:
        lines.append(f"{held} held-out photos are few for the alarm, which compares with their spread")
    apart = config.monitors.patience * config.eval_every
    if 0 < config.refresh.every <= apart:
        lines.append(
            f"the alarm compares measurements {apart} steps apart by one version of the reward, which is refreshed "
            f"every {config.refresh.every}: once it has been, the alarm cannot go off; raise refresh.every, or lower "
            "eval_every or monitors.patience"
        )
    return lines


def of_data(trainer: RLTrainer) -> list[str]:
    """What some images bring, and a batch can therefore not have."""
    brought = {name for pair in trainer.crops.pairs for name in pair.extras}
    unused = sorted(brought - set(trainer.crops.extras))
    return [f"{', '.join(unused)}: not used, since some images of data have none"] if unused else []


def of_options(trainer: RLTrainer) -> list[str]:
    """Options of pipelines that were set for another generator, which takes none but the prompt, for rewards."""
    if isinstance(trainer.generator, LatentGenerator):
        return []
    usual, given = vars(GeneratorConfig()), vars(trainer.config.generator_options)
    unused = [name for name, value in given.items() if value != usual[name] and name != "prompt"]
    what = f"no effect on {trainer.config.generator}, which is no pipeline of diffusers"
    return [f"{', '.join(f'generator_options.{name}' for name in unused)}: {what}"] if unused else []


def of_algorithm(trainer: RLTrainer) -> list[str]:
    """Steps of Flow-GRPO that add more noise than the rest can remove, and limits that are never reached."""
    config, algorithm = trainer.config, trainer.config.algorithm
    if not isinstance(algorithm, GRPOConfig):
        return []
    lines, (first, end) = [], algorithm.trained
    levels = trainer.generator.steps(algorithm.steps).s
    deviations = step_stds(levels, noise_level=algorithm.noise_level, kind=algorithm.kind)
    for number in range(first, end):
        if deviations[number] > max(LOUD * levels[number + 1], SPREAD):
            lines.append(
                f"step {number} of the sampler, in algorithm.window, adds noise of {deviations[number]:.2f} where the "
                f"next one expects {levels[number + 1]:.2f}: results keep it; leave the step out of the window"
            )
    if algorithm.limit != "clip" and config.updates == 1:
        lines.append(f"algorithm.limit={algorithm.limit} limits nothing with updates=1, where every ratio is 1")
    return lines


def of_refresh(trainer: RLTrainer) -> list[str]:
    """Which stages' rewards are not refreshed, of a run that refreshes some."""
    if trainer.refresh is None:
        return []
    reasons = {True: "before refresh.first_stage", False: "no RewardModel"}
    left = [
        f"stage {number} ({stage.reward}, {reasons[number < trainer.config.first_refreshed]})"
        for number, stage in enumerate(trainer.config.stages)
        if not trainer.refreshes(number)
    ]
    return [f"not refreshed: {', '.join(left)}"] if left else []


def of_target(trainer: RLTrainer, before: Mapping[str, float]) -> list[str]:
    """That ReFL takes rewards above its target for good enough, where the run begins with such."""
    algorithm, reward = trainer.config.algorithm, before.get("eval/reward_avg", -math.inf)
    if not isinstance(algorithm, ReFLConfig) or algorithm.weighting != "relu" or reward < algorithm.target:
        return []
    return [
        f"the reward is {reward:.4g} before training, and from algorithm.target={algorithm.target:g} on nothing is "
        "learned from it; raise the target, or set algorithm.weighting=identity"
    ]

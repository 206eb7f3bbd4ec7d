"""Settings of a run of reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from finpercep.data.degradations.config import DegradationConfig
from finpercep.rl.checks import above_zero, at_least_one, not_negative, share
from finpercep.rl.curriculum import CurriculumConfig
from finpercep.rl.dpo import DPOConfig
from finpercep.rl.generators import GeneratorConfig
from finpercep.rl.grpo import GRPOConfig
from finpercep.rl.monitors import SSIM_SIDE, MonitorConfig
from finpercep.rl.nft import NFTConfig
from finpercep.rl.refl import ReFLConfig
from finpercep.rl.refresh import RefreshConfig

AlgorithmConfig = ReFLConfig | DPOConfig | GRPOConfig | NFTConfig
KINDS: Mapping[str, type] = {"refl": ReFLConfig, "dpo": DPOConfig, "grpo": GRPOConfig, "nft": NFTConfig}
SEEDS = (-(2**63), 2**64 - 1)
"""The least and the largest seed of torch's generators."""


@dataclass(frozen=True)
class StageConfig:
    """One stage: R_k = λ1·S + λ2·(1 - max̂(M)) of a reward by name; see `load_reward` and `StageReward`.

    Of a `Mixture` it is the mixture of its parts' R_k, each of which algorithms with groups normalize in its groups.

    Attributes:
        reward: name, folder, hub id, pyiqa:NAME, http://… or module:name, or several: `A + 0.5*B`; see `load_reward`.
        steps: of training.
        lr: learning rate at the stage's first step, from where it falls to 0 along a cosine.
        score_weight, map_weight: λ1 and λ2.
        maximum, fraction, temperature: max̂, see `StageReward`.

    Raises:
        ValueError: an option out of its range.
    """

    reward: str = "finpercep-tiny"
    steps: int = 10_000
    lr: float = 1e-5
    score_weight: float = 0.5
    map_weight: float = 0.5
    maximum: str = "worst"
    fraction: float = 0.01
    temperature: float = 0.05

    def __post_init__(self) -> None:
        at_least_one(self, "steps")
        not_negative(self, "lr", "score_weight", "map_weight")
        if not self.score_weight + self.map_weight:
            raise ValueError("score_weight, map_weight: expected one of them above 0, got 0 and 0")


@dataclass(frozen=True)
class RLConfig:
    """One run; written to `<out>/rl.json`.

    Attributes:
        data: folders with an index.jsonl whose scenes have photos and low-resolution images, data sets, `photos:DIR` or
            `lr:DIR`, see `load_pairs`.
        out: the run's folder: the generator, metrics.jsonl, pictures, and the state to resume from.
        generator: name, folder, hub id or module:Class, see `load_generator`.
        generator_options: what of it is trained, and how it is sampled, where it is a pipeline of diffusers.
        algorithm: options of ReFL, DPO, GRPO or NFT; their type is the choice.
        stages: of the curriculum.
        curriculum: how one stage's reward becomes the next one's.
        refresh: when and how the reward model learns from what the generator makes.
        monitors: what is measured beside the reward, and the alarm.
        batch: low-quality images in a step.
        side: of the crops of photos, pixels.
        degraded: share of the low-resolution images that are made on the fly by the degradation pipeline.
        degradation: options of that pipeline; photos without a low-resolution version get theirs by it, too.
        updates: of the weights for each collection; its rows are divided among them.
        weight_decay: of AdamW.
        max_norm: to which the gradient is limited.
        max_skipped: steps in a row that are skipped because no group's rewards differ; so many are an error.
        ema: decay of the moving average of the weights, which is what is measured and saved; 0 is none.
        compile: run the generator's networks and the rewards by `torch.compile`; the first steps then take minutes.
        shard: divide the frozen weights of a pipeline with adapters among the processes (FSDP2).
        keep: checkpoints that are kept, the last ones.
        save_every: steps between checkpoints.
        accept_reward: go on from a checkpoint though the stages' rewards, or the judge, are other ones than they were.
        dev_every: hold out every n-th training photo, measure on those, and leave `val` unseen, as whoever chooses
            settings needs it; 0 measures on `val`.
        eval_every: steps between measurements on held-out photos.
        eval_photos: how many photos they use.
        eval_steps: of the sampler, when measuring.
        seed: of all that is drawn.
        device: cpu, cuda, cuda:1, …

    Raises:
        ValueError: an option out of its range, or two that do not go together.
    """

    data: tuple[str, ...] = ()
    out: str = "runs/rl"
    generator: str = "finpercep-sr-tiny"
    generator_options: GeneratorConfig = field(default_factory=GeneratorConfig)
    algorithm: AlgorithmConfig = field(default_factory=ReFLConfig)
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    monitors: MonitorConfig = field(default_factory=MonitorConfig)
    batch: int = 4
    side: int = 96
    degraded: float = 0.5
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    updates: int = 1
    weight_decay: float = 1e-4
    max_norm: float = 1.0
    max_skipped: int = 10
    ema: float = 0.0
    compile: bool = False
    shard: bool = False
    keep: int = 2
    save_every: int = 50
    accept_reward: bool = False
    dev_every: int = 0
    eval_every: int = 50
    eval_photos: int = 16
    eval_steps: int = 3
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if isinstance(self.data, str):
            raise ValueError(f"data: expected several folders, as in ({self.data!r},), got a text")
        counts = ("batch", "updates", "keep", "save_every", "eval_every", "eval_photos", "eval_steps", "max_skipped")
        at_least_one(self, *counts)
        if self.side < SSIM_SIDE:
            raise ValueError(f"side: expected at least {SSIM_SIDE}, the window of SSIM, got {self.side}")
        share(self, "degraded")
        not_negative(self, "weight_decay")
        above_zero(self, "max_norm")
        if not SEEDS[0] <= self.seed <= SEEDS[1]:
            raise ValueError(f"seed: expected -2**63 to 2**64 - 1, which torch takes, got {self.seed}")
        if not self.stages:
            raise ValueError("stages: expected at least one, got none")
        if self.dev_every == 1 or self.dev_every < 0:
            raise ValueError(f"dev_every: expected 0 or at least 2, got {self.dev_every}")
        if self.curriculum.switch == "auto" and not self.dev_every:
            raise ValueError(
                "curriculum.switch: auto decides by held-out photos, which must not be those of val: expected dev_every"
                " of 2 or more, got 0"
            )
        least = self.curriculum.patience * self.eval_every
        if self.curriculum.switch == "auto" and 0 < self.refresh.every <= least:
            raise ValueError(
                "refresh.every: expected more than the steps over which auto compares one version of the reward, "
                f"{least}, got {self.refresh.every}"
            )
        if self.refresh.every and self.refresh.first_stage >= len(self.stages) > 1:
            raise ValueError(
                f"refresh.first_stage: expected at most {len(self.stages) - 1}, the last stage, got "
                f"{self.refresh.first_stage}"
            )
        if self.accept_reward and self.refresh.every:
            raise ValueError(
                "accept_reward: expected refresh.every 0, as refreshed rewards are part of a checkpoint, got "
                f"{self.refresh.every}"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected 0 to below 1, got {self.ema}")
        if self.generator_options.dtype == "float16":
            raise ValueError(
                "generator_options.dtype: expected float32 or bfloat16 for training, got float16, in which small "
                "gradients become 0; losses are not scaled against that"
            )
        if self.shard:
            _check_shard(self)

    @property
    def given_pairs(self) -> bool:
        """Whether the data bring the results that are compared, so that a step samples nothing."""
        return isinstance(self.algorithm, DPOConfig) and self.algorithm.pairs == "given"

    @property
    def across(self) -> bool:
        """Whether processes divide the results of each image, rather than the images."""
        return isinstance(self.algorithm, (GRPOConfig, NFTConfig)) and self.algorithm.across

    @property
    def first_refreshed(self) -> int:
        """The first stage whose reward is refreshed, if it can be; of a run of one stage that one."""
        return min(self.refresh.first_stage, len(self.stages) - 1)

    @property
    def results(self) -> int:
        """How many a step has, of all processes; of ReFL, and of given pairs, one for each image."""
        if isinstance(self.algorithm, ReFLConfig) or self.given_pairs:
            return self.batch
        return self.batch * self.algorithm.group_size


def _check_shard(config: RLConfig) -> None:
    """Refuse what could have processes call sharded networks unequally often, or has not been tried with them."""
    options = config.algorithm
    if isinstance(options, DPOConfig) and options.pairs == "reward":
        raise ValueError("shard: expected refl, grpo, nft, or dpo with pairs given; dpo drops ties by reward")
    if isinstance(options, (GRPOConfig, NFTConfig)) and not options.keep_dead:
        raise ValueError("shard: expected algorithm.keep_dead true, so that all processes have equally many rows")
    if config.compile:
        raise ValueError("shard: expected compile false, got true")


def check_updates(config: RLConfig, processes: int) -> None:
    """Refuse more updates of the weights than a step has micro-batches, each of which is learned from once.

    Args:
        config: of the run.
        processes: among which a step's images, or the results of each, are divided.

    Raises:
        ValueError: there would be fewer than `updates` says.
    """
    options, rows = config.algorithm, config.batch
    if isinstance(options, (GRPOConfig, NFTConfig)):
        rows *= options.group_size
    if isinstance(options, GRPOConfig):
        first, last = options.trained
        rows *= options.sliding or last - first
    rows //= processes
    parts = -(-rows // options.micro_batch)
    if config.updates > parts:
        raise ValueError(
            f"updates: expected at most {parts}, one for each micro-batch of a step's {rows} rows, got "
            f"{config.updates}; lower algorithm.micro_batch"
        )


def check_held(config: RLConfig, count: int) -> None:
    """Refuse "auto" where no difference of so many held-out photos could be told from chance.

    Raises:
        ValueError: there is one.
    """
    if config.curriculum.switch == "auto" and count < 2:
        raise ValueError(
            "curriculum.switch: auto decides by differences over held-out photos: expected at least 2 of them, got "
            f"{count}; see eval_photos and dev_every"
        )


def check_photos(options: AlgorithmConfig, found: bool) -> None:
    """Refuse a term on photos without one among the images that are trained on.

    Raises:
        ValueError: names the setting.
    """
    if isinstance(options, ReFLConfig) and options.pretrain:
        name, off = "pretrain", "false"
    elif isinstance(options, GRPOConfig) and options.photo_weight:
        name, off = "photo_weight", "0"
    else:
        return
    if not found:
        raise ValueError(
            f"algorithm.{name}: expected photos beside the low-resolution images that are trained on, got none; or set "
            f"it to {off}"
        )

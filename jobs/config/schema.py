"""All settings of a run: a frozen dataclass per stage, and `Config` with all of them (presets: jobs/config/presets)."""

import re
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, ClassVar

from egic.errors import UserError
from egic.metrics import measures
from egic.metrics.pretrained import BACKBONES
from egic.networks.codec import CodecConfig
from egic.networks.discriminator import DiscriminatorConfig
from egic.training.crops import CropConfig
from egic.training.optimizers import OPTIMIZERS
from egic.training.steps import GanLoss
from jobs.config.flags import alias
from jobs.storage.files import check_spelling, is_remote


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)


TRAINED = ("segmentation", "mse-codec", "gan", "orp")
"""Names of the stages that train, each after the stages that it starts from."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Length, learning rate, and intervals between metrics and checkpoints of one stage."""

    batch_parts: ClassVar[int] = 1
    """Parts into which a step divides its batch, each of which is shared among all workers."""

    steps: int
    """Optimizer steps of the stage, the only clock."""
    batch: int = 16
    """Pictures per step, over all workers. Default: EGIC's (section 4)."""
    lr: float = 1e-4
    """Adam's learning rate. Default: EGIC's (section 4); also used for segmentation, whose value is not published."""
    last_lr: float = 1e-5
    """Learning rate of the last steps, independent of lr. Default: EGIC's (section 4)."""
    last_steps: int = 0
    """Number of steps at the end with last_lr. Default: off, since it depends on steps; the paper uses a tenth of
    them."""
    schedule: str = "step"
    """Course of the learning rate: `step` is lr, then last_lr; `linear` rises to lr over the first 300 steps and falls
    linearly to zero at the last one, which gives better weights in short runs. Default: the paper's."""
    optimizer: str = "adam"
    """adam; adamw (Adam with decoupled weight decay of 0.01); or muon (Muon for the weights of linear layers, adamw for
    the rest), which reaches a lower loss in as many steps. Default: the paper's."""
    ema: float = 0.0
    """Decay of an exponential moving average of the trained weights (of g_s alone in the GAN stage) that is validated
    and published in their place (0 = off). Default: off, as in the paper."""
    crop_size: int = 0
    """Side of this stage's crops, in pixels (0 = crop.size). Default: one size for all stages, as in the paper."""
    clip_norm: float = 0.0
    """Largest gradient norm; larger gradients are scaled down to it (0 = off). Default: off, as in the paper; the MSE
    codec's preset has 10 for stable training."""
    log_every: int = 50
    """Steps between two rows of metrics, each the mean over its steps. Default: a round number."""
    checkpoint_every: int = 5000
    """Steps between two checkpoints. Each checkpoint includes validation and pictures of the same weights, except the
    extra one when a run is stopped. Default: a round number; a kill loses at most this many steps."""
    val_samples: int = 512
    """Number of validation crops for each val/ metric (at most all). Default: a round number."""

    def __post_init__(self) -> None:
        name = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(self).__name__.removesuffix("Config")).lower()
        for field_name in ("steps", "batch", "log_every", "checkpoint_every", "val_samples"):
            value = getattr(self, field_name)
            _check(value >= 1, f"{name}.{field_name} is {value}; give 1 or more")
        _check(self.lr > 0 and self.last_lr > 0, f"{name}.lr and last_lr must be positive")
        _check(
            0 <= self.last_steps <= self.steps,
            f"{name}.last_steps is {self.last_steps}, which must lie in 0..steps ({self.steps}); change both",
        )
        _check(self.clip_norm >= 0, f"{name}.clip_norm is {self.clip_norm}; give 0 (off) or a positive norm")
        _check(self.schedule in ("step", "linear"), f"{name}.schedule is {self.schedule!r}; give step or linear")
        _check(self.optimizer in OPTIMIZERS, f"{name}.optimizer is {self.optimizer!r}; give {' or '.join(OPTIMIZERS)}")
        _check(0 <= self.ema < 1, f"{name}.ema is {self.ema}; give 0 (off) or a decay below 1, such as 0.999")
        _check(self.crop_size >= 0, f"{name}.crop_size is {self.crop_size}; give 0 (crop.size) or a size in pixels")

    def lr_at(self, step: int) -> float:
        """Learning rate of the step with this index (0-based)."""
        return self._lr_of_phase(step, self.steps)

    def _lr_of_phase(self, step: int, steps: int) -> float:
        """The learning rate of step `step` of a phase of `steps` steps."""
        if self.schedule == "linear":
            return linear(self.lr, step, steps)
        return self.last_lr if step >= steps - self.last_steps else self.lr


LR_WARMUP_STEPS = 300


def linear(lr: float, step: int, steps: int) -> float:
    """Learning rate that rises to `lr` in LR_WARMUP_STEPS (or a tenth of fewer steps) and falls to zero at `steps`."""
    rise = max(1, min(LR_WARMUP_STEPS, steps // 10))
    return lr * min((step + 1) / rise, (steps - step) / max(1, steps - rise))


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(Training):
    """OASIS-C trained to segment real photographs, so that the GAN stage starts from a pre-trained discriminator."""


@dataclass(frozen=True, kw_only=True)
class MseCodecConfig(Training):
    """SwinT-ChARM trained for rate and distortion: mse255 + beta * bits per image, or for all rates (codec.rates)."""

    beta: float = 0.003
    """Weight of the bits of one crop against mse255: larger is a lower rate. SwinT-ChARM published 0.003 .. 0.0001;
    EGIC's rates around 0.1 bpp need more. It has no effect on a codec with rates, which has a weight for each of them.
    Default: SwinT-ChARM's largest; the presets have 0.01."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.beta > 0, f"mse_codec.beta is {self.beta}; give a positive weight")


@dataclass(frozen=True, kw_only=True)
class GanConfig(Training):
    """g_s alone, first for distortion and LPIPS (warm-up), then also against OASIS-C. `steps` counts both phases."""

    batch_parts: ClassVar[int] = 2
    """One half of a batch is for D, the other for g_s."""

    warmup_steps: int
    """Steps of the warm-up; the others are adversarial, with half of the batch for D and half for g_s."""
    adversarial_lr: float = 1e-5
    """Learning rate of g_s and D in the adversarial phase; lr, last_lr and last_steps belong to the warm-up. Default:
    EGIC's (section 4.2)."""
    loss: GanLoss = field(default_factory=GanLoss)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            0 <= self.warmup_steps <= self.steps,
            f"gan.warmup_steps is {self.warmup_steps}, which must lie in 0..steps ({self.steps}); change both",
        )
        _check(
            self.last_steps <= self.warmup_steps,
            f"gan.last_steps is {self.last_steps}, which must lie in 0..warmup_steps ({self.warmup_steps}); "
            "change both",
        )
        _check(self.batch % 2 == 0, f"gan.batch is {self.batch}; D and g_s need half each: give an even number")

    def lr_at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self._lr_of_phase(step, self.warmup_steps)
        if self.schedule == "linear":
            return linear(self.adversarial_lr, step - self.warmup_steps, self.steps - self.warmup_steps)
        return self.adversarial_lr


@dataclass(frozen=True, kw_only=True)
class OrpConfig(Training):
    """The residual head alone, trained for mse255."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Encode pictures to real files and decode them: one row per picture, quality and alpha."""

    alphas: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Realism of each decoded picture: 0 most faithful, 1 most realistic. Default: both ends and the middle."""
    qualities: tuple[int, ...] = (10, 30, 50, 70, 90)
    """Qualities of the files of a codec with rates, from 0 (the smallest files) to 100; other codecs have one file.
    Default: a curve of five points, as in published BD-rates."""
    max_pictures: int = 500
    """Largest number of pictures, the first ones of the validation set. Default: a round number; it limits the time
    with COCO's 5,000."""
    metrics: tuple[str, ...] = ()
    """Measures: psnr_db (always computed), ms_ssim, lpips_alex, lpips_vgg, dists, fid256, kid256, fid64, kid64. Empty:
    all but the last two (which take three times as long as the others together) whose weights are available or can be
    downloaded; a warning names the others. Default: all that are available."""
    weights: str = ""
    """Folder with weights of the measures' networks, searched before $EGIC_WEIGHTS and the download. Default: none, so
    that no set-up is needed."""
    shown: int = 3
    """Number of pictures whose decoded versions are kept and shown on the sheet. Default: as many as fit on a
    sheet."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.metrics if name not in measures.NAMES]:
            raise UserError(f"evaluate.metrics has {unknown[0]}; choose from {', '.join(measures.NAMES)}")
        _check(self.shown >= 0, f"evaluate.shown is {self.shown}; give 0 or more")
        _check(len(set(self.alphas)) == len(self.alphas), f"evaluate.alphas repeat themselves: {self.alphas}")
        _check(
            bool(self.qualities) and all(0 <= q <= 100 for q in self.qualities)
            and len(set(self.qualities)) == len(self.qualities),
            f"evaluate.qualities must be different whole numbers in 0..100, got {self.qualities}",
        )  # fmt: skip
        inside = bool(self.alphas) and all(0 <= a <= 1 for a in self.alphas)
        _check(inside, f"evaluate.alphas must lie in [0, 1], got {self.alphas}")
        _check(self.max_pictures >= 1, f"evaluate.max_pictures is {self.max_pictures}; give 1 or more")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where a stage runs. These settings change its result only by float rounding."""

    workers: Annotated[int | str, alias("--workers")] = 1
    """Train workers of a stage, which share the batch: a number, or SMALLEST:LARGEST (such as 1:4) for as many as fit
    on the cluster. Such a group shrinks when a node leaves and grows when one joins; batch and learning rate stay the
    same. Default: one, which fits on every machine."""
    use_gpu: bool = False
    """One GPU per worker (nccl); otherwise CPUs (gloo). Default: off, so that it runs everywhere."""
    cpus_per_worker: float = 1.0
    """CPUs that each worker reserves, in addition to the data tasks. Default: a core for the worker's own thread."""
    data_cpus: float = 1.0
    """CPUs that each data task reserves; pictures are decoded and cropped in such tasks. Default: a task that decodes
    keeps one core busy."""
    threads: int = 0
    """Torch threads per worker (0 = the node's cores divided by the workers on it). Default: automatic, so that workers
    do not compete for cores."""
    compile: bool = False
    """Compile the blocks of codec and discriminator with torch.compile, for long runs on GPUs. Default: off, since
    compilation takes a minute or more at every start of a stage."""
    cuda_graphs: bool = True
    """On a GPU with one worker, run each step as a CUDA graph, which is captured once. Default: on, since a full-size
    step then takes half the time or less."""
    max_failures: int = 3
    """Restarts of a stage's workers, each from the last checkpoint, before the stage fails; the announced end of a spot
    node does not count. Default: a round number, small enough that a permanent error ends the run soon."""
    wait_s: float = 0.0
    """Seconds to wait for more nodes when the cluster is too small; they are requested from an autoscaler. Default: no
    wait, so that too large a number is an error at once."""
    grace_s: float = 25.0
    """Seconds that running stages have for a last checkpoint after SIGTERM. Default: below the 30 s of spot nodes and
    Kubernetes."""

    def __post_init__(self) -> None:
        _check(
            bool(re.fullmatch(r"[1-9]\d{0,5}(:[1-9]\d{0,5})?", str(self.workers)))
            and self.min_workers <= self.max_workers,
            f"compute.workers is {self.workers}; give a number, or SMALLEST:LARGEST such as 1:4",
        )
        _check(self.wait_s >= 0, f"compute.wait_s is {self.wait_s}; give 0 or more seconds")
        _check(self.grace_s >= 0, f"compute.grace_s is {self.grace_s}; give 0 or more seconds")
        for name in ("cpus_per_worker", "data_cpus"):
            _check(getattr(self, name) > 0, f"compute.{name} is {getattr(self, name)}; give a positive number")
        _check(self.threads >= 0, f"compute.threads is {self.threads}; give 0 (automatic) or more")
        _check(self.max_failures >= 0, f"compute.max_failures is {self.max_failures}; give 0 or more")

    @property
    def min_workers(self) -> int:
        return int(str(self.workers).partition(":")[0])

    @property
    def max_workers(self) -> int:
        return int(str(self.workers).rpartition(":")[2])

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers follows the nodes that are free."""
        return self.min_workers < self.max_workers


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole pipeline."""

    data: str = ""
    """COCO tree (train2017/, val2017/, annotations/) or JSON file, folder of pictures with label maps and classes.yaml,
    or of photographs alone (enough for mse-codec and orp), several of these separated by commas, or the output of
    `python -m jobs.prepare`, which may be s3://bucket/folder or gs://bucket/folder; empty = drawn scenes, for trying
    things. Default: empty, which needs no download."""
    output: str = "outputs"
    """Checkpoints, prepared data, evaluations and summaries; on a cluster, storage that every node reaches: a shared
    folder, s3://bucket/folder or gs://bucket/folder. Default: a folder beside the code."""
    experiment: str = "egic"
    """MLflow experiment. Default: this project's name."""
    seed: int = 0
    """Seed of sample order, augmentation, noise and initial weights. Default: a round number, not chosen by results."""
    precision: str = "float32"
    """float32, or bfloat16 for transforms, D and LPIPS (rates stay float32). Default: the reference's; the presets for
    GPUs have bfloat16, which is faster there."""
    on_nan: str = "stop"
    """Action after a non-finite loss: stop; or rollback, which resumes from the last checkpoint with half the learning
    rate, at most three times in a stage. Default: stop, since a non-finite loss usually is an error to examine."""
    lpips_net: str = "alex"
    """Backbone of LPIPS in the GAN stage: alex (AlexNet) or vgg (VGG16, whose dense filters see fine textures).
    Default: the reference's."""
    lpips_weights: str = ""
    """Weights of that backbone: a file; empty for alexnet_features.pth or vgg16_features.pth in $EGIC_WEIGHTS, else
    torchvision's download; `local` for $EGIC_WEIGHTS, else a seeded random backbone; `random` for the random one (for
    trying things). Default: the real backbone, which meaningful values need."""
    crop: CropConfig = field(default_factory=CropConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    discriminator: DiscriminatorConfig = field(default_factory=lambda: DiscriminatorConfig(num_categories=0))
    segmentation: SegmentationConfig
    mse_codec: MseCodecConfig
    gan: GanConfig
    orp: OrpConfig
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        check_spelling("data", self.data)
        check_spelling("output", self.output)
        _check(
            not (is_remote(self.data) and "," in self.data),
            f"data is {self.data}; several places must be local folders: prepare them into one with jobs.prepare",
        )
        _check(self.precision in ("float32", "bfloat16"), f"precision is {self.precision!r}; give float32 or bfloat16")
        _check(self.seed >= 0, f"seed is {self.seed}; give 0 or more")
        wanted, given = self.codec.dims[-1], self.discriminator.latent_channels
        _check(given == wanted, f"discriminator.latent_channels is {given}; the codec has {wanted}")
        multiple = max(self.codec.multiple, 2 ** len(self.discriminator.down))
        for name, settings in self.training().items():
            size = self.crop_of(settings).size
            field_name = f"{name}.crop_size" if settings.crop_size else "crop.size"
            _check(size % multiple == 0, f"{field_name} is {size}; these networks need a multiple of {multiple}")
        _check(self.lpips_net in BACKBONES, f"lpips_net is {self.lpips_net!r}; give {' or '.join(BACKBONES)}")
        _check(self.on_nan in ("stop", "rollback"), f"on_nan is {self.on_nan!r}; give stop or rollback")
        workers = self.compute.max_workers
        if not self.compute.is_elastic:  # in an elastic group, surplus workers are idle
            for name, settings in self.training().items():
                batch, unit = settings.batch, settings.batch_parts * workers
                _check(batch % unit == 0, f"{name}.batch is {batch}; {workers} workers need a multiple of {unit}")

    def training(self) -> dict[str, Training]:
        """The settings of every stage that trains, by the name of the field."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Training)}

    def crop_of(self, settings: Training) -> CropConfig:
        """The crop settings of a stage with these settings."""
        return replace(self.crop, size=settings.crop_size or self.crop.size)

"""Complete configurations. Each starts from `paper()` and states only what differs."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

from egic.networks.codec import CodecConfig
from egic.training.crops import CropConfig
from jobs.config.schema import (
    ComputeConfig,
    Config,
    EvaluateConfig,
    GanConfig,
    MseCodecConfig,
    OrpConfig,
    SegmentationConfig,
)

C = TypeVar("C", bound=Config)


def paper() -> Config:
    """The recipe of EGIC's section 4 on COCO 2017: a cluster of GPUs, weeks of GPU time."""
    return Config(
        precision="bfloat16",  # DIFFERS: the reference trains in float32
        segmentation=SegmentationConfig(steps=1_000_000, last_lr=1e-4),
        # beta: not published for EGIC; above SwinT-ChARM's largest, 0.003, since its rates are lower
        mse_codec=MseCodecConfig(steps=1_000_000, last_steps=100_000, clip_norm=10.0, beta=0.01),
        gan=GanConfig(steps=3_000_000, warmup_steps=2_000_000, last_steps=200_000),
        orp=OrpConfig(steps=2_000_000, last_steps=200_000),
        compute=ComputeConfig(workers=8, use_gpu=True, cpus_per_worker=2.0),
    )


def workstation() -> Config:
    """One 24 GB GPU: the full-size networks, a tenth to a fiftieth of the paper's steps per stage."""
    p = paper()
    return replace(
        p,
        segmentation=replace(p.segmentation, steps=50_000),
        mse_codec=replace(p.mse_codec, steps=100_000, last_steps=10_000),
        gan=replace(p.gan, steps=120_000, warmup_steps=80_000, last_steps=10_000, batch=8),
        orp=replace(p.orp, steps=40_000, last_steps=4_000),
        compute=ComputeConfig(workers=1, use_gpu=True, cpus_per_worker=2.0),
    )


def tiny() -> Config:
    """Two CPU cores and a few minutes: every stage, on small networks and 128-pixel crops. For trying things."""
    p = paper()
    rhythm: dict[str, Any] = {"batch": 4, "log_every": 10, "checkpoint_every": 50, "val_samples": 16}
    return replace(
        p,
        precision="float32",
        lpips_weights="local",
        crop=CropConfig(size=128, longer_side=320, small_instance_pixels=1024),
        codec=CodecConfig(
            dims=(32, 32, 64, 64),
            depths=(1, 1, 2, 1),
            window=4,
            hyper_dims=(32, 32),
            hyper_depths=(1, 1),
            hyper_window=2,
            num_slices=4,
        ),  # fmt: skip
        discriminator=replace(p.discriminator, down=(16, 32, 32, 64), up=(64, 32, 32, 16), latent_channels=64),
        segmentation=replace(p.segmentation, steps=100, lr=1e-3, last_lr=1e-3, **rhythm),
        mse_codec=replace(p.mse_codec, steps=450, last_steps=80, lr=5e-4, last_lr=1e-4, **rhythm),
        gan=replace(
            p.gan, steps=170, warmup_steps=120, last_steps=30, lr=5e-4, last_lr=1e-4, adversarial_lr=4e-4, **rhythm
        ),
        orp=replace(p.orp, steps=250, last_steps=100, lr=3e-4, last_lr=5e-5, **rhythm),
        evaluate=EvaluateConfig(max_pictures=16, metrics=("psnr_db", "ms_ssim")),
        # One thread: on two cores, a second one would compete with the data tasks and the other stage.
        compute=ComputeConfig(cpus_per_worker=0.5, data_cpus=0.25, threads=1),
    )


def small() -> Config:
    """The model in the package: 3.3 million parameters, any rate. A day on two CPU cores."""
    p = paper()
    rhythm: dict[str, Any] = {
        "optimizer": "adamw",
        "schedule": "linear",
        "last_steps": 0,
        "clip_norm": 1.0,
        "ema": 0.999,
        "batch": 8,
        "log_every": 20,
        "checkpoint_every": 500,
        "val_samples": 32,
    }
    return replace(
        p,
        codec=CodecConfig(
            dims=(32, 64, 96, 128),
            depths=(2, 2, 4, 2),  # with one block, windows are never shifted, and their borders are visible
            window=8,
            hyper_dims=(64, 64),
            hyper_depths=(1, 1),
            hyper_window=2,
            num_slices=4,
            rates=6,
        ),  # fmt: skip
        discriminator=replace(
            p.discriminator,
            encoder="tf_efficientnet_lite0",
            down=(32, 64, 64, 128, 128, 128),
            up=(128, 128, 128, 64, 64, 32),
            latent_channels=128,
        ),
        segmentation=replace(p.segmentation, steps=5_000, lr=1e-3, **rhythm),
        mse_codec=replace(
            p.mse_codec, steps=25_000, lr=1e-3, crop_size=128, **rhythm | {"batch": 16, "optimizer": "muon"}
        ),
        lpips_net="vgg",
        gan=replace(
            p.gan,
            steps=8_000,
            warmup_steps=6_000,
            lr=5e-4,
            adversarial_lr=3e-4,
            loss=replace(p.gan.loss, k_m=0.0005),  # a sixth of HiFiC's: measured, docs/training.md
            **rhythm | {"optimizer": "muon"},
        ),
        orp=replace(p.orp, steps=3_000, lr=5e-4, **rhythm),
        # On two cores, two workers of one thread take 0.8 of the time of one of two; crops need a tenth of a core.
        compute=ComputeConfig(workers="1:2", cpus_per_worker=0.5, data_cpus=0.5),
    )


PRESETS = {"tiny": tiny, "small": small, "workstation": workstation, "paper": paper}


def extended(make: Callable[[], Config], kind: type[C]) -> Callable[[], C]:
    """A preset as a subclass of Config, whose additional fields have their defaults."""

    def preset() -> C:
        config = make()
        return kind(**{f.name: getattr(config, f.name) for f in fields(config)})

    preset.__doc__ = make.__doc__
    return preset

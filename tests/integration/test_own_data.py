"""A user's own pictures, from the folder to trained networks: label maps with five classes, and photographs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from egic import artifact
from egic.report import panels
from jobs.data.shards import load_manifest
from jobs.data.stream import TrainingSequence, local_stream, validation_batches
from jobs.training import loop
from jobs.training.num_categories import open_fitted
from tests.local_session import LocalSession, components, small
from tests.own_data import write_label_maps, write_photographs

ROOT = Path(__file__).resolve().parents[2]


class DataSession(LocalSession):
    """A session in this process on prepared data."""

    def __init__(self, folder: Path, manifests: dict):
        super().__init__(folder)
        self.manifests = manifests

    def stream(self, config, first_step, settings):
        return local_stream(
            TrainingSequence(
                manifest=self.manifests["train"], crop=config.crop, seed=config.seed, global_batch=settings.batch,
                first_step=first_step, last_step=settings.steps,
            )
        )  # fmt: skip

    def val_batches(self, config, settings):
        return validation_batches(self.manifests["val"], config.crop, settings.val_samples, settings.batch)


def trained(stage: str, config, parts: dict, folder: Path, manifests: dict) -> tuple[Path, dict[str, float]]:
    """Train a stage to its end; returns the folder of its last checkpoint and its last metrics."""
    session = DataSession(folder, manifests)
    loop.train(stage, config, parts, session, {"stage": stage})
    last = session.reports[-1]
    return folder / f"step_{last['step']:06d}", last["rows"][-1]


def configured(stage: str, root: Path, tmp_path: Path, **changes):
    """The tiny preset with a few steps of the stage on this data, and the manifests."""
    config = small(stage, **changes)
    config = replace(
        config, discriminator=replace(config.discriminator, num_categories=0),
        crop=replace(config.crop, longer_side=128), data=str(root), output=str(tmp_path / "out"),
    )  # fmt: skip
    return open_fitted(config, (stage,))


@pytest.mark.usefixtures("one_thread")
def test_label_maps_with_five_classes_train_all_stages_to_the_gan(tmp_path):
    root = write_label_maps(tmp_path / "own", 9)
    config, manifests = configured("segmentation", root, tmp_path, steps=10, checkpoint_every=10)
    folder, metrics = trained("segmentation", config, {}, tmp_path / "segmentation", manifests)
    assert artifact.read_config(folder / "artifact")["discriminator"].num_categories == 5
    assert metrics["val/pixel_accuracy"] > 0.4 and metrics["val/miou"] > 0.1  # chance: at most 0.2
    d = artifact.load(folder / "artifact")["discriminator"]
    assert d.out.out_channels == 7 and d.config.fake == 6
    colours = np.unique(panels.from_png((folder / "segmentation.png").read_bytes()).reshape(-1, 3), axis=0)
    known = panels.label_colours(np.arange(7))
    assert all((colours == c).all(1).any() for c in known[:6])  # void and the five

    config, manifests = configured("gan", root, tmp_path)
    parts = components(config, "codec", "lpips") | {"discriminator": d}
    folder, metrics = trained("gan", config, parts, tmp_path / "gan", manifests)
    assert artifact.read_config(folder / "artifact")["discriminator"].num_categories == 5
    assert all(np.isfinite(v) for v in metrics.values()) and metrics["val/seg"] > 0
    assert metrics["train/d_loss"] > 0  # the adversarial phase was reached


@pytest.mark.usefixtures("one_thread")
def test_photographs_without_labels_train_the_codec(tmp_path):
    root = write_photographs(tmp_path / "mine")
    config, manifests = configured("mse-codec", root, tmp_path)
    folder, metrics = trained("mse-codec", config, {}, tmp_path / "mse", manifests)
    assert np.isfinite(metrics["val/psnr_db"]) and list(artifact.load(folder / "artifact")) == ["codec"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_pipeline_stops_before_labels_are_needed(tmp_path):
    write_photographs(tmp_path / "mine")
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(ROOT / "pipelines" / "full.py"), "tiny", "--data", "mine"]
    refused = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert refused.returncode == 2 and not (tmp_path / "outputs" / "data").exists()
    assert refused.stderr.splitlines()[-1].startswith(
        "error: segmentation and gan learn from labels, and mine has none"
    )
    command += "--until mse-codec --mse-codec.steps 2 --mse-codec.last-steps 1".split()
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(Path(done.stdout.strip().splitlines()[-1]).read_text())["stages"]
    assert [row["stage"] for row in rows] == ["mse-codec"]
    assert load_manifest(next((tmp_path / "outputs" / "data").iterdir()) / "train").num_samples == 9

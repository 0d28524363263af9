"""Runs a stage: computes its key, and reuses a finished run with this key or trains and publishes to MLflow."""

import json
import logging
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import ray
import ray.train
import ray.train.torch
from torch import Tensor

from egic.artifact import digest, read_config
from egic.errors import UserError
from egic.metrics.pretrained import find_backbone
from jobs.cluster.resources import check_resources, check_shared, stages_side_by_side, threads
from jobs.cluster.shutdown import leave, stopping
from jobs.cluster.start import start_ray
from jobs.config.schema import Config
from jobs.data.shards import MANIFEST, Manifest
from jobs.storage import files, lease
from jobs.storage.files import Folder
from jobs.tracking import model_registry, runs, store
from jobs.tracking.model_registry import Artifact, local_copy
from jobs.training.checkpoints import place_of
from jobs.training.code_version import code_tag
from jobs.training.encoder import find_encoder
from jobs.training.reports import Reports, deliver_rest
from jobs.training.stage import MODULES, Stage, ingredients, load_stage, run_params, sources, stage_key
from jobs.training.trainer import fit
from jobs.training.worker import TrainJob

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of running a stage."""

    stage: str
    artifact: Artifact
    folder: Path
    reused: bool
    provenance: dict
    wall_s: float
    """Seconds that this run took to train the stage, or to find the finished run."""


@dataclass(frozen=True, kw_only=True)
class Lpips:
    """The backbone of LPIPS in a run of the GAN stage."""

    name: str = ""
    """Name of the backbone; empty if no stage needs one."""
    backbone: dict[str, Tensor] | None = None
    """Its weights; None for seeded random ones."""


def find_lpips(config: Config, stages: Sequence[str]) -> Lpips:
    """The backbone that `config` names, if one of the stages needs LPIPS; warns when its weights are random."""
    if not any("lpips_weights" in load_stage(name).reads for name in stages if name in MODULES):
        return Lpips()
    name, backbone = find_backbone(config.lpips_weights, config.lpips_net)
    if backbone is None:
        log.warning("LPIPS uses a %s: sufficient for trying things, but its values are not a measure", name)
    return Lpips(name=name, backbone=backbone)


@dataclass(frozen=True, kw_only=True)
class StageInputs:
    """A stage with everything that determines its result."""

    stage: Stage
    config: Config
    parents: Mapping[str, Artifact]
    """By the stage they come from, or by any name."""
    manifests: Mapping[str, Manifest]
    lpips: Lpips

    @cached_property
    def facts(self) -> dict:
        """See `stage.ingredients`."""
        data = f"{self.manifests['train'].digest} {self.manifests['val'].digest}"
        parents = {name: artifact.sha256 for name, artifact in self.parents.items()}
        return ingredients(self.stage, self.config, parents=parents, data=data, lpips=self.lpips.name)

    @property
    def key(self) -> str:
        return stage_key(self.facts)


def reuse_stage(inputs: StageInputs, parent_run: str | None = None) -> Outcome | None:
    """The result of a finished run with this stage's key, or None. Needs no Ray."""
    began = time.perf_counter()
    found = model_registry.find_finished(inputs.stage.name, inputs.key, experiment=inputs.config.experiment)
    if found is None:
        return None
    if parent_run:
        runs.reuse_stage(parent_run, inputs.stage.name, found.run_id)
    return outcome(inputs, found, began, reused=True)


def train_stage(inputs: StageInputs, parent_run: str | None = None, side_by_side: int = 1) -> Outcome:
    """Train the stage (resuming from its last checkpoint) and publish it, or use the result of a concurrent run.

    side_by_side: number of stages that share the cluster, this one included.
    Raises UserError for what a user can correct, RuntimeError when training failed for good.
    """
    began = time.perf_counter()
    start_ray()
    check_resources(inputs.config.compute)
    check_shared(inputs.config.output, *(files.join(m.folder, MANIFEST) for m in inputs.manifests.values()))
    place = place_of(inputs.config.output, f"{inputs.stage.name}-{inputs.key}")
    with lease.held(place, inputs.stage.name, stopping.is_set):
        if found := reuse_stage(inputs, parent_run):  # by the run that held the lease
            return found
        artifact = train_and_publish(inputs, place, parent_run, side_by_side)
    return outcome(inputs, artifact, began, reused=False)


def train_side_by_side(inputs: Sequence[StageInputs], parent_run: str) -> list[Outcome]:
    """Train stages that do not depend on each other, as many at once as fit on the cluster.

    When one stage fails, the others are stopped. When the run is asked to stop, each stage writes a checkpoint first.
    """
    if not inputs:
        return []
    start_ray()
    check_resources(inputs[0].config.compute)
    num = min(len(inputs), stages_side_by_side(inputs[0].config.compute))
    with ThreadPoolExecutor(num) as pool:
        futures = [pool.submit(train_stage, each, parent_run, num) for each in inputs]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if not stopping.is_set():
                leave()
            raise
    return [future.result() for future in futures]


def train_and_publish(inputs: StageInputs, place: Folder, parent_run: str | None, side_by_side: int) -> Artifact:
    """Train the stage in its MLflow run, with its checkpoints in `place`, and publish its artifact."""
    stage, config, facts = inputs.stage, inputs.config, inputs.facts
    provenance = provenance_of(inputs)
    tags = code_tag(sources(stage.name))
    run_id = runs.start_stage(parent_run, stage.name, inputs.key, run_params(facts), tags, experiment=config.experiment)
    with runs.ending(run_id):
        model_registry.log_parents(run_id, inputs.parents)
        job = TrainJob(
            stage=stage.name, config=config, name=f"{stage.name}-{inputs.key}", place=place,
            train=inputs.manifests["train"], val=inputs.manifests["val"],
            components=parent_components(stage, inputs.parents, config.output), provenance=provenance,
            lpips=ray.put(inputs.lpips.backbone) if "lpips_weights" in stage.reads else None,
            encoder=ray.put(encoder) if "discriminator" in stage.reads and (encoder := find_encoder(config)) else None,
            threads=config.compute.threads or threads(config.compute, side_by_side),
        )  # fmt: skip
        result = fit(job, Reports(run_id, stage.settings(config).steps, place))
        with result.checkpoint.as_directory() as folder:
            done = f"{stage.name} is trained and its last checkpoint kept"
            store.patiently(lambda: deliver_rest(run_id, place), done)
            return store.patiently(
                lambda: publish(stage, run_id, Path(folder) / "artifact", provenance, facts["data"]), done
            )


def provenance_of(inputs: StageInputs) -> dict:
    """The origin of an artifact: settings, code, data, parents by run id and sha256, versions; with a discriminator,
    also the names of its classes 1..K."""
    try:
        root = Path(__file__).resolve().parents[2]
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    packages = ("torch", "ray", "mlflow", "lpips", "numpy")
    names = list(inputs.manifests["train"].class_names)
    labelled = {"classes": names} if "discriminator" in inputs.stage.publishes else {}
    return (
        inputs.facts
        | labelled
        | {
            "key": inputs.key,
            "commit": commit,
            "parents": {
                name: {"run_id": a.run_id, "sha256": a.sha256, "uri": a.uri} for name, a in inputs.parents.items()
            },
            "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        }
    )


def parent_components(stage: Stage, parents: Mapping[str, Artifact], store: str) -> dict[str, ray.ObjectRef]:
    """Files of the parents' artifacts by component, checked by digest and put into Ray's object store."""
    found: dict[str, ray.ObjectRef] = {}
    for artifact in parents.values():
        folder = local_copy(artifact, store)
        content = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
        ref = ray.put(content)
        found |= {name: ref for name in read_config(folder) if name in (*stage.takes, *stage.publishes)}
    if missing := [name for name in stage.takes if name not in found]:
        raise UserError(
            f"{stage.name} needs a {' and a '.join(missing)} to start from; give the artifacts of "
            f"{' and '.join(stage.parents)} with --init-from models:/egic-{stage.parents[0]}@latest ..."
        )
    return found


def publish(stage: Stage, run_id: str, folder: Path, provenance: dict, data_digest: str) -> Artifact:
    """Publish the artifact to MLflow as a new version of `egic-<stage>`, and move the alias `best` if the stage's
    headline metric improved."""
    written = json.loads((folder / "provenance.json").read_text())
    basis = f"{data_digest} {provenance['lpips']}".strip()  # LPIPS values of different backbones are not comparable
    tags = {"egic.key": provenance["key"]}
    artifact = model_registry.publish(run_id, folder, stage.name, digest(folder), provenance["config"], tags)
    assert artifact.model_version is not None  # it was just published
    model_registry.promote_if_best(
        f"egic-{stage.name}", artifact.model_version, stage.headline, written["metrics"][stage.headline],
        stage.higher_is_better, basis,
    )  # fmt: skip
    return artifact


def outcome(inputs: StageInputs, artifact: Artifact, began: float, *, reused: bool) -> Outcome:
    """began: `time.perf_counter()` at the stage's start."""
    folder = local_copy(artifact, inputs.config.output)
    provenance = json.loads((folder / "provenance.json").read_text())
    return Outcome(
        stage=inputs.stage.name, artifact=artifact, folder=folder, reused=reused, provenance=provenance,
        wall_s=time.perf_counter() - began,
    )  # fmt: skip

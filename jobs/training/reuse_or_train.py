"""A stage as a whole: its key, the finished run that makes it needless, or training and what it leaves in MLflow."""

import json
import logging
import platform
import subprocess
from collections.abc import Mapping
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
from egic.metrics.perceptual import find_backbone
from jobs.cluster.start import check_resources, check_shared, start_ray, threads
from jobs.config.schema import Config
from jobs.data.shards import MANIFEST, Manifest
from jobs.storage import files, lease
from jobs.storage.files import Folder
from jobs.tracking import model_registry, runs
from jobs.tracking.model_registry import Artifact
from jobs.training.checkpoints import place_of
from jobs.training.code_version import code_tag
from jobs.training.reports import Reports, deliver_rest
from jobs.training.stage import Stage, ingredients, run_params, sources, stage_key
from jobs.training.trainer import Job, fit

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a stage went."""

    stage: str
    artifact: Artifact
    folder: Path
    reused: bool
    provenance: dict


def find_lpips(config: Config) -> tuple[str, dict[str, Tensor] | None]:
    """What LPIPS runs on, and its backbone (None = seeded random); says so when it is random."""
    name, backbone = find_backbone(config.lpips_weights)
    if backbone is None:
        log.warning("LPIPS runs on a %s: fine for trying things, useless as a measure", name)
    return name, backbone


@dataclass(frozen=True, kw_only=True)
class Work:
    """A stage with all that decides what it makes."""

    stage: Stage
    config: Config
    parents: Mapping[str, Artifact]
    """By the stage they come from, or by any name."""
    manifests: Mapping[str, Manifest]
    lpips: tuple[str, dict[str, Tensor] | None]
    """What LPIPS is, and its backbone (None = random)."""

    @cached_property
    def facts(self) -> dict:
        """See `stage.ingredients`."""
        data = f"{self.manifests['train'].digest} {self.manifests['val'].digest}"
        parents = {name: artifact.sha256 for name, artifact in self.parents.items()}
        return ingredients(self.stage, self.config, parents=parents, data=data, lpips=self.lpips[0])

    @property
    def key(self) -> str:
        return stage_key(self.facts)


def reuse_stage(work: Work, parent_run: str | None = None) -> Outcome | None:
    """What a finished run with this stage's key made, or None; does without Ray."""
    found = model_registry.find_finished(work.stage.name, work.key, experiment=work.config.experiment)
    if found is None:
        return None
    if parent_run:
        runs.reuse_stage(parent_run, work.stage.name, found.run_id)
    return outcome(work, found, reused=True)


def train_stage(work: Work, parent_run: str | None = None, side_by_side: int = 1) -> Outcome:
    """Train the stage (going on from its last checkpoint) and publish it, or take what another run makes meanwhile.

    side_by_side: stages that share the cluster with this one.
    Raises UserError for what a user can mend, RuntimeError when training failed for good.
    """
    start_ray()
    check_resources(work.config.compute)
    check_shared(work.config.output, *(files.join(m.folder, MANIFEST) for m in work.manifests.values()))
    place = place_of(work.config.output, f"{work.stage.name}-{work.key}")
    with lease.held(place, work.stage.name):
        if found := reuse_stage(work, parent_run):  # made by the run that we waited for
            return found
        artifact = train_and_publish(work, place, parent_run, side_by_side)
    return outcome(work, artifact, reused=False)


def train_and_publish(work: Work, place: Folder, parent_run: str | None, side_by_side: int) -> Artifact:
    """Train the stage in its MLflow run, with its checkpoints in `place`, and publish what it made."""
    stage, config, facts = work.stage, work.config, work.facts
    provenance = provenance_of(work)
    run_id = runs.start_stage(
        parent_run, stage.name, work.key, run_params(facts), code_tag(sources(stage.name)), experiment=config.experiment
    )
    with runs.ending(run_id):
        model_registry.log_parents(run_id, work.parents)
        job = Job(
            stage=stage.name, config=config, name=f"{stage.name}-{work.key}", place=place,
            train=work.manifests["train"], val=work.manifests["val"],
            components=parent_components(stage, work.parents, config.output), provenance=provenance,
            lpips=ray.put(work.lpips[1]) if "lpips_weights" in stage.reads else None,
            threads=config.compute.threads or threads(config.compute, side_by_side),
        )  # fmt: skip
        result = fit(job, Reports(run_id, stage.settings(config).steps, place))
        with result.checkpoint.as_directory() as folder:
            done = f"{stage.name} is trained and its last checkpoint kept"
            runs.patiently(lambda: deliver_rest(run_id, place), done)
            return runs.patiently(
                lambda: publish(stage, run_id, Path(folder) / "artifact", provenance, facts["data"]), done
            )


def provenance_of(work: Work) -> dict:
    """Where an artifact comes from: settings, code, data, parents by run id and sha256, versions; where it holds a
    discriminator, the names of its classes 1..K, too."""
    try:
        root = Path(__file__).resolve().parents[2]
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    packages = ("torch", "ray", "mlflow", "lpips", "numpy")
    names = list(work.manifests["train"].class_names)
    labelled = {"classes": names} if "discriminator" in work.stage.publishes else {}
    return (
        work.facts
        | labelled
        | {
            "key": work.key,
            "commit": commit,
            "parents": {
                name: {"run_id": a.run_id, "sha256": a.sha256, "uri": a.uri} for name, a in work.parents.items()
            },
            "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        }
    )


def parent_components(stage: Stage, parents: Mapping[str, Artifact], store: str) -> dict[str, ray.ObjectRef]:
    """Files of the parents' artifacts, digest-checked and put into the object store, by the component they hold."""
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
    """The artifact into MLflow as a new version of `egic-<stage>`; alias `best` moves when the headline improved."""
    written = json.loads((folder / "provenance.json").read_text())
    basis = f"{data_digest} {provenance['lpips']}".strip()  # LPIPS of two backbones do not compare, either
    tags = {"egic.key": provenance["key"]}
    artifact = model_registry.publish(run_id, folder, stage.name, digest(folder), provenance["config"], tags)
    assert artifact.model_version is not None  # it was just published
    model_registry.promote_if_best(
        f"egic-{stage.name}", artifact.model_version, stage.headline, written["metrics"][stage.headline],
        stage.higher_is_better, basis,
    )  # fmt: skip
    return artifact


def local_copy(artifact: Artifact, store: str) -> Path:
    """The artifact's folder, on this machine, downloaded when missing, its digest checked in any case."""
    folder = files.working_folder(store) / "artifacts" / artifact.sha256[:16]
    return model_registry.fetch(artifact.uri, folder, artifact.sha256)


def outcome(work: Work, artifact: Artifact, *, reused: bool) -> Outcome:
    folder = local_copy(artifact, work.config.output)
    provenance = json.loads((folder / "provenance.json").read_text())
    return Outcome(stage=work.stage.name, artifact=artifact, folder=folder, reused=reused, provenance=provenance)

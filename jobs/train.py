"""A stage on Ray: its key, the finished run that makes it needless, or a TorchTrainer and what it leaves in MLflow."""

import json
import logging
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from torch import Tensor, nn

from egic import checkpoint
from egic.perceptual import LPIPS, find_backbone
from jobs import data, loop, registry, tracking
from jobs.config import ComputeConfig, Config, Training
from jobs.metric_log import MetricLog
from jobs.registry import Artifact
from jobs.shards import Manifest
from jobs.stage import Stage, ingredients, load_stage, stage_key

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 3


@dataclass(frozen=True)
class Job:
    """What every worker of a stage gets. Parents and LPIPS travel through Ray's object store, not through files."""

    stage: str
    config: Config
    train: Manifest
    val: Manifest
    components: Mapping[str, ray.ObjectRef]
    """Name -> files of the artifact that holds it."""
    lpips: ray.ObjectRef | None
    provenance: dict
    threads: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a stage went."""

    stage: str
    artifact: Artifact
    folder: Path
    reused: bool
    provenance: dict


class RaySession:
    """`loop.Session` inside a Ray Train worker."""

    def __init__(self, job: Job):
        context = ray.train.get_context()
        self.job, self.rank, self.world_size = job, context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()

    def stream(self, config: Config, first_step: int, settings: Training) -> Iterator[dict[str, np.ndarray]]:
        return data.training_stream(
            self.job.train, config.crop, seed=config.seed, global_batch=settings.batch, first_step=first_step,
            last_step=settings.steps, rank=self.rank, world_size=self.world_size, num_cpus=config.compute.data_cpus,
        )  # fmt: skip

    def val_batches(self, config: Config, settings: Training) -> Iterator[dict[str, np.ndarray]]:
        return data.validation_batches(
            self.job.val, config.crop, settings.val_samples, max(1, settings.batch // self.world_size),
            rank=self.rank, world_size=self.world_size,
        )  # fmt: skip

    def restore(self) -> Path | None:
        found = ray.train.get_checkpoint()
        return Path(found.to_directory()) if found else None

    def report(self, metrics: dict, write) -> None:
        if self.rank:
            ray.train.report({})
            return
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def train_worker(job: Job) -> None:
    """The function that every train worker runs."""
    torch.set_num_threads(job.threads)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    components: dict[str, nn.Module] = {}
    for name, ref in job.components.items():
        with tempfile.TemporaryDirectory() as folder:
            for file, content in ray.get(ref).items():
                Path(folder, file).write_bytes(content)
            components |= checkpoint.load(Path(folder), name)
    if job.lpips is not None:
        components["lpips"] = LPIPS(ray.get(job.lpips))
    loop.train(job.stage, job.config, components, RaySession(job), job.provenance)


class Reports(UserCallback):
    """Carries what the workers report to MLflow, from Ray Train's controller: workers need no way to the server."""

    def __init__(self, run_id: str, last_step: int):
        self.run_id, self.last_step, self.uri, self.metric_log = run_id, last_step, tracking.tracking_uri(), None

    def after_report(self, run_context, metrics: list[dict], checkpoint) -> None:
        report = metrics[0]
        os.environ["MLFLOW_TRACKING_URI"] = self.uri
        try:
            if self.metric_log is None:
                self.metric_log = MetricLog(self.run_id)
            self.metric_log.log(report["rows"])
            pictures = {name: read_file(checkpoint, f"{name}.png") for name in report["pictures"]}
            tracking.log_pictures(self.run_id, report["step"], pictures)
        except Exception:  # a tracking server that is away must not stop the training
            log.warning("MLflow did not take the report of step %s", report["step"], exc_info=True)
        if report["step"] == self.last_step:
            self.close()

    def after_exception(self, run_context, worker_exceptions) -> None:
        self.close()

    def close(self) -> None:
        if self.metric_log is not None:
            self.metric_log.close()
            self.metric_log = None


def read_file(stored: ray.train.Checkpoint, name: str) -> bytes:
    """One file of a checkpoint, wherever it is stored."""
    with stored.filesystem.open_input_file(f"{stored.path}/{name}") as f:
        return f.read()


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS or a submitted job names, else start Ray on this machine."""
    if ray.is_initialized():
        return
    root = str(Path(__file__).resolve().parents[1])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *(p for p in paths if p and p != root)])
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # reports are heard this often; Ray's 2 s wait
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # progress lines differ only in numbers, and are all wanted
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it shows every printed line twice
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def find_lpips(config: Config) -> tuple[str, dict[str, Tensor] | None]:
    """What LPIPS runs on, and its backbone (None = seeded random); says so when it is random."""
    name, backbone = find_backbone(config.lpips_weights)
    if backbone is None:
        log.warning("LPIPS runs on a %s: fine for trying things, useless as a measure", name)
    return name, backbone


def check_data(config: Config, manifest: Manifest) -> None:
    """Raise ValueError when data and discriminator disagree on the categories."""
    given = config.discriminator.num_categories
    if manifest.num_classes != given:
        raise ValueError(
            f"{manifest.folder} has {manifest.num_classes} categories, discriminator.num_categories is {given}; "
            f"give --discriminator.num-categories {manifest.num_classes}"
        )


def needed(compute: ComputeConfig) -> dict[str, float]:
    """Resources that one stage reserves: its workers, and one data task for each."""
    cpus = compute.workers * (compute.cpus_per_worker + compute.data_cpus)
    return {"CPU": cpus} | ({"GPU": float(compute.workers)} if compute.use_gpu else {})


def check_resources(compute: ComputeConfig) -> None:
    """Raise ValueError when the cluster can never place a stage: Ray itself would wait without a word."""
    there = ray.cluster_resources()
    for name, count in needed(compute).items():
        if there.get(name, 0.0) < count:
            raise ValueError(
                f"{compute.workers} workers and their data tasks need {count:g} {name}, the cluster has "
                f"{there.get(name, 0.0):g}; lower compute.workers, compute.cpus_per_worker or compute.data_cpus"
                + (", or compute.use_gpu" if name == "GPU" else "")
            )


def stages_side_by_side(compute: ComputeConfig) -> int:
    """How many stages the cluster can run at once."""
    there = ray.cluster_resources()
    return max(1, min(int(there.get(name, 0.0) // count) for name, count in needed(compute).items()))


def provenance_of(stage: Stage, config: Config, facts: Mapping[str, object], parents: Mapping[str, Artifact]) -> dict:
    """Where an artifact comes from: settings, code, data, parents by run id and sha256, versions."""
    try:
        root = Path(__file__).resolve().parents[1]
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    packages = ("torch", "ray", "mlflow", "compressai", "timm", "lpips", "numpy")
    return dict(facts) | {
        "key": stage_key(facts),
        "commit": commit,
        "parents": {name: {"run_id": a.run_id, "sha256": a.sha256, "uri": a.uri} for name, a in parents.items()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def run_stage(
    name: str,
    config: Config,
    *,
    parents: Mapping[str, Artifact],
    manifests: Mapping[str, Manifest],
    lpips: tuple[str, dict[str, Tensor] | None],
    parent_run: str | None = None,
    side_by_side: int = 1,
    may_train: bool = True,
) -> Outcome:
    """Reuse the finished run with this stage's key, or train it (going on from its last checkpoint) and publish it.

    parents: artifacts by the stage they come from, or by any name. lpips: what it is, and its backbone (None = random).
    side_by_side: stages that share the cluster with this one. may_train: False only reuses.
    Raises ValueError for what a user can mend, RuntimeError when training failed for good.
    """
    stage, store = load_stage(name), Path(config.output)
    digests = {k: a.sha256 for k, a in parents.items()}
    data_digest = f"{manifests['train'].digest} {manifests['val'].digest}"
    facts = ingredients(stage, config, parents=digests, data=data_digest, lpips=lpips[0])
    key = stage_key(facts)
    if artifact := registry.find_finished(name, key, experiment=config.experiment):
        if parent_run:
            tracking.reuse_stage(parent_run, name, artifact.run_id)
        return outcome(stage, artifact, store, reused=True)
    if not may_train:
        raise ValueError(
            f"{name} is not finished with this configuration, code and data; start --from {name} or earlier"
        )
    check_resources(config.compute)
    provenance = provenance_of(stage, config, facts, parents)
    params = {"key": key, "code": facts["code"], "data": data_digest, "lpips": facts["lpips"], **facts["config"]}
    run_id = tracking.start_stage(parent_run, name, key, params, {}, experiment=config.experiment)
    with tracking.ending(run_id):
        registry.log_parents(run_id, parents)
        job = Job(
            stage=name, config=config, train=manifests["train"], val=manifests["val"],
            components=parent_components(stage, parents, store), provenance=provenance,
            lpips=ray.put(lpips[1]) if "lpips_weights" in stage.reads else None,
            threads=config.compute.threads or threads(config.compute, side_by_side),
        )  # fmt: skip
        result = fit(job, f"{name}-{key}", Reports(run_id, stage.settings(config).steps))
        with result.checkpoint.as_directory() as folder:
            artifact = publish(stage, run_id, Path(folder) / "artifact", provenance, data_digest)
    return outcome(stage, artifact, store, reused=False)


def threads(compute: ComputeConfig, side_by_side: int) -> int:
    """A node's cores divided among the workers that share it."""
    cores = os.cpu_count() or 1
    nodes = max(1, sum(n["Alive"] for n in ray.nodes()))
    return max(1, cores // max(1, -(-compute.workers * side_by_side // nodes)))


def parent_components(stage: Stage, parents: Mapping[str, Artifact], store: Path) -> dict[str, ray.ObjectRef]:
    """Files of the parents' artifacts, digest-checked and put into the object store, by the component they hold."""
    found: dict[str, ray.ObjectRef] = {}
    for artifact in parents.values():
        folder = registry.fetch(artifact.uri, store / "artifacts" / artifact.sha256[:16], artifact.sha256)
        content = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
        ref = ray.put(content)
        found |= {name: ref for name in checkpoint.read_config(folder) if name in (*stage.takes, *stage.publishes)}
    if missing := [name for name in stage.takes if name not in found]:
        raise ValueError(
            f"{stage.name} needs a {' and a '.join(missing)} to start from; give the artifacts of "
            f"{' and '.join(stage.parents)} with --init-from models:/egic-{stage.parents[0]}@latest ..."
        )
    return found


def fit(job: Job, name: str, reports: Reports) -> ray.train.Result:
    """Run the trainer; the same name goes on from the last checkpoint in the same storage."""
    compute = job.config.compute
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=compute.workers,
            use_gpu=compute.use_gpu,
            resources_per_worker={"CPU": compute.cpus_per_worker} | ({"GPU": 1} if compute.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(Path(job.config.output).absolute() / "checkpoints"),
            failure_config=FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            callbacks=[reports],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as e:
        failures = getattr(e, "worker_failures", {}) or {0: e}
        causes = [getattr(f, "cause", None) or f for f in failures.values()]
        known = [c for c in causes if isinstance(c, (ValueError, loop.NonFiniteError))]
        if known:
            raise ValueError(str(known[0])) from e
        raise


def publish(stage: Stage, run_id: str, folder: Path, provenance: dict, data_digest: str) -> Artifact:
    """The artifact into MLflow as a new version of `egic-<stage>`; alias `best` moves when the headline improved."""
    written = json.loads((folder / "provenance.json").read_text())
    tags = {"egic.key": provenance["key"]}
    artifact = registry.publish(run_id, folder, stage.name, checkpoint.digest(folder), provenance["config"], tags)
    registry.promote_if_best(
        f"egic-{stage.name}", artifact.model_version, stage.headline, written["metrics"][stage.headline],
        stage.higher_is_better, data_digest,
    )  # fmt: skip
    return artifact


def outcome(stage: Stage, artifact: Artifact, store: Path, *, reused: bool) -> Outcome:
    folder = registry.fetch(artifact.uri, store / "artifacts" / artifact.sha256[:16], artifact.sha256)
    provenance = json.loads((folder / "provenance.json").read_text())
    return Outcome(stage=stage.name, artifact=artifact, folder=folder, reused=reused, provenance=provenance)

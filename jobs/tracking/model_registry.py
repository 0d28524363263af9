"""Artifacts of stages in MLflow: published as a logged model and a registered version, searched, downloaded.

An artifact is a folder of safetensors and JSON (egic/artifact.py), never a pickle. Its sha256 identifies it, and every
download is checked against it. `models:/egic-gan@latest` is the newest version (an alias that MLflow reserves and
resolves itself); `@best` is set by `promote_if_best`. `python -m jobs.registry FOLDER` registers a folder from
elsewhere.
"""

import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egic.artifact import digest
from egic.cache import cache_folder
from egic.errors import UserError
from jobs.config.schema import TRAINED
from jobs.storage import files
from jobs.tracking import runs, store

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A stage's result. `uri` is `models:/m-...`, which never changes, or a local folder, without run and version."""

    run_id: str
    uri: str
    sha256: str
    model_version: int | None


def publish(
    run_id: str,
    folder: Path,
    stage: str,
    sha256: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
) -> Artifact:
    """Upload `folder` as a new version of the registered model `egic-<stage>`, and record it in the run.

    Publishing the same run and digest again, for example after a crash, returns the existing version.
    """
    client, name = store.client(), f"egic-{stage}"
    published = version_of(run_id, name, sha256)
    if published is None:
        tags = {"egic.stage": stage, "egic.sha256": sha256, **tags}
        model = client.create_logged_model(
            client.get_run(run_id).info.experiment_id,
            name=name,
            source_run_id=run_id,
            params={key: value[:250] for key, value in runs.flatten(params).items()},  # the run has them uncut
            tags=tags,
            model_type="egic",
        )
        try:
            client.log_model_artifacts(model.model_id, str(folder))
        except BaseException:
            client.finalize_logged_model(model.model_id, "FAILED")
            raise
        client.finalize_logged_model(model.model_id, "READY")
        published = register(name, f"models:/{model.model_id}", run_id, model.model_id, tags)
    version, uri = int(published.version), published.source
    runs.set_tags(run_id, {"egic.sha256": sha256, "egic.uri": uri, "egic.model_version": str(version)})
    log.info("%s is models:/%s/%d, sha256 %s", stage, name, version, sha256[:12])
    return Artifact(run_id=run_id, uri=uri, sha256=sha256, model_version=version)


def version_of(run_id: str, name: str, sha256: str) -> Any | None:
    """The version of model `name` that `run_id` has published with this digest, if any."""
    versions = store.client().search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return next((version for version in versions if version.tags.get("egic.sha256") == sha256), None)


def stage_of(folder: Path) -> str:
    """The stage that made an artifact folder, read from its provenance.json. Raises UserError."""
    try:
        stage = json.loads((folder / "provenance.json").read_text())["stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: provenance.json does not say which stage made it ({error!r})") from error
    if stage not in TRAINED:
        raise UserError(f"{folder}: provenance.json names the stage {stage!r}; the stages are {', '.join(TRAINED)}")
    return stage


def publish_folder(folder: Path, *, experiment: str = store.EXPERIMENT) -> Artifact:
    """Register an artifact that was not trained here, such as imported weights. A second call changes nothing."""
    sha256 = digest(folder)
    stage, key = stage_of(folder), sha256[:16]
    if artifact := find_finished(stage, key, experiment=experiment):
        return artifact
    facts = {"key": key, "source": json.loads((folder / "provenance.json").read_text()).get("source", folder.name)}
    run_id = runs.start_stage(None, stage, key, facts, {"egic.imported": "true"}, experiment=experiment)
    with runs.ending(run_id):
        return publish(run_id, folder, stage, sha256, facts, {"egic.key": key})


def register(name: str, uri: str, run_id: str, model_id: str, tags: Mapping[str, str]) -> Any:
    """Create a version of model `name`, and the model if it does not exist."""
    client = store.client()
    try:
        client.create_registered_model(name)
    except store.mlflow().MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(name, uri, run_id=run_id, model_id=model_id, tags=dict(tags))


def find_finished(stage: str, key: str, *, experiment: str = store.EXPERIMENT) -> Artifact | None:
    """The artifact of the newest FINISHED run of `stage` with `key` whose files still exist; else None."""
    client = store.client()
    for run in runs.runs_of(stage, key, experiment=experiment):
        artifact = artifact_of(run)
        if run.info.status != "FINISHED" or artifact is None:
            continue
        try:
            model_id = artifact.uri.removeprefix("models:/")
            if client.list_logged_model_artifacts(model_id):
                return artifact
            reason = f"its files are gone from {client.get_logged_model(model_id).artifact_location}"
        except store.mlflow().MlflowException as error:
            reason = str(error)
        log.warning("%s was finished in run %s, but can't be reused: %s", stage, run.info.run_id, reason)
    return None


def artifact_of(run: Any) -> Artifact | None:
    """The artifact that a stage's run has published; None without one."""
    tags = run.data.tags
    if "egic.uri" not in tags:
        return None
    return Artifact(
        run_id=run.info.run_id,
        uri=tags["egic.uri"],
        sha256=tags["egic.sha256"],
        model_version=int(tags["egic.model_version"]),
    )


def log_parents(run_id: str, parents: Mapping[str, Artifact]) -> None:
    """Record the artifacts a stage starts from: MLflow's lineage (model inputs) and tags `egic.parent.<name>.*`."""
    client = store.client()
    tags: dict[str, str] = {}
    for name, parent in parents.items():
        tags |= {f"egic.parent.{name}.run_id": parent.run_id, f"egic.parent.{name}.sha256": parent.sha256}
        tags[f"egic.parent.{name}.uri"] = parent.uri
        if parent.uri.startswith("models:/m-"):
            model = store.mlflow().entities.LoggedModelInput(parent.uri.removeprefix("models:/"))
            client.log_inputs(run_id, models=[model])
    runs.set_tags(run_id, tags)


def promote_if_best(
    name: str, version: int, metric: str, value: float, higher_is_better: bool, data_digest: str
) -> bool:
    """Give `version` of model `name` the alias `best` when `metric` is better than the best version's.

    The first version becomes best. Values of another metric, or measured on other data, are not compared. Returns
    whether `version` is the best now.
    """
    client = store.client()
    tags = {"egic.metric": metric, "egic.value": repr(float(value)), "egic.metric_data": data_digest}
    for key, text in tags.items():
        client.set_model_version_tag(name, str(version), key, text)
    best_version = client.get_registered_model(name).aliases.get("best")
    if not math.isfinite(value):
        log.warning("%s %s has %s = %s: not the best", name, version, metric, value)
        return False
    if best_version is not None and int(best_version) != version:
        best = client.get_model_version(name, best_version).tags
        if best.get("egic.metric") != metric or best.get("egic.metric_data") != data_digest:  # None: alias set by hand
            log.info("%s %s is not compared with the best, %s: other data or metric", name, version, best_version)
            return False
        gain = value - float(best["egic.value"])
        if (gain if higher_is_better else -gain) <= 0:
            return False
    client.set_registered_model_alias(name, "best", str(version))
    return True


def resolve(ref: str) -> Artifact:
    """The artifact that `ref` names now: a local folder, `models:/egic-gan@latest`, `@best`, `models:/egic-gan/3`,
    `models:/m-...` or `runs:/RUN_ID`. Raises UserError when it does not exist.
    """
    if not ref.startswith(("models:/", "runs:/")):
        folder = Path(ref)
        if not folder.is_dir():
            raise UserError(f"{ref} is not a folder; name one, or an artifact such as models:/egic-gan@latest")
        return Artifact(run_id="", uri=str(folder.resolve()), sha256=digest(folder), model_version=None)
    client, mlflow = store.client(), store.mlflow()
    rest = ref.partition(":/")[2].strip("/")
    try:
        if ref.startswith("runs:/"):
            if "/" in rest:
                raise UserError(f"{ref}: a stage's run has one artifact, so write runs:/{rest.split('/')[0]}")
            found = artifact_of(client.get_run(rest))
            if found is None:
                raise UserError(f"run {rest} has published no artifact; name the run of a finished stage")
            return found
        if rest.startswith("m-"):
            tags, run_id, uri, version = (model := client.get_logged_model(rest)).tags, model.source_run_id, ref, None
        else:
            name, mark, which = rest.partition("@") if "@" in rest else rest.partition("/")
            if not which:
                raise UserError(f"{ref} names no version; write models:/{name}@latest or models:/{name}/1")
            look_up = client.get_model_version_by_alias if mark == "@" else client.get_model_version
            given = look_up(name, which)
            tags, run_id, uri, version = given.tags, given.run_id, given.source or "", int(given.version)
    except mlflow.MlflowException as error:
        raise UserError(f"{ref} is not in {store.shown_uri()} ({error}); see the Models page there") from error
    if "egic.sha256" not in tags:
        raise UserError(f"{ref} was not published by EGIC: it has no tag egic.sha256")
    return Artifact(run_id=run_id or "", uri=uri, sha256=tags["egic.sha256"], model_version=version)


def fetch(ref: str, dest: Path, expect_sha256: str | None = None) -> Path:
    """The folder of artifact `ref` (see `resolve`), downloaded to `dest`; a local folder is returned as it is.

    Raises UserError when the digest differs from the one recorded at publishing, or from `expect_sha256` if given.
    `dest` appears only when complete; an existing one with the right digest is kept.
    """
    artifact = resolve(ref)
    if expect_sha256 and artifact.sha256 != expect_sha256:
        raise UserError(f"{ref} has sha256 {artifact.sha256}, expected {expect_sha256}: it is not the same artifact")
    if not artifact.uri.startswith("models:/"):
        return Path(artifact.uri)
    if dest.exists():
        return checked(dest, artifact)
    dest.parent.mkdir(parents=True, exist_ok=True)
    aside = dest.with_name(f".{dest.name}.{uuid.uuid4().hex}")
    aside.mkdir()
    try:
        uri = store.tracking_uri()
        try:
            store.mlflow().artifacts.download_artifacts(
                artifact_uri=artifact.uri, dst_path=str(aside), tracking_uri=uri, registry_uri=uri
            )
        except store.mlflow().MlflowException as error:
            raise UserError(f"{ref} can't be downloaded from {store.shown_uri()}: {error}") from error
        checked(aside, artifact)
        try:
            os.rename(aside, dest)
        except OSError:  # another process has created it in the meantime
            return checked(dest, artifact)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return dest


def fetch_cached(ref: str) -> Path:
    """The folder of an artifact in MLflow, downloaded to the user's cache under its digest, since aliases change.

    `egic -m models:/...` calls this. Raises UserError when the artifact does not exist.
    """
    artifact = resolve(ref)
    return fetch(ref, cache_folder() / artifact.sha256[:32], expect_sha256=artifact.sha256)


def registered() -> list[tuple[str, str]]:
    """(URI, description) of every version of every EGIC model in MLflow's registry, newest first. Raises UserError."""
    client, mlflow, rows = store.client(), store.mlflow(), []
    try:
        for model in client.search_registered_models(filter_string="name LIKE 'egic-%'"):
            aliases: dict[str, list[str]] = {}
            for alias, version in model.aliases.items():
                aliases.setdefault(str(version), []).append("@" + alias)
            versions = client.search_model_versions(f"name = '{model.name}'")
            for place, version in enumerate(sorted(versions, key=lambda v: -int(v.version))):
                latest = ["@latest"] if place == 0 else []  # MLflow resolves this alias but never lists it
                marks = " ".join(sorted(aliases.get(str(version.version), []) + latest))
                sha256 = version.tags.get("egic.sha256", "")[:12]
                rows.append((f"models:/{model.name}/{version.version}", f"{sha256} {marks}".strip()))
    except mlflow.MlflowException as error:
        raise UserError(f"cannot list the models in {store.shown_uri()}: {error}") from error
    return rows


def local_copy(artifact: Artifact, output: str) -> Path:
    """The artifact's folder on this machine, downloaded when missing; the digest is always checked."""
    folder = files.working_folder(output) / "artifacts" / artifact.sha256[:16]
    return fetch(artifact.uri, folder, artifact.sha256)


def checked(folder: Path, artifact: Artifact) -> Path:
    """`folder`, after comparing its digest with the artifact's. Raises UserError when they differ."""
    found = digest(folder)
    if found != artifact.sha256:
        raise UserError(
            f"{folder} has sha256 {found}, not {artifact.sha256} of {artifact.uri}: damaged or another artifact; "
            "delete it and download it again"
        )
    return folder

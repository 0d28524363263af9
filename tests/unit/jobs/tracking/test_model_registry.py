"""Artifacts in MLflow: publish, resolve and download by every kind of reference, and the alias `best`."""

import dataclasses

import pytest
import torch

from egic.artifact import digest, save
from egic.errors import UserError
from jobs.commands import one_stage
from jobs.config.presets import PRESETS, extended
from jobs.tracking import model_registry, runs, store
from jobs.training.stage import load_stage
from tests.codec_models import tiny_model
from tests.mlflow_store import published

pytestmark = pytest.mark.usefixtures("client")


def test_a_finished_artifact_is_found_by_its_key(folder, experiment):
    run_id = runs.start_stage(None, "gan", "k", {}, {}, experiment=experiment)
    artifact = model_registry.publish(run_id, folder, "gan", digest(folder), {"lam": 2}, {})
    assert model_registry.find_finished("gan", "k", experiment=experiment) is None
    runs.finish(run_id)
    assert model_registry.find_finished("gan", "k", experiment=experiment) == artifact
    assert (artifact.run_id, artifact.sha256) == (run_id, digest(folder))
    assert model_registry.find_finished("gan", "k2", experiment=experiment) is None
    assert model_registry.find_finished("orp", "k", experiment=experiment) is None


def test_a_finished_stage_with_missing_files_is_not_reused(folder, experiment, database, caplog):
    artifact = published(folder, experiment)
    stored = database.parent / "mlartifacts" / "models" / artifact.uri.removeprefix("models:/") / "artifacts"
    for path in stored.iterdir():
        path.unlink()
    assert model_registry.find_finished("gan", "key1", experiment=experiment) is None
    assert "its files are gone" in caplog.text


def test_publishing_again_after_a_crash_creates_no_second_version(folder, run_id):
    first = model_registry.publish(run_id, folder, "gan", digest(folder), {}, {})
    assert model_registry.publish(run_id, folder, "gan", digest(folder), {}, {}) == first


def test_a_failed_upload_leaves_no_version(folder, run_id, client, monkeypatch):
    def fail(self, *args):
        raise OSError("disk full")

    monkeypatch.setattr(store.mlflow().MlflowClient, "log_model_artifacts", fail)
    with pytest.raises(OSError, match="disk full"):
        model_registry.publish(run_id, folder, "upload-fails", digest(folder), {}, {})
    assert client.search_model_versions(f"run_id = '{run_id}'") == []


def test_all_kinds_of_references_resolve_to_the_same_artifact(folder, experiment, tmp_path):
    artifact = published(folder, experiment, name="refs")
    refs = ["models:/egic-refs@latest", "models:/egic-refs/1", artifact.uri, f"runs:/{artifact.run_id}", str(folder)]
    for i, ref in enumerate(refs):
        found = model_registry.fetch(ref, tmp_path / f"new/{i}", digest(folder))
        assert {path.name: path.read_bytes() for path in found.iterdir()} == {
            "codec.safetensors": b"weights",
            "config.json": b"{}",
        }
        assert model_registry.resolve(ref).sha256 == artifact.sha256
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["0", "1", "2", "3"]


def test_latest_is_the_newest_version(folder, experiment):
    published(folder, experiment, name="newest")
    (folder / "codec.safetensors").write_bytes(b"other weights")
    second = published(folder, experiment, key="key2", name="newest")
    assert second.model_version == 2
    assert model_registry.resolve("models:/egic-newest@latest") == second


@pytest.mark.parametrize(
    "ref, message",
    [
        ("models:/egic-nothing@latest", "models:/egic-nothing@latest is not in sqlite"),
        ("models:/egic-known@best", "models:/egic-known@best is not in sqlite"),
        ("models:/egic-known/99", "models:/egic-known/99 is not in sqlite"),
        ("models:/egic-known", "names no version; write models:/egic-known@latest"),
        ("models:/m-0123", "models:/m-0123 is not in sqlite"),
        ("runs:/0123", "runs:/0123 is not in sqlite"),
        ("runs:/0123/model", "so write runs:/0123"),
        ("no/such/folder", "no/such/folder is not a folder"),
    ],
)
def test_unknown_references_are_clear_errors(ref, message, folder, experiment, tmp_path):
    published(folder, experiment, name="known")
    with pytest.raises(UserError, match=message):
        model_registry.fetch(ref, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_run_without_artifact_is_a_clear_error(run_id):
    with pytest.raises(UserError, match="has published no artifact"):
        model_registry.resolve(f"runs:/{run_id}")


def test_wrong_digest_is_refused_before_and_after_the_download(folder, experiment, tmp_path, database):
    artifact = published(folder, experiment)
    with pytest.raises(UserError, match="expected 0000: it is not the same artifact"):
        model_registry.fetch(artifact.uri, tmp_path / "new", "0000")
    (stored,) = (database.parent / "mlartifacts").rglob(f"{artifact.uri.removeprefix('models:/')}/artifacts/codec.*")
    stored.write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged or another artifact"):
        model_registry.fetch(artifact.uri, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact"]  # no incomplete folder remains


def test_local_folder_is_checked_too(folder):
    with pytest.raises(UserError, match="expected 0000"):
        model_registry.fetch(str(folder), folder / "new", "0000")


def test_an_existing_folder_is_kept_if_its_digest_is_right_and_else_refused(folder, experiment, tmp_path):
    artifact = published(folder, experiment)
    dest = model_registry.fetch(artifact.uri, tmp_path / "new")
    inode = dest.stat().st_ino
    assert model_registry.fetch(artifact.uri, dest).stat().st_ino == inode
    (dest / "codec.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="delete it and download it again"):
        model_registry.fetch(artifact.uri, dest)


def test_parents_are_stored_as_lineage_and_tags(client, folder, experiment, run_id):
    parent = published(folder, experiment, name="mse-codec")
    local = model_registry.resolve(str(folder))
    for _ in range(2):  # a reopened run logs it again
        model_registry.log_parents(run_id, {"codec": parent, "discriminator": local})
    run = client.get_run(run_id)
    assert {entry.model_id for entry in run.inputs.model_inputs} == {parent.uri.removeprefix("models:/")}
    assert run.data.tags["egic.parent.codec.run_id"] == parent.run_id
    assert run.data.tags["egic.parent.codec.sha256"] == parent.sha256
    assert run.data.tags["egic.parent.discriminator.uri"] == str(folder)


@pytest.mark.parametrize(
    "higher, steps",
    [
        # (value, data digest, becomes best)
        (True, [(20.0, "a", True), (19.0, "a", False), (21.0, "b", False), (20.0, "a", False), (20.5, "a", True)]),
        (False, [(3.0, "a", True), (4.0, "a", False), (2.0, "a", True)]),
        (True, [(float("nan"), "a", False), (1.0, "a", True), (float("inf"), "a", False)]),
    ],
)
def test_best_moves_only_on_improvement_on_the_same_data(client, folder, request, higher, steps):
    stage = f"best-{request.node.callspec.indices['steps']}"
    name = f"egic-{stage}"
    expected = None
    for i, (value, data, becomes_best) in enumerate(steps):
        (folder / "codec.safetensors").write_bytes(bytes([i]))
        version = published(folder, stage, key=str(i), name=stage).model_version
        for _ in range(2):  # a second call changes nothing
            assert model_registry.promote_if_best(name, version, "val/x", value, higher, data) is becomes_best
        expected = version if becomes_best else expected
        best = client.get_registered_model(name).aliases.get("best")
        assert (best and int(best)) == expected


def test_best_is_not_compared_across_metrics(client, folder, experiment):
    first = published(folder, experiment, name="metrics")
    model_registry.promote_if_best("egic-metrics", first.model_version, "val/psnr_db", 20.0, True, "a")
    (folder / "codec.safetensors").write_bytes(b"other")
    second = published(folder, experiment, key="key2", name="metrics")
    assert not model_registry.promote_if_best("egic-metrics", second.model_version, "val/miou", 90.0, True, "a")
    listed = dict(model_registry.registered())
    assert listed[f"models:/egic-metrics/{first.model_version}"].endswith(" @best")
    assert listed[f"models:/egic-metrics/{second.model_version}"].endswith(" @latest")


def test_a_downloaded_model_is_cached_by_its_digest(folder, experiment, monkeypatch, tmp_path):
    """A moved alias has another digest, so another folder."""
    monkeypatch.setenv("EGIC_CACHE", str(tmp_path / "cache"))
    for content in (b"first", b"second"):
        (folder / "codec.safetensors").write_bytes(content)
        made = published(folder, experiment, key=content.decode(), name="cached")
        found = model_registry.fetch_cached("models:/egic-cached@latest")
        assert found == tmp_path / "cache" / made.sha256[:32] == model_registry.fetch_cached(made.uri)
        assert (found / "codec.safetensors").read_bytes() == content


def test_an_external_folder_is_registered_once_and_can_be_a_parent(tmp_path, experiment):
    """Imported weights as parents of a stage: a registered version, or the folder itself."""
    with torch.random.fork_rng():
        sha256 = save(tmp_path / "new", {"codec": tiny_model().codec}, {"stage": "gan", "source": "ckpt-7"})
    first = model_registry.publish_folder(tmp_path / "new", experiment=experiment)
    assert model_registry.publish_folder(tmp_path / "new", experiment=experiment) == first and first.sha256 == sha256
    refs = (str(tmp_path / "new"), f"models:/egic-gan/{first.model_version}")
    for ref in refs:
        config = extended(PRESETS["tiny"], one_stage.StageConfig)()
        config = dataclasses.replace(config, init_from=(ref,), output=str(tmp_path / "out"))
        found = one_stage.named_parents(load_stage("orp"), config)
        assert found["gan"].sha256 == sha256


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"stage": "dance"}'])
def test_a_folder_without_its_stage_is_not_registered(folder, content):
    if content is not None:
        (folder / "provenance.json").write_text(content)
    with pytest.raises(UserError, match="provenance.json (does not say|names)"):
        model_registry.stage_of(folder)

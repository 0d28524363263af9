"""A working folder that is moved or copied with its sqlite store: artifacts are read from the new place."""

import multiprocessing
import os
import re
import shutil
from pathlib import Path

import pytest

from egic.errors import UserError
from jobs.tracking import model_registry, runs, store
from tests.mlflow_store import PNG, free_port, published


@pytest.fixture
def working_folder(tmp_path, client, database, monkeypatch):
    """A working folder with its own store, set as current, and a function that makes another one current."""
    made = tmp_path / "one"
    made.mkdir()
    shutil.copy(database, made / "mlflow.db")  # a copy, since creating the tables takes seconds

    def use(place: Path) -> Path:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
        return place

    return use(made), use


def pictures(place: Path) -> list[bytes]:
    return [path.read_bytes() for path in place.glob("mlartifacts/*/artifacts/pictures/*/*.png")]


def in_a_process_of_its_own(action) -> None:
    """Run `action` in a new process, since MLflow caches where the artifacts of a run are."""
    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    process.join(120)
    assert process.exitcode == 0


FORMS = {"path": str, "uri": Path.as_uri}


@pytest.mark.parametrize("move", [shutil.copytree, shutil.move])
def test_artifacts_are_read_and_written_in_the_new_place(working_folder, folder, tmp_path, move):
    one, use = working_folder

    def first() -> None:
        for form, written in FORMS.items():
            store.client().create_experiment(f"moved-{form}", artifact_location=written(one / "mlartifacts"))
            published(folder, f"moved-{form}", name=form)

    in_a_process_of_its_own(first)
    two = tmp_path / "two"
    move(one, two)
    before = sorted(one.rglob("*"))
    if not before:
        one.write_text("")  # a file, so that nothing can be written below it
    use(two)
    for form in FORMS:
        fetched = model_registry.fetch(f"models:/egic-{form}/1", tmp_path / form)
        assert (fetched / "codec.safetensors").read_bytes() == b"weights"
        earlier = model_registry.find_finished(form, "key1", experiment=f"moved-{form}")
        runs.log_pictures(earlier.run_id, 1, {"val": PNG})
        later = published(folder, f"moved-{form}", key="key2", name=form)
        runs.log_pictures(later.run_id, 1, {"val": PNG})
        assert (earlier.model_version, later.model_version) == (1, 2)
    assert pictures(two) == [PNG] * 4 and len(list(two.glob("mlartifacts/models/*"))) == 4
    assert sorted(one.rglob("*")) == before


def test_a_folder_that_moves_before_it_has_artifacts(working_folder, experiment, tmp_path):
    one, use = working_folder
    where = store.experiment_id(experiment)
    use(one.rename(tmp_path / "two"))
    assert store.experiment_id(experiment) == where
    run_id = runs.start_stage(None, "gan", "key1", {}, {}, experiment=experiment)
    runs.log_pictures(run_id, 1, {"val": PNG})
    assert pictures(tmp_path / "two") == [PNG] and not one.exists()


def test_artifacts_outside_the_folder_stay_there(working_folder, experiment, folder, tmp_path):
    """Only the database moves: old and new artifacts stay in their place."""
    one, use = working_folder
    elsewhere = tmp_path / "disk" / "mlartifacts"
    store.client().create_experiment(experiment, artifact_location=elsewhere.as_uri())
    published(folder, experiment, name="stays")
    use(one.rename(tmp_path / "two"))
    (tmp_path / "two" / "mlartifacts").mkdir(exist_ok=True)
    assert model_registry.fetch("models:/egic-stays@latest", tmp_path / "fetched").is_dir()
    published(folder, experiment, key="key2", name="stays")
    assert len(list(elsewhere.glob("models/*"))) == 2 and not list((tmp_path / "two").glob("mlartifacts/*"))


@pytest.mark.parametrize("copy", [shutil.copy, lambda there, here: Path(here).symlink_to(there)])
def test_a_database_without_its_artifacts_uses_those_of_the_first_place(
    working_folder, experiment, folder, tmp_path, copy
):
    """A backup of the database alone, and a link to it."""
    one, use = working_folder

    def first() -> None:
        runs.log_pictures(published(folder, experiment, name="alone").run_id, 1, {"val": PNG})

    in_a_process_of_its_own(first)
    two = tmp_path / "two"
    two.mkdir()
    copy(one / "mlflow.db", two / "mlflow.db")
    for number, place in enumerate((two, one)):
        use(place)
        assert model_registry.fetch("models:/egic-alone/1", tmp_path / f"fetched{number}").is_dir()
        assert model_registry.find_finished("alone", "key1", experiment=experiment).model_version == 1
    assert not (two / "mlartifacts").exists() and pictures(one) == [PNG]


@pytest.mark.parametrize("place", ["{tmp_path}/file/results", "s3://none/x", "dbfs:/x", "mlflow-artifacts:/x"])
def test_a_place_that_cannot_store_artifacts_is_an_error_before_a_stage_starts(
    working_folder, experiment, tmp_path, monkeypatch, place
):
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("MAX_ATTEMPTS", "1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    (tmp_path / "file").write_text("")
    place = place.format(tmp_path=tmp_path)
    where = store.client().create_experiment(experiment, artifact_location=place)
    for start in (runs.start_pipeline, lambda *args, **kw: runs.start_stage(None, "gan", *args, **kw)):
        with pytest.raises(
            UserError, match=f"'{re.escape(experiment)}' keeps its artifacts in {place}, where nothing can be"
        ):
            start("name", {}, {}, experiment=experiment)
    assert [run.info.status for run in store.client().search_runs([where])] == ["FAILED"] * 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_an_artifact_folder_without_permission_is_an_error(working_folder, experiment, tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o500)
    store.client().create_experiment(experiment, artifact_location=str(tmp_path / "theirs" / "artifacts"))
    with pytest.raises(UserError, match="where nothing can be written"):
        runs.start_pipeline("name", {}, {}, experiment=experiment)

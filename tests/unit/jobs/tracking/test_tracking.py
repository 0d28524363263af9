"""Runs, curves, pictures and artifacts against a real sqlite store; one test against a real server."""

import dataclasses
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from egic.errors import UserError
from jobs.storage.files import Folder
from jobs.tracking import metric_log, model_registry, runs
from jobs.training import reports

PNG = b"\x89PNG\r\n\x1a\n and the rest"


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """One database for all tests of this file: to make its tables takes seconds."""
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture(autouse=True)
def store(database, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    return runs.client()


@pytest.fixture
def experiment(request) -> str:
    """Every test has its own runs."""
    return request.node.name


@pytest.fixture
def run_id(experiment) -> str:
    return runs.start_stage(None, "gan", "key1", {}, {}, experiment=experiment)


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "artifact"
    path.mkdir()
    (path / "codec.safetensors").write_bytes(b"weights")
    (path / "config.json").write_text("{}")
    return path


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()


def published(folder, experiment, key="key1", name="gan") -> model_registry.Artifact:
    run_id = runs.start_stage(None, name, key, {}, {}, experiment=experiment)
    artifact = model_registry.publish(run_id, folder, name, digest(folder), {"lam": 2}, {"commit": "abc"})
    runs.finish(run_id)
    return artifact


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# the store


def test_default_is_a_database_and_artifacts_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    assert runs.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    run_id = runs.start_pipeline("tiny", {}, {})
    runs.log_pictures(run_id, 100, {"val": PNG})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlartifacts", "mlflow.db"]
    assert [path.read_bytes() for path in tmp_path.rglob("pictures/val/step_000100.png")] == [PNG]


def test_relative_sqlite_path_does_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    assert runs.tracking_uri() == f"sqlite:///{tmp_path}/runs.db"


def test_server_that_is_down_is_one_clear_error_without_the_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    with pytest.raises(ValueError, match=r"MLflow server http://127\.0\.0\.1:\d+ does not answer") as caught:
        runs.start_pipeline("tiny", {}, {})
    assert "secret" not in str(caught.value)


def test_folder_that_does_not_exist_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/missing/mlflow.db")
    with pytest.raises(ValueError, match="cannot write the MLflow store .*/missing/mlflow.db; set MLFLOW"):
        runs.client()


def test_a_database_is_made_by_one_at_a_time(tmp_path, monkeypatch):
    """Two that make its tables at once: MLflow's own `table already exists`."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    inside, met = [], []

    def make(**_) -> None:
        inside.append(1)
        time.sleep(0.2)
        met.append(len(inside))
        inside.pop()

    monkeypatch.setattr(runs.mlflow(), "MlflowClient", make)
    threads = [threading.Thread(target=runs.client) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == [1, 1, 1]


def test_deleted_experiment_is_a_clear_error(store, experiment):
    store.delete_experiment(runs.experiment_id(experiment))
    with pytest.raises(ValueError, match="is deleted in MLflow"):
        runs.start_pipeline("tiny", {}, {}, experiment=experiment)


def test_user_settings_of_mlflow_are_kept(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    runs.mlflow()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"


# runs


def test_stage_is_a_child_run_with_its_key(store, experiment):
    parent = runs.start_pipeline("tiny", {"seed": 1}, {"preset": "tiny"}, experiment=experiment)
    child = runs.start_stage(parent, "gan", "k", {"lam": 2.0}, {"commit": "abc"}, experiment=experiment)
    run = store.get_run(child)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert (run.data.tags["egic.key"], run.data.tags["egic.stage"], run.data.tags["commit"]) == ("k", "gan", "abc")
    assert run.data.params == {"lam": "2.0"}
    assert store.get_run(parent).data.params == {"seed": "1"}
    assert store.get_run(parent).data.tags["egic.stage.gan"] == child


@pytest.mark.parametrize("ending", [None, "FAILED", "KILLED"])
def test_unfinished_stage_is_opened_again_below_the_new_pipeline(store, experiment, ending):
    first = runs.start_stage(None, "gan", "k", {"lam": 2}, {}, experiment=experiment)
    if ending:
        runs.finish(first, ending)
    parent = runs.start_pipeline("again", {}, {}, experiment=experiment)
    assert runs.start_stage(parent, "gan", "k", {"lam": 2}, {}, experiment=experiment) == first
    assert store.get_run(first).info.status == "RUNNING"
    assert store.get_run(first).data.tags["mlflow.parentRunId"] == parent


def test_another_key_stage_or_a_finished_run_makes_a_new_run(experiment):
    first = runs.start_stage(None, "gan", "k", {}, {}, experiment=experiment)
    others = [
        runs.start_stage(None, stage, key, {}, {}, experiment=experiment)
        for stage, key in [("gan", "k2"), ("orp", "k")]
    ]
    runs.finish(first)
    others.append(runs.start_stage(None, "gan", "k", {}, {}, experiment=experiment))
    assert len({first, *others}) == 4


def test_finish_refuses_an_unknown_status(run_id):
    with pytest.raises(ValueError, match="status must be"):
        runs.finish(run_id, "DONE")


def test_reused_stage_is_linked_from_the_pipeline(store, experiment, run_id):
    parent = runs.start_pipeline("tiny", {}, {}, experiment=experiment)
    runs.reuse_stage(parent, "gan", run_id)
    assert store.get_run(parent).data.tags["egic.reused.gan"] == run_id


def test_flatten_nested_configs():
    @dataclasses.dataclass
    class Loss:
        lam: float = 2.0
        widths: tuple[int, ...] = (64, 32)
        ema: float | None = None

    assert runs.flatten({"gan": Loss(), "seed": 1}) == {
        "gan.lam": "2.0",
        "gan.widths": "[64, 32]",
        "gan.ema": "None",
        "seed": "1",
    }


def test_long_and_many_parameters(store, run_id, caplog):
    runs.log_params(run_id, {"long": "x" * 7000, **{f"p{i}": i for i in range(250)}})
    params = store.get_run(run_id).data.params
    assert len(params) == 251
    assert len(params["long"]) == runs.PARAM_LIMIT and params["long"].endswith("(cut, 7000 characters)")
    assert "parameter long is cut" in caplog.text


def test_changed_parameter_of_a_reopened_run_is_a_tag(store, run_id, caplog):
    runs.log_params(run_id, {"workers": 2})
    runs.log_params(run_id, {"workers": 4})
    run = store.get_run(run_id)
    assert run.data.params["workers"] == "2" and run.data.tags["changed.workers"] == "4"
    assert "parameter workers was 2" in caplog.text


def test_pictures_that_cannot_be_stored_do_not_stop_training(run_id, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    runs.log_pictures(run_id, 100, {"val": PNG})
    assert "pictures of step 100 did not reach MLflow" in caplog.text


def test_system_metrics_are_logged(store, run_id):
    with runs.system_metrics(run_id, interval_s=0.1):
        wait_until(lambda: any(name.startswith("system/") for name in store.get_run(run_id).data.metrics))


# curves


def history(store, run_id, name) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in store.get_metric_history(run_id, name)]


def wait_until(condition, timeout_s=20):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_rows_arrive(store, run_id):
    curves = metric_log.MetricLog(run_id)
    curves.log([{"step": i, "train/loss": i / 2, "train/bpp": 1} for i in range(1500)])  # three requests
    assert curves.close() == 0
    assert history(store, run_id, "train/loss") == [(i, i / 2) for i in range(1500)]
    assert len(history(store, run_id, "train/bpp")) == 1500


def test_steps_run_again_after_a_resume_appear_once_per_metric(store, run_id):
    first = metric_log.MetricLog(run_id)
    first.log([{"step": step, "train/loss": 1.0} for step in (1, 2, 3)])
    first.log([{"step": 2, "val/psnr_db": 20.0}])
    first.close()
    second = metric_log.MetricLog(run_id)
    second.log([{"step": step, "train/loss": 2.0} for step in (2, 3, 4)])
    second.log([{"step": 2, "val/psnr_db": 21.0}, {"step": 3, "val/psnr_db": 22.0}])
    second.close()
    assert history(store, run_id, "train/loss") == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    assert history(store, run_id, "val/psnr_db") == [(2, 20.0), (3, 22.0)]


def test_nonfinite_values_are_left_out_and_named(store, run_id, caplog):
    curves = metric_log.MetricLog(run_id)
    curves.log([{"step": 1, "train/loss": float("inf"), "train/bpp": 1}, {"step": 2, "train/loss": float("nan")}])
    curves.log([{"step": 3, "train/loss": 5.0}])
    curves.close()
    assert history(store, run_id, "train/loss") == [(3, 5.0)]
    assert history(store, run_id, "train/bpp") == [(1, 1.0)]
    assert "train/loss is inf at step 1" in caplog.text and caplog.text.count("left out") == 1


def failing(monkeypatch, num_failures: int, error: Exception) -> list:
    """Let the first `num_failures` batches fail after they were stored, as a lost answer would; returns the calls."""
    client, calls = runs.mlflow().MlflowClient, []
    log_batch = client.log_batch

    def lose_answer(self, *args, **kwargs):
        log_batch(self, *args, **kwargs)
        calls.append(args)
        if len(calls) <= num_failures:
            raise error

    monkeypatch.setattr(client, "log_batch", lose_answer)
    return calls


def test_lost_answers_are_retried_and_nothing_is_stored_twice(store, run_id, monkeypatch, caplog):
    calls = failing(monkeypatch, 1, ConnectionError("gone"))
    curves = metric_log.MetricLog(run_id)
    curves.log([{"step": 1, "train/loss": 1.0}])
    wait_until(lambda: len(calls) == 2)
    assert curves.close() == 0
    assert history(store, run_id, "train/loss") == [(1, 1.0)]
    assert "they wait, training goes on" in caplog.text and "takes metrics again" in caplog.text


def test_log_never_waits_and_close_says_what_is_lost(run_id, monkeypatch, caplog):
    entered, release = [], threading.Event()

    def hang(self, *args, **kwargs):
        entered.append(1)
        release.wait(60)
        raise ConnectionError("gone")

    monkeypatch.setattr(runs.mlflow().MlflowClient, "log_batch", hang)
    curves = metric_log.MetricLog(run_id)
    curves.log([{"step": 7, "train/loss": 1.0}])
    wait_until(lambda: entered)
    curves.log([{"step": 8, "train/loss": 1.0}])  # returns while the first batch hangs
    assert len(entered) == 1
    assert curves.close(timeout=0.1) == 2
    assert curves._thread.is_alive()  # close did not wait for the batch that hangs
    release.set()
    assert [step for *_, step in curves.undelivered] == [7, 8]


def test_full_buffer_drops_the_oldest_and_counts_them(store, run_id, monkeypatch, caplog):
    monkeypatch.setattr(metric_log.MetricLog, "_deliver", lambda self: None)  # a server that never answers
    curves = metric_log.MetricLog(run_id, capacity=3)
    curves.log([{"step": step, "train/loss": 1.0} for step in range(5)])
    assert [step for *_, step in curves._waiting] == [2, 3, 4]
    assert curves.close(timeout=0.1) == 5
    assert "dropping the oldest" in caplog.text


def test_refused_metrics_are_lost_with_a_reason_not_retried_for_ever(run_id, caplog):
    curves = metric_log.MetricLog(run_id)
    curves.log([{"step": 1, "not;a;name": 1.0}])
    wait_until(lambda: curves.num_lost)
    curves.log([{"step": 2, "train/loss": 1.0}])
    assert curves.close() == 1
    assert "MLflow refuses metrics" in caplog.text


# artifacts


def test_published_artifact_is_found_by_its_key_once_finished(folder, experiment):
    run_id = runs.start_stage(None, "gan", "k", {}, {}, experiment=experiment)
    artifact = model_registry.publish(run_id, folder, "gan", digest(folder), {"lam": 2}, {})
    assert model_registry.find_finished("gan", "k", experiment=experiment) is None
    runs.finish(run_id)
    assert model_registry.find_finished("gan", "k", experiment=experiment) == artifact
    assert (artifact.run_id, artifact.sha256) == (run_id, digest(folder))
    assert model_registry.find_finished("gan", "k2", experiment=experiment) is None
    assert model_registry.find_finished("orp", "k", experiment=experiment) is None


def test_finished_stage_whose_files_are_gone_is_not_reused(folder, experiment, database, caplog):
    artifact = published(folder, experiment)
    stored = database.parent / "mlartifacts" / "models" / artifact.uri.removeprefix("models:/") / "artifacts"
    for path in stored.iterdir():
        path.unlink()
    assert model_registry.find_finished("gan", "key1", experiment=experiment) is None
    assert "its files are gone" in caplog.text


def test_publishing_again_after_a_crash_makes_no_second_version(folder, run_id):
    first = model_registry.publish(run_id, folder, "gan", digest(folder), {}, {})
    assert model_registry.publish(run_id, folder, "gan", digest(folder), {}, {}) == first


def test_upload_that_fails_leaves_no_version(folder, run_id, store, monkeypatch):
    def fail(self, *args):
        raise OSError("disk full")

    monkeypatch.setattr(runs.mlflow().MlflowClient, "log_model_artifacts", fail)
    with pytest.raises(OSError, match="disk full"):
        model_registry.publish(run_id, folder, "upload-fails", digest(folder), {}, {})
    assert store.search_model_versions(f"run_id = '{run_id}'") == []


def test_references_give_the_same_folder(folder, experiment, tmp_path):
    artifact = published(folder, experiment, name="refs")
    refs = ["models:/egic-refs@latest", "models:/egic-refs/1", artifact.uri, f"runs:/{artifact.run_id}", str(folder)]
    for i, ref in enumerate(refs):
        found = model_registry.fetch(ref, tmp_path / f"new/{i}", digest(folder), digest=digest)
        assert {path.name: path.read_bytes() for path in found.iterdir()} == {
            "codec.safetensors": b"weights",
            "config.json": b"{}",
        }
        assert model_registry.resolve(ref, digest=digest).sha256 == artifact.sha256
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
        ("no/such/folder", "no/such/folder is no folder"),
    ],
)
def test_unknown_references_are_clear_errors(ref, message, folder, experiment, tmp_path):
    published(folder, experiment, name="known")
    with pytest.raises(ValueError, match=message):
        model_registry.fetch(ref, tmp_path / "new", digest=digest)
    assert not (tmp_path / "new").exists()


def test_run_without_artifact_is_a_clear_error(run_id):
    with pytest.raises(ValueError, match="has published no artifact"):
        model_registry.resolve(f"runs:/{run_id}")


def test_wrong_digest_is_refused_before_and_after_the_download(folder, experiment, tmp_path, database):
    artifact = published(folder, experiment)
    with pytest.raises(ValueError, match="expected 0000: it is not the same artifact"):
        model_registry.fetch(artifact.uri, tmp_path / "new", "0000", digest=digest)
    (stored,) = (database.parent / "mlartifacts").rglob(f"{artifact.uri.removeprefix('models:/')}/artifacts/codec.*")
    stored.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged or another artifact"):
        model_registry.fetch(artifact.uri, tmp_path / "new", digest=digest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact"]  # nothing half done stays


def test_local_folder_is_checked_too(folder):
    with pytest.raises(ValueError, match="expected 0000"):
        model_registry.fetch(str(folder), folder / "new", "0000", digest=digest)


def test_folder_that_is_there_is_kept_if_right_and_refused_if_not(folder, experiment, tmp_path):
    artifact = published(folder, experiment)
    dest = model_registry.fetch(artifact.uri, tmp_path / "new", digest=digest)
    inode = dest.stat().st_ino
    assert model_registry.fetch(artifact.uri, dest, digest=digest).stat().st_ino == inode
    (dest / "codec.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="delete it and fetch again"):
        model_registry.fetch(artifact.uri, dest, digest=digest)


def test_default_digest_is_the_checkpoint_module_s(folder, monkeypatch):
    monkeypatch.setattr("egic.artifact.digest", lambda path: "abc")
    assert model_registry.resolve(str(folder)).sha256 == "abc"


def test_parents_are_lineage_and_tags(store, folder, experiment, run_id):
    parent = published(folder, experiment, name="mse-codec")
    local = model_registry.resolve(str(folder), digest=digest)
    for _ in range(2):  # a reopened run says it again
        model_registry.log_parents(run_id, {"codec": parent, "discriminator": local})
    run = store.get_run(run_id)
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
def test_best_moves_only_on_improvement_on_the_same_data(store, folder, request, higher, steps):
    stage = f"best-{request.node.callspec.indices['steps']}"
    name = f"egic-{stage}"
    expected = None
    for i, (value, data, becomes_best) in enumerate(steps):
        (folder / "codec.safetensors").write_bytes(bytes([i]))
        version = published(folder, stage, key=str(i), name=stage).model_version
        for _ in range(2):  # saying it again changes nothing
            assert model_registry.promote_if_best(name, version, "val/x", value, higher, data) is becomes_best
        expected = version if becomes_best else expected
        best = store.get_registered_model(name).aliases.get("best")
        assert (best and int(best)) == expected


def test_best_is_not_compared_across_metrics(store, folder, experiment):
    first = published(folder, experiment, name="metrics")
    model_registry.promote_if_best("egic-metrics", first.model_version, "val/psnr_db", 20.0, True, "a")
    (folder / "codec.safetensors").write_bytes(b"other")
    second = published(folder, experiment, key="key2", name="metrics")
    assert not model_registry.promote_if_best("egic-metrics", second.model_version, "val/miou", 90.0, True, "a")
    listed = dict(model_registry.registered())
    assert listed[f"models:/egic-metrics/{first.model_version}"].endswith(" @best")
    assert listed[f"models:/egic-metrics/{second.model_version}"].endswith(" @latest")


def test_a_fetched_model_lies_in_the_cache_under_its_digest(store, folder, experiment, monkeypatch, tmp_path):
    """A moved alias is another digest, and so another folder."""
    monkeypatch.setenv("EGIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_registry, "sha256_of", lambda path, _: digest(path))
    for content in (b"first", b"second"):
        (folder / "codec.safetensors").write_bytes(content)
        made = published(folder, experiment, key=content.decode(), name="cached")
        found = model_registry.fetch_cached("models:/egic-cached@latest")
        assert found == tmp_path / "cache" / made.sha256[:32] == model_registry.fetch_cached(made.uri)
        assert (found / "codec.safetensors").read_bytes() == content


# a real server


@pytest.mark.slow
def test_real_server_round_trip_and_restart(tmp_path, folder, monkeypatch):
    port = free_port()
    uri = f"http://127.0.0.1:{port}"

    def start() -> subprocess.Popen:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI")
        with open(tmp_path / "server.log", "ab") as out:
            return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out, process_group=0)

    def answers() -> bool:
        try:
            runs.check_server(uri)
        except ValueError:
            return False
        return True

    def stop(server: subprocess.Popen) -> None:
        os.killpg(server.pid, 9)
        server.wait()

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    server = start()
    try:
        wait_until(answers, timeout_s=120)
        artifact = published(folder, "served")
        runs.log_pictures(artifact.run_id, 1, {"val": PNG})
        assert model_registry.find_finished("gan", "key1", experiment="served") == artifact
        assert model_registry.fetch("models:/egic-gan@latest", tmp_path / "new", digest=digest).is_dir()
        curves = metric_log.MetricLog(artifact.run_id)
        curves.log([{"step": 1, "train/loss": 1.0}])
        stop(server)
        curves.log([{"step": 2, "train/loss": 2.0}])
        server = start()
        wait_until(answers, timeout_s=120)
        assert curves.close(timeout=60) == 0
        assert history(runs.client(), artifact.run_id, "train/loss") == [(1, 1.0), (2, 2.0)]
    finally:
        stop(server)


def test_a_folder_from_elsewhere_is_registered_once_and_is_a_parent(tmp_path, experiment):
    """Imported weights, as `jobs.commands.one_stage` takes them: a registered version, or the folder itself."""
    import torch

    from egic.artifact import save
    from jobs.commands import one_stage
    from jobs.config.presets import PRESETS, extended
    from jobs.training.stage import load_stage
    from tests.codec_models import tiny_model

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
    with pytest.raises(ValueError, match="provenance.json (does not say|names)"):
        model_registry.stage_of(folder)


@pytest.fixture
def away(monkeypatch):
    """A server that does not answer the first times it is asked; how often it still will not."""
    left = [0]

    def check(uri):
        if left[0] > 0:
            left[0] -= 1
            raise UserError("the MLflow server does not answer; start it")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(runs, "check_server", check)
    monkeypatch.setattr(runs.time, "sleep", lambda s: None)
    return left


def failing_first(times: int, error: Exception):
    calls = []

    def action():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    action.calls = calls
    return action


def test_the_end_of_a_stage_waits_for_a_server_that_is_away(away, caplog):
    away[0] = 3
    assert runs.patiently(failing_first(3, ConnectionError("refused")), "gan is trained") == "done"
    assert "trying again for" in caplog.text


def test_a_database_that_restarts_is_waited_for(away):
    error = runs.mlflow().MlflowException("(psycopg2.OperationalError) server closed the connection")
    assert runs.patiently(failing_first(2, error), "gan is trained") == "done"


def test_a_server_that_stays_away_is_named_with_what_is_kept(away, monkeypatch):
    away[0] = 10**9
    monkeypatch.setenv("EGIC_MLFLOW_PATIENCE_S", "0")
    with pytest.raises(
        ValueError, match="gan is trained, but the MLflow server does not answer.*give the same command"
    ):
        runs.patiently(failing_first(10**9, ConnectionError()), "gan is trained")


def test_curves_outlive_a_controller_that_is_killed_while_the_server_is_away(store, run_id, tmp_path, monkeypatch):
    """The next controller begins with the rows of the last checkpoint; those before it lie in the stage's folder."""
    place = Folder(str(tmp_path / "stage"))
    rows = {step: [{"step": step, "train/loss": 1.0 / step}] for step in (10, 20, 30, 40)}
    killed = reports.Reports(run_id, 40, place)
    with monkeypatch.context() as away:
        away.setattr(metric_log.MetricLog, "_send", lambda self, batch: (_ for _ in ()).throw(ConnectionError("away")))
        for step in (10, 20, 30):
            killed.after_report(None, [{"step": step, "rows": rows[step], "pictures": []}], None)
        killed.metric_log.close(0)  # its thread ends; nothing else of a close happens
    following = reports.Reports(run_id, 40, place)
    following.after_report(None, [{"step": 40, "rows": rows[30] + rows[40], "pictures": []}], None)
    history = runs.client().get_metric_history(run_id, "train/loss")
    assert sorted(m.step for m in history) == [10, 20, 30, 40]
    assert place.names() == []


def test_what_trying_again_does_not_mend_is_raised_at_once(away):
    for error in (KeyError("x"), ValueError("no"), runs.mlflow().MlflowException("bad", error_code=1000)):
        action = failing_first(10, error)
        with pytest.raises(type(error)):
            runs.patiently(action, "gan is trained")
        assert len(action.calls) == 1


def test_what_a_server_did_not_take_is_sent_when_it_is_back(store, run_id, tmp_path, monkeypatch):
    """The controller ends while the server is away: the next one, or the driver, sends its curves first."""
    place = Folder(str(tmp_path / "stage"))
    first = reports.resumed_log(run_id, place)
    with monkeypatch.context() as away:
        away.setattr(metric_log.MetricLog, "_send", lambda self, batch: (_ for _ in ()).throw(ConnectionError("away")))
        first.log([{"step": step, "train/loss": 1.0 / step} for step in (1, 2)])
        reports.finish_log(first, place, 0.2)
        with pytest.raises(ConnectionError):
            reports.deliver_rest(run_id, place, timeout_s=0.2)
    second = reports.resumed_log(run_id, place)
    second.log([{"step": 2, "train/loss": 0.5}, {"step": 3, "train/loss": 0.25}])  # a resumed run tells some again
    reports.finish_log(second, place, 30)
    history = runs.client().get_metric_history(run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert place.names() == []
    reports.deliver_rest(run_id, place)  # nothing is left to do

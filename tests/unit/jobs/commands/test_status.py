"""--status with a real sqlite store: all states of a stage, and the differences to earlier runs."""

import hashlib
import json
import os
import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray

from jobs.commands import status
from jobs.config.presets import tiny
from jobs.storage import lease
from jobs.tracking import model_registry, runs, store
from jobs.training import checkpoints, code_version
from jobs.training.code_version import code_tag
from jobs.training.num_categories import with_categories
from jobs.training.stage import ingredients, load_stage, run_params, sources, stage_key

MANIFESTS = {
    split: SimpleNamespace(digest=f"digest of {split}", folder=split, num_classes=133, class_pixels=(0, 9))
    for split in ("train", "val")
}
DATA = "digest of train digest of val"
LPIPS = "random backbone, seed 0"


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture
def config(database, tmp_path, monkeypatch, request):
    """The preset tiny in a new experiment."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.delenv("EGIC_WEIGHTS", raising=False)
    monkeypatch.setattr(status, "find_data", lambda data, output: MANIFESTS)
    store.experiment_id(request.node.name)
    return with_categories(replace(tiny(), experiment=request.node.name, output=str(tmp_path)), 133)


def begin(name, config, tmp_path, parents=(), tags=None, data=DATA):
    """Start a run of the stage as `jobs.training.reuse_or_train.train_stage` does; returns its id and key."""
    parents = dict(parents)
    digests = {k: a.sha256 for k, a in parents.items()}
    lpips = LPIPS if name == "gan" else ""
    facts = ingredients(load_stage(name), config, parents=digests, data=data, lpips=lpips)
    key, tags = stage_key(facts), code_tag(sources(name)) if tags is None else tags
    run_id = runs.start_stage(None, name, key, run_params(facts), tags, experiment=config.experiment)
    model_registry.log_parents(run_id, parents)
    return run_id, key


def finished(name, config, tmp_path, parents=(), **changes):
    """Finish a run of the stage; returns its artifact."""
    run_id, key = begin(name, config, tmp_path, parents, **changes)
    folder = tmp_path / f"artifact-{key}"
    folder.mkdir()
    (folder / "weights").write_text(key)
    sha256 = hashlib.sha256(key.encode()).hexdigest()
    artifact = model_registry.publish(run_id, folder, name, sha256, {}, {"egic.key": key})
    runs.finish(run_id)
    return artifact


def checkpoint(config, name, key, step):
    folder = checkpoints.place_of(config.output, f"{name}-{key}")
    folder.write(f"checkpoint_{step}/meta.json", json.dumps({"step": step}).encode())
    return folder


def test_before_the_first_run_no_stage_has_run_and_nothing_is_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = {s.stage: s for s in status.states(tiny(), ("segmentation", "gan", "evaluate"))}
    assert [s.state for s in found.values()] == ["never run"] * 3 and not any(s.key for s in found.values())
    assert found["segmentation"].why == ["the data is not prepared yet"]
    assert found["gan"].why[0] == "waits for mse-codec and segmentation"
    assert list(tmp_path.iterdir()) == [] and not ray.is_initialized()


def test_a_finished_stage_names_its_artifact(config, tmp_path):
    artifact = finished("mse-codec", config, tmp_path)
    state, waiting = status.states(config, ("mse-codec", "gan"))
    assert (state.state, state.run_id, state.artifact, state.why) == ("finished", artifact.run_id, artifact, [])
    assert waiting.why == ["waits for segmentation"]
    line = status.text(config, ("mse-codec",)).splitlines()[1]
    assert line.split()[:4] == ["mse-codec", "finished", state.key, artifact.run_id[:8]]
    assert line.endswith(f"models:/egic-mse-codec/{artifact.model_version}") and len(line) <= 80


def test_an_interrupted_stage_names_its_last_checkpoint(config, tmp_path):
    run_id, key = begin("mse-codec", config, tmp_path)
    (state,) = status.states(config, ("mse-codec",))
    assert (state.state, state.run_id) == ("interrupted before its first checkpoint", run_id)
    checkpoint(config, "mse-codec", key, 50)
    place = checkpoint(config, "mse-codec", key, 100)
    (state,) = status.states(config, ("mse-codec",))
    assert state.state == f"interrupted at step 100, {place.path}/checkpoint_100" and state.why == []
    holder = {"host": socket.gethostname(), "boot": lease._boot(), "pid": os.getpid(), "owner": "x"}
    place.write(lease.NAME, json.dumps(holder).encode())
    (state,) = status.states(config, ("mse-codec",))
    assert state.state == f"running, last checkpoint at step 100, {place.path}/checkpoint_100"


def why(config, name="mse-codec"):
    return " ".join(next(s for s in status.states(config, (name,)) if s.stage == name).why)


def test_a_changed_field_is_named_with_both_values(config, tmp_path):
    old = finished("mse-codec", config, tmp_path)
    changed = replace(config, mse_codec=replace(config.mse_codec, beta=0.5, steps=7, last_steps=0), seed=4)
    said = why(changed)
    assert said.startswith(f"differs from run {old.run_id}: ")
    for each in ("mse_codec.beta: 0.01 -> 0.5", "mse_codec.steps: 450 -> 7", "seed: 0 -> 4"):
        assert each in said
    assert "codec.dims" not in said and "changed:" not in said and "data" not in said


def test_the_newest_trained_run_is_compared(config, tmp_path):
    finished("mse-codec", replace(config, seed=1), tmp_path)
    newest = finished("mse-codec", replace(config, seed=2), tmp_path)
    runs.start_stage(None, "mse-codec", "k", {}, {"egic.imported": "true"}, experiment=config.experiment)
    assert why(config) == f"differs from run {newest.run_id}: seed: 2 -> 0"


def test_changed_sources_are_named(config, tmp_path, monkeypatch):
    tag = json.loads(code_tag(sources("mse-codec"))[code_version.TAG]) | {
        "egic/networks/swin.py": "0" * 12,
        "egic/gone.py": "1" * 12,
    }
    finished("mse-codec", config, tmp_path, tags={code_version.TAG: json.dumps(tag)})
    monkeypatch.setattr("jobs.training.stage.code_digest", lambda files: "another")
    assert why(config).endswith(": changed: egic/gone.py, egic/networks/swin.py")


def test_runs_with_other_data_or_without_a_list_of_sources(config, tmp_path, monkeypatch):
    finished("mse-codec", config, tmp_path, tags={}, data="other")
    monkeypatch.setattr("jobs.training.stage.code_digest", lambda files: "another")
    assert why(config).endswith(": other code (the run does not list its files); other data")


def test_other_parents_and_another_backbone_are_named(config, tmp_path):
    parents = {name: finished(name, config, tmp_path) for name in ("segmentation", "mse-codec")}
    was = finished("gan", config, tmp_path, parents)
    names = ("segmentation", "mse-codec", "gan")
    assert [s.state for s in status.states(config, names)] == ["finished"] * 3
    other = replace(config, mse_codec=replace(config.mse_codec, beta=0.5))
    new = finished("mse-codec", other, tmp_path)
    states = status.states(replace(other, lpips_weights=""), names)
    said = " ".join(states[-1].why)
    assert said.startswith(f"differs from run {was.run_id}: ") and "lpips_weights: local -> " in said
    assert f"another mse-codec: {parents['mse-codec'].sha256[:12]} -> {new.sha256[:12]}" in said
    assert f"LPIPS: {LPIPS} -> alexnet-owt" in said and "segmentation" not in said


def test_an_evaluation_is_found_by_its_key(config, tmp_path):
    from egic.metrics import measures
    from jobs.evaluation import evaluation

    artifact = model_registry.Artifact(run_id="r", uri="models:/m-1", sha256="a" * 64, model_version=3)
    manifest = SimpleNamespace(digest="d", num_samples=0)
    job = evaluation.EvaluationJob(
        models={"egic-orp/3": artifact}, pictures=(), evaluate=config.evaluate, compute=config.compute,
        output=tmp_path, experiment=config.experiment,
    )  # fmt: skip
    facts = evaluation.ingredients(job, measures.find_measures(config.evaluate.metrics, config.evaluate.weights), "d")
    key = stage_key(facts)
    run_id = runs.start_stage(None, "evaluate", key, facts, code_tag(sources("evaluate")), experiment=config.experiment)

    def state(config):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "of_data", lambda manifest, count: [])
            return status.state_of_evaluation(config, {"val": manifest}, artifact, True)

    assert state(config).state.startswith("interrupted") and state(config).run_id == run_id
    runs.finish(run_id)
    assert state(config).state == "finished elsewhere"
    (tmp_path / "evaluate" / key).mkdir(parents=True)
    (tmp_path / "evaluate" / key / "summary.json").write_text("{}")
    assert state(config).state == "finished"
    model_registry.log_parents(run_id, {"model": artifact})
    other = state(replace(config, evaluate=replace(config.evaluate, alphas=(0.0,))))
    assert other.why == [f"differs from run {run_id}: alphas: [0.0, 0.5, 1.0] -> [0.0]"]

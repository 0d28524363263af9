"""Runs of pipelines and stages in MLflow: parents, tags, parameters and pictures."""

import dataclasses

import pytest

from jobs.tracking import runs
from tests.mlflow_store import PNG, free_port

pytestmark = pytest.mark.usefixtures("client")


def test_stage_is_a_child_run_with_its_key(client, experiment):
    parent = runs.start_pipeline("tiny", {"seed": 1}, {"preset": "tiny"}, experiment=experiment)
    child = runs.start_stage(parent, "gan", "k", {"lam": 2.0}, {"commit": "abc"}, experiment=experiment)
    run = client.get_run(child)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert (run.data.tags["egic.key"], run.data.tags["egic.stage"], run.data.tags["commit"]) == ("k", "gan", "abc")
    assert run.data.params == {"lam": "2.0"}
    assert client.get_run(parent).data.params == {"seed": "1"}
    assert client.get_run(parent).data.tags["egic.stage.gan"] == child


@pytest.mark.parametrize("ending", [None, "FAILED", "KILLED"])
def test_unfinished_stage_is_reopened_below_the_new_pipeline(client, experiment, ending):
    first = runs.start_stage(None, "gan", "k", {"lam": 2}, {}, experiment=experiment)
    if ending:
        runs.finish(first, ending)
    parent = runs.start_pipeline("again", {}, {}, experiment=experiment)
    assert runs.start_stage(parent, "gan", "k", {"lam": 2}, {}, experiment=experiment) == first
    assert client.get_run(first).info.status == "RUNNING"
    assert client.get_run(first).data.tags["mlflow.parentRunId"] == parent


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


def test_reused_stage_is_linked_from_the_pipeline(client, experiment, run_id):
    parent = runs.start_pipeline("tiny", {}, {}, experiment=experiment)
    runs.reuse_stage(parent, "gan", run_id)
    assert client.get_run(parent).data.tags["egic.reused.gan"] == run_id


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


def test_many_parameters_are_stored_and_long_ones_cut(client, run_id, caplog):
    runs.log_params(run_id, {"long": "x" * 7000, **{f"p{i}": i for i in range(250)}})
    params = client.get_run(run_id).data.params
    assert len(params) == 251
    assert len(params["long"]) == runs.PARAM_LIMIT and params["long"].endswith("(cut, 7000 characters)")
    assert "parameter long is cut" in caplog.text


def test_changed_parameter_of_a_reopened_run_is_a_tag(client, run_id, caplog):
    runs.log_params(run_id, {"workers": 2})
    runs.log_params(run_id, {"workers": 4})
    run = client.get_run(run_id)
    assert run.data.params["workers"] == "2" and run.data.tags["changed.workers"] == "4"
    assert "parameter workers was 2" in caplog.text


def test_pictures_that_cannot_be_stored_do_not_stop_training(run_id, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    runs.log_pictures(run_id, 100, {"val": PNG})
    assert "pictures of step 100 did not reach MLflow" in caplog.text

"""Fixtures: a tracking store, an experiment, a run, and an artifact's folder."""

from pathlib import Path

import pytest

from jobs.tracking import runs, store


@pytest.fixture(scope="session")
def database(tmp_path_factory) -> Path:
    """One sqlite file for all tests, since creating its tables takes seconds."""
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture
def client(database, monkeypatch):
    """A client of that store, which is also set as tracking store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    return store.client()


@pytest.fixture
def experiment(request) -> str:
    """A new experiment for each test."""
    return request.node.name


@pytest.fixture
def run_id(client, experiment) -> str:
    return runs.start_stage(None, "gan", "key1", {}, {}, experiment=experiment)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of an artifact."""
    path = tmp_path / "artifact"
    path.mkdir()
    (path / "codec.safetensors").write_bytes(b"weights")
    (path / "config.json").write_text("{}")
    return path

"""A tracking store for the tests that ask for it."""

from pathlib import Path

import pytest

from jobs.tracking import runs, store


@pytest.fixture(scope="session")
def database(tmp_path_factory) -> Path:
    """One sqlite file for all tests: making its tables takes seconds."""
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture
def client(database, monkeypatch):
    """A client of that store, which is the test's tracking store, too."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    return store.client()


@pytest.fixture
def experiment(request) -> str:
    """Every test has its own runs."""
    return request.node.name


@pytest.fixture
def run_id(client, experiment) -> str:
    return runs.start_stage(None, "gan", "key1", {}, {}, experiment=experiment)


@pytest.fixture
def folder(tmp_path) -> Path:
    """An artifact's folder."""
    path = tmp_path / "artifact"
    path.mkdir()
    (path / "codec.safetensors").write_bytes(b"weights")
    (path / "config.json").write_text("{}")
    return path

"""Fixtures for folders of real data from environment variables; tests skip if the variable is not set."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "reference: needs TensorFlow, which writes checkpoints as the reference does")
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # each of the processes has its share of the cores
        torch.set_num_threads(max(1, torch.get_num_threads() // int(workers)))


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    path = Path(value)
    if not path.is_dir():
        pytest.fail(f"{variable} is not a folder: {path}")
    return path


@pytest.fixture(scope="session")
def coco_root() -> Path:
    return _folder("EGIC_COCO_ROOT")


@pytest.fixture(scope="session")
def kodak() -> Path:
    return _folder("EGIC_KODAK")


@pytest.fixture(scope="session")
def golden() -> Path:
    return _folder("EGIC_GOLDEN")


@pytest.fixture(scope="session")
def weights() -> Path:
    return _folder("EGIC_WEIGHTS")


@pytest.fixture(scope="module")
def short_folder() -> Iterator[Path]:
    """A temporary folder for Ray with a short path: a socket's path may have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="egic") as folder:
        yield Path(folder)


@pytest.fixture
def one_thread():
    """One torch thread: more make tiny networks slower on a shared machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

"""Weights of the measures' networks: every way they may come, and what is refused."""

import hashlib

import pytest
import torch

from egic.metrics import pretrained
from egic.metrics.pretrained import NETWORKS, Network, find

SMALL = {"features.0.weight": torch.ones(2, 3), "features.0.bias": torch.zeros(2), "classifier.weight": torch.ones(9)}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A network of one layer, its file with a hash in the name, and an empty cache; returns (folder, file)."""
    torch.save(SMALL, tmp_path / "made.pth")
    digest = hashlib.sha256((tmp_path / "made.pth").read_bytes()).hexdigest()
    name = f"small-{digest[:8]}.pth"
    shapes = {"0.weight": (2, 3), "0.bias": (2,)}
    network = Network(what="Small", url=f"http://127.0.0.1:9/{name}", names=("small.pth",), shapes=shapes)
    monkeypatch.setitem(pretrained.NETWORKS, "small", network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("EGIC_WEIGHTS", raising=False)
    folder = tmp_path / "weights"
    folder.mkdir()
    return folder, (tmp_path / "made.pth").rename(tmp_path / name)


def test_vgg16_is_torchvisions():
    from torchvision.models.vgg import cfgs, make_layers

    with torch.device("meta"):
        state = make_layers(cfgs["D"]).state_dict()
    assert NETWORKS["vgg16"].shapes == {k: tuple(v.shape) for k, v in state.items()}


@pytest.mark.parametrize("way", ["--weights", "EGIC_WEIGHTS", "cache"])
def test_every_place_is_looked_at(small, monkeypatch, tmp_path, way):
    folder, file = small
    place = tmp_path / "hub" / "hub" / "checkpoints" if way == "cache" else folder
    place.mkdir(parents=True, exist_ok=True)
    (place / file.name).write_bytes(file.read_bytes())
    if way == "EGIC_WEIGHTS":
        monkeypatch.setenv("EGIC_WEIGHTS", str(folder))
    name, state = find("small", str(folder) if way == "--weights" else "")
    assert name.startswith(f"{file.name} sha256:{file.name[6:14]}")
    assert set(state) == {"0.weight", "0.bias"} and torch.equal(state["0.weight"], torch.ones(2, 3))


def test_a_damaged_file_is_refused_by_the_hash_in_its_name(small):
    folder, file = small
    (folder / file.name).write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ValueError, match="not the one in its name: damaged"):
        find("small", str(folder))


def test_another_network_is_refused(small):
    folder, _ = small
    torch.save({"0.weight": torch.ones(4, 3), "0.bias": torch.zeros(2)}, folder / "small.pth")
    with pytest.raises(ValueError, match="small.pth holds no Small: it lacks 0.weight"):
        find("small", str(folder))


def test_both_ways_are_named_where_there_are_none(small):
    with pytest.raises(ValueError) as error:
        find("small", str(small[0]))
    assert "go online, or put small-" in str(error.value) and "--weights FOLDER or EGIC_WEIGHTS" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="--weights nowhere is no folder"):
        find("small", "nowhere")

"""Weights of the pretrained networks: all sources, and which files are refused."""

import ast
import hashlib
import http.server
import threading
from pathlib import Path

import pytest
import torch

from egic.metrics import pretrained
from egic.metrics.perceptual import LPIPS
from egic.metrics.pretrained import NETWORKS, RANDOM, Network, backbone_name, find, find_backbone

ROOT = Path(__file__).resolve().parents[4]

SMALL = {"features.0.weight": torch.ones(2, 3), "features.0.bias": torch.zeros(2), "classifier.weight": torch.ones(9)}


FILE_NAME = "alexnet_features.pth"


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    monkeypatch.delenv("EGIC_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def alexnet() -> dict[str, torch.Tensor]:
    """Convolutions of AlexNet's shapes under torchvision's names, `features.0.weight` and so on."""
    return {f"features.{name}": torch.full(shape, 0.01) for name, shape in NETWORKS["alexnet"].shapes.items()}


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
    folder = tmp_path / "weights"
    folder.mkdir()
    return folder, (tmp_path / "made.pth").rename(tmp_path / name)


def test_vgg16_equals_torchvisions():
    from torchvision.models.vgg import cfgs, make_layers

    with torch.device("meta"):
        state = make_layers(cfgs["D"]).state_dict()
    assert NETWORKS["vgg16"].shapes == {k: tuple(v.shape) for k, v in state.items()}


@pytest.mark.parametrize("way", ["--weights", "EGIC_WEIGHTS", "cache"])
def test_every_source_of_weights_is_searched(small, monkeypatch, tmp_path, way):
    folder, file = small
    place = tmp_path / "hub" / "hub" / "checkpoints" if way == "cache" else folder
    place.mkdir(parents=True, exist_ok=True)
    (place / file.name).write_bytes(file.read_bytes())
    if way == "EGIC_WEIGHTS":
        monkeypatch.setenv("EGIC_WEIGHTS", str(folder))
    name, state = find("small", str(folder) if way == "--weights" else "")
    assert name.startswith(file.name)
    assert set(state) == {"0.weight", "0.bias"} and torch.equal(state["0.weight"], torch.ones(2, 3))


def test_a_file_that_does_not_match_the_hash_in_its_name_is_refused(small):
    folder, file = small
    (folder / file.name).write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ValueError, match="not the one in its name: it is damaged"):
        find("small", str(folder))


def test_another_network_is_refused(small):
    folder, _ = small
    torch.save({"0.weight": torch.ones(4, 3), "0.bias": torch.zeros(2)}, folder / "small.pth")
    with pytest.raises(ValueError, match="small.pth is not Small: it lacks 0.weight"):
        find("small", str(folder))


def test_missing_weights_are_an_error_that_names_both_fixes(small):
    with pytest.raises(ValueError) as error:
        find("small", str(small[0]))
    assert "go online, or put small-" in str(error.value) and "set EGIC_WEIGHTS" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="--weights nowhere is not a folder"):
        find("small", "nowhere")


@pytest.mark.parametrize("prefix", ["features.", ""])
def test_weights_of_a_given_file_are_used(tmp_path, alexnet, prefix):
    state = {prefix + k.removeprefix("features."): v for k, v in alexnet.items()}
    torch.save(state, tmp_path / "alexnet.pth")
    name, backbone = find_backbone(str(tmp_path / "alexnet.pth"))
    digest = hashlib.sha256((tmp_path / "alexnet.pth").read_bytes()).hexdigest()
    assert name == f"alexnet.pth sha256:{digest[:16]}"
    assert all((v == 0.01).all() for v in LPIPS(backbone).net.net.state_dict().values())


def test_a_file_without_alexnets_weights_is_an_error_that_names_it(tmp_path, alexnet):
    """Before training starts, and not only when the GAN stage needs the weights."""
    path, state = tmp_path / "net.pth", alexnet
    for change, named in (
        ({"features.3.weight": None}, "3.weight;"),
        ({"features.0.weight": torch.zeros(64, 3, 3, 3), "features.10.bias": torch.zeros(3)}, "0.weight, 10.bias;"),
    ):
        torch.save({k: v for k, v in (state | change).items() if v is not None}, path)
        with pytest.raises(ValueError, match=f"net.pth is not AlexNet: it lacks {named}"):
            find_backbone(str(path))
    torch.save(torch.zeros(3), path)
    with pytest.raises(ValueError, match="net.pth is not AlexNet: it lacks 0.weight, "):
        find_backbone(str(path))


def test_the_classifiers_weights_are_not_kept(tmp_path, alexnet):
    torch.save(alexnet | {"classifier.1.weight": torch.zeros(9, 9)}, tmp_path / "alexnet.pth")
    found = find_backbone(str(tmp_path / "alexnet.pth"))[1]
    assert sorted(found) == sorted(k.removeprefix("features.") for k in alexnet)


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


@pytest.mark.parametrize("content", [b"", b"no weights at all", "a pickle that runs code"])
def test_unreadable_files_are_one_clear_error(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"x": Trap()}, path)
    with pytest.raises(ValueError, match="weights.pth cannot be read .*download them again") as error:
        find_backbone(str(path))
    assert "\n" not in str(error.value) and not (tmp_path / "trapped").exists()


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="do not exist; name torchvision's AlexNet, or --lpips-weights random"):
        find_backbone(str(tmp_path / "absent.pth"))


def test_lpips_can_run_on_vgg16(tmp_path):
    state = {f"features.{k}": torch.full(shape, 0.01) for k, shape in NETWORKS["vgg16"].shapes.items()}
    torch.save(state, tmp_path / "vgg.pth")
    name, backbone = find_backbone(str(tmp_path / "vgg.pth"), "vgg")
    assert name.startswith("vgg.pth sha256:") and backbone_name(str(tmp_path / "vgg.pth"), "vgg") == name
    assert all((v == 0.01).all() for v in LPIPS(backbone, "vgg").net.net.state_dict().values())
    with pytest.raises(ValueError, match="vgg.pth is not AlexNet"):
        find_backbone(str(tmp_path / "vgg.pth"))
    with pytest.raises(ValueError, match="name torchvision's VGG16, or --lpips-weights random"):
        find_backbone(str(tmp_path / "absent.pth"), "vgg")


def test_sources_are_used_in_order(tmp_path, monkeypatch, alexnet):
    assert find_backbone("random") == (RANDOM, None)
    assert find_backbone("local") == (RANDOM, None)
    torch.save(alexnet, tmp_path / FILE_NAME)
    monkeypatch.setenv("EGIC_WEIGHTS", str(tmp_path))
    assert backbone_name("").startswith(FILE_NAME)
    assert find_backbone("random") == (RANDOM, None)
    for source in ("", "local"):
        assert find_backbone(source, url="http://127.0.0.1:9/never")[0].startswith(FILE_NAME)
    (tmp_path / FILE_NAME).unlink()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))  # an empty cache
    assert backbone_name("") == "alexnet-owt-7be5be79.pth"  # what would be downloaded
    for source in ("", "local"):
        with pytest.raises(ValueError, match=FILE_NAME):
            find_backbone(source, url="http://127.0.0.1:9/never")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder that is served over HTTP, and an empty torch.hub cache."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_the_download_is_checked_by_the_hash_in_its_name(server, tmp_path, alexnet):
    folder, url = server
    torch.save(alexnet, tmp_path / "made.pth")
    content = (tmp_path / "made.pth").read_bytes()
    right = f"alexnet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / right).write_bytes(content)
    name, state = find_backbone("", url=f"{url}/{right}")
    assert name == right and (state["0.bias"] == 0.01).all()
    (folder / right).unlink()
    assert find_backbone("", url=f"{url}/{right}")[0] == name  # from the cache
    wrong = "alexnet-0123abcd.pth"
    (folder / wrong).write_bytes(content)
    with pytest.raises(ValueError, match="hash") as error:
        find_backbone("", url=f"{url}/{wrong}")
    assert "EGIC_WEIGHTS" in str(error.value)
    assert not list((tmp_path / "hub").rglob(wrong))


@pytest.mark.parametrize("kind", ["not found", "no server"])
def test_a_failed_download_is_an_error_that_names_both_fixes(server, kind):
    url = f"{server[1]}/absent-01234567.pth" if kind == "not found" else "http://127.0.0.1:9/alexnet-01234567.pth"
    with pytest.raises(ValueError) as error:
        find_backbone("", url=url)
    message = str(error.value)
    assert url in message and FILE_NAME in message and "EGIC_WEIGHTS" in message
    assert "\n" not in message


def test_every_torch_load_takes_weights_only():
    """A pickle from an untrusted source must never run code."""
    calls = []
    for path in [p for folder in ("egic", "jobs", "pipelines") for p in sorted((ROOT / folder).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            loaders = ("torch.load", "torch.hub.load_state_dict_from_url")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in loaders:
                calls.append(path.name)
                safe = [k.value for k in node.keywords if k.arg == "weights_only"]
                assert safe and ast.unparse(safe[0]) == "True", f"{path}:{node.lineno}"
    assert "pretrained.py" in calls

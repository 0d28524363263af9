"""LPIPS: the published values, and every way its backbone may come, or fail to."""

import ast
import hashlib
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from egic.metrics.perceptual import FILE_NAME, LPIPS, RANDOM, find_backbone

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    monkeypatch.delenv("EGIC_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def random_lpips() -> LPIPS:
    return LPIPS(None)


def features(lpips: LPIPS) -> dict[str, torch.Tensor]:
    """AlexNet's convolutions under torchvision's names, `features.0.weight` and so on."""
    state = lpips.net.net.state_dict()
    return {f"features.{name.split('.', 1)[1]}": torch.full_like(v, 0.01) for name, v in state.items()}


def test_published_values(weights, monkeypatch):
    folder = weights.parent / "lpips_example_images"
    if not folder.is_dir():
        pytest.skip("lpips_example_images is not beside EGIC_WEIGHTS")
    monkeypatch.setenv("EGIC_WEIGHTS", str(weights))
    name, backbone = find_backbone("")
    assert name.startswith(f"{FILE_NAME} sha256:")
    lpips = LPIPS(backbone)
    ref, p0, p1 = (
        torch.from_numpy(np.array(Image.open(folder / f"ex_{n}.png").convert("RGB"))).permute(2, 0, 1)[None].float()
        for n in ("ref", "p0", "p1")
    )
    with torch.no_grad():
        assert lpips(p0, ref).item() == pytest.approx(0.722, abs=1e-3)
        assert lpips(p1, ref).item() == pytest.approx(0.138, abs=1e-3)


def test_the_random_backbone_is_seeded_and_leaves_the_generator_alone(random_lpips):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = LPIPS(None)
    assert torch.equal(torch.get_rng_state(), before)
    for mine, other in zip(random_lpips.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_it_is_frozen_but_leads_gradients_to_the_picture(random_lpips):
    assert not any(p.requires_grad for p in random_lpips.parameters()) and not random_lpips.training
    x = torch.rand(2, 3, 64, 64) * 255
    x_hat = (x + 20 * torch.randn_like(x)).requires_grad_()
    distance = random_lpips(x_hat, x)
    distance.backward()
    assert distance.shape == () and distance > 0 and x_hat.grad.abs().sum() > 0
    assert random_lpips(x, x).item() == 0


@pytest.mark.parametrize("prefix", ["features.", ""])
def test_weights_of_a_file_are_taken(tmp_path, random_lpips, prefix):
    state = {prefix + k.removeprefix("features."): v for k, v in features(random_lpips).items()}
    torch.save(state, tmp_path / "alexnet.pth")
    name, backbone = find_backbone(str(tmp_path / "alexnet.pth"))
    digest = hashlib.sha256((tmp_path / "alexnet.pth").read_bytes()).hexdigest()
    assert name == f"alexnet.pth sha256:{digest[:16]}"
    assert all((v == 0.01).all() for v in LPIPS(backbone).net.net.state_dict().values())


def test_what_is_no_alexnet_is_refused_by_name(tmp_path, random_lpips):
    """Before anything is trained, and not only when the GAN stage needs it."""
    path, state = tmp_path / "net.pth", features(random_lpips)
    for change, named in (
        ({"features.3.weight": None}, "3.weight;"),
        ({"features.0.weight": torch.zeros(64, 3, 3, 3), "features.10.bias": torch.zeros(3)}, "0.weight, 10.bias;"),
    ):
        torch.save({k: v for k, v in (state | change).items() if v is not None}, path)
        with pytest.raises(ValueError, match=f"net.pth lack AlexNet's features {named} give torchvision's file"):
            find_backbone(str(path))
    torch.save(torch.zeros(3), path)
    with pytest.raises(ValueError, match="net.pth lack AlexNet's features 0.weight, "):
        find_backbone(str(path))


def test_the_classifier_is_left_behind(tmp_path, random_lpips):
    torch.save(features(random_lpips) | {"classifier.1.weight": torch.zeros(9, 9)}, tmp_path / "alexnet.pth")
    found = find_backbone(str(tmp_path / "alexnet.pth"))[1]
    assert sorted(found) == sorted(k.removeprefix("features.") for k in features(random_lpips))


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
    with pytest.raises(ValueError, match="weights.pth cannot be read .*give AlexNet's .pth") as error:
        find_backbone(str(path))
    assert "\n" not in str(error.value) and not (tmp_path / "trapped").exists()


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="do not exist; give torchvision's AlexNet, or --lpips-weights random"):
        find_backbone(str(tmp_path / "absent.pth"))


def test_which_source_is_used(tmp_path, monkeypatch, random_lpips):
    assert find_backbone("random") == (RANDOM, None)
    assert find_backbone("local") == (RANDOM, None)
    torch.save(features(random_lpips), tmp_path / FILE_NAME)
    monkeypatch.setenv("EGIC_WEIGHTS", str(tmp_path))
    assert find_backbone("random") == (RANDOM, None)
    for source in ("", "local"):
        assert find_backbone(source, url="http://127.0.0.1:9/never")[0].startswith(FILE_NAME)
    (tmp_path / FILE_NAME).unlink()
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


def test_the_download_is_checked_by_the_hash_in_its_name(server, tmp_path, random_lpips):
    folder, url = server
    torch.save(features(random_lpips), tmp_path / "made.pth")
    content = (tmp_path / "made.pth").read_bytes()
    right = f"alexnet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / right).write_bytes(content)
    name, state = find_backbone("", url=f"{url}/{right}")
    assert name == f"torchvision {right}" and (state["0.bias"] == 0.01).all()
    (folder / right).unlink()
    assert find_backbone("", url=f"{url}/{right}")[0] == name  # from the cache
    wrong = "alexnet-0123abcd.pth"
    (folder / wrong).write_bytes(content)
    with pytest.raises(ValueError, match="hash") as error:
        find_backbone("", url=f"{url}/{wrong}")
    assert "--lpips-weights FILE" in str(error.value)
    assert not list((tmp_path / "hub").rglob(wrong))


@pytest.mark.parametrize("kind", ["not found", "no server"])
def test_without_a_download_both_ways_out_are_named(server, kind):
    url = f"{server[1]}/absent-01234567.pth" if kind == "not found" else "http://127.0.0.1:9/alexnet-01234567.pth"
    with pytest.raises(ValueError) as error:
        find_backbone("", url=url)
    message = str(error.value)
    assert url in message and "--lpips-weights FILE" in message and FILE_NAME in message and "EGIC_WEIGHTS" in message
    assert "\n" not in message


def test_every_torch_load_takes_weights_only():
    """A pickle from outside must never run code."""
    calls = []
    for path in [p for folder in ("egic", "jobs", "pipelines") for p in sorted((ROOT / folder).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            loaders = ("torch.load", "torch.hub.load_state_dict_from_url")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in loaders:
                calls.append(path.name)
                safe = [k.value for k in node.keywords if k.arg == "weights_only"]
                assert safe and ast.unparse(safe[0]) == "True", f"{path}:{node.lineno}"
    assert "perceptual.py" in calls and "checkpoint.py" not in calls

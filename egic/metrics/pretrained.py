"""Networks behind the measures: where AlexNet, VGG16 and Inception weights come from. Nothing is taken unchecked.

A file is looked for in the folder that was named, then in $EGIC_WEIGHTS, then in torch.hub's cache, and is downloaded
at last. Names such as vgg16-397923af.pth carry the first 8 hex digits of the file's sha256, which are held against it.
"""

import hashlib
import os
import re
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from egic.errors import UserError
from egic.metrics.perceptual import ALEXNET_URL, SHAPES, load_state, take

_VGG16 = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256)}
_VGG16 |= {17: (512, 256)} | {i: (512, 512) for i in (19, 21, 24, 26, 28)}


def _convolutions(kernels: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of weights and biases by name."""
    return {f"{i}.{n}": s for i, shape in kernels.items() for n, s in (("weight", shape), ("bias", shape[:1]))}


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network's file and the tensors that tell it from others."""

    what: str
    url: str
    names: tuple[str, ...]
    """Files that are taken in place of the one that `url` names."""
    shapes: Mapping[str, tuple[int, ...]]
    """Tensors it must have; a leading `features.` is left out."""
    whole: bool = False
    """Keep its other tensors, too (VGG16's classifier, which nothing here needs, is 495 MB)."""


NETWORKS = {
    "alexnet": Network(what="AlexNet", url=ALEXNET_URL, names=("alexnet_features.pth",), shapes=_convolutions(SHAPES)),
    "vgg16": Network(
        what="VGG16",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        names=("vgg16_features.pth",),
        shapes=_convolutions({str(i): (*shape, 3, 3) for i, shape in _VGG16.items()}),
    ),
    "inception": Network(  # the network of the published FIDs, converted from TensorFlow's of 2015
        what="Inception",
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        names=("pt_inception-2015-12-05-6726825d.pth", "pt_inception_fid_pool3_fc_zeroed.pth"),
        shapes={"Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3), "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1)},
        whole=True,
    ),
}


def on_disk(kind: str, folder: str = "", url: str = "") -> Path | None:
    """The file of a network's weights, where there is one; see `find`."""
    network = NETWORKS[kind]
    if folder and not Path(folder).is_dir():
        raise UserError(f"--weights {folder} is no folder; name one with {Path(network.url).name}")
    url = url or network.url
    for place in filter(None, (folder, os.environ.get("EGIC_WEIGHTS"))):
        for name in (Path(url).name, *network.names):
            if (path := Path(place) / name).is_file():
                return path
    path = _cached(url)
    return path if path.is_file() else None


def _cached(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def find(kind: str, folder: str = "", url: str = "") -> tuple[str, dict[str, Tensor]]:
    """What they are, and the weights of "alexnet" or "vgg16" (their convolutions, `0.weight` ...) or "inception".

    folder: looked through first. url: in place of the usual one. Raises UserError, one line that names both ways to
    get them, when they are nowhere; and for a file that is another, or damaged.
    """
    network = NETWORKS[kind]
    path = on_disk(kind, folder, url)
    if path is None:
        url = url or network.url
        _download(network, url, path := _cached(url))
    return _from_file(network, path)


def _download(network: Network, url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_prefix(path.name), progress=False)
    except (urllib.error.URLError, OSError, RuntimeError) as e:
        raise UserError(
            f"{network.what} weights could not be downloaded from {url} ({e}); go online, or put {path.name} into a "
            "folder and name it with --weights FOLDER or EGIC_WEIGHTS"
        ) from e


def _prefix(name: str) -> str | None:
    """The 8 hex digits in a file's name, if it has them."""
    found = re.search(r"-([0-9a-f]{8})\.pth$", name)
    return found[1] if found else None


def _from_file(network: Network, path: Path) -> tuple[str, dict[str, Tensor]]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(_prefix(path.name) or ""):
        raise UserError(f"{path} has sha256 {digest[:8]}..., not the one in its name: damaged; delete it")
    given, wrong = take(load_state(path, network.what, "fetch them again"), network.shapes)
    if wrong:
        raise UserError(f"{path} holds no {network.what}: it lacks {', '.join(wrong[:3])}")
    return f"{path.name} sha256:{digest[:16]}", given if network.whole else {k: given[k] for k in network.shapes}

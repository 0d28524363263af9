"""Pretrained networks of the measures: where the weights of AlexNet, VGG16 and Inception come from.

A file is looked for in the folder that was named, then in $EGIC_WEIGHTS, then in torch.hub's cache; if it is in none of
them, it is downloaded. Names such as vgg16-397923af.pth carry the first 8 hex digits of the file's sha256, which are
checked. Nothing in a file is executed.
"""

import hashlib
import os
import pickle
import re
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from egic.errors import UserError

BACKBONES = {"alex": "alexnet", "vgg": "vgg16"}
"""Networks that LPIPS can run on: its name for them, and the one in `NETWORKS`."""

RANDOM = "random backbone, seed 0"
"""What `find_backbone` calls a backbone without weights."""

_ALEXNET = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
_VGG16 = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256)}
_VGG16 |= {17: (512, 256)} | {i: (512, 512) for i in (19, 21, 24, 26, 28)}


def _convolutions(kernels: Mapping[int, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of weights and biases by name; kernels: (out, in, side = 3) by the layer's number."""
    shapes = {i: (out, channels, *(side or (3,)) * 2) for i, (out, channels, *side) in kernels.items()}
    return {f"{i}.{n}": s for i, shape in shapes.items() for n, s in (("weight", shape), ("bias", shape[:1]))}


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network's file, and tensors by which it is recognised."""

    what: str
    url: str
    names: tuple[str, ...]
    """Names of files that are accepted in place of the one that `url` names."""
    shapes: Mapping[str, tuple[int, ...]]
    """Tensors it must have; a leading `features.` in their names is ignored."""
    whole: bool = False
    """Keep its other tensors as well (VGG16's classifier, which is not used here, has 495 MB)."""


NETWORKS = {
    "alexnet": Network(
        what="AlexNet",
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        names=("alexnet_features.pth",),
        shapes=_convolutions(_ALEXNET),
    ),
    "vgg16": Network(
        what="VGG16",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        names=("vgg16_features.pth",),
        shapes=_convolutions(_VGG16),
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
    """The file of a network's weights, or None when it is not on this machine; see `find`."""
    network = NETWORKS[kind]
    if folder and not Path(folder).is_dir():
        raise UserError(f"--weights {folder} is not a folder; name one with {Path(network.url).name}")
    url = url or network.url
    for place in filter(None, (folder, os.environ.get("EGIC_WEIGHTS"))):
        for name in (Path(url).name, *network.names):
            if (path := Path(place) / name).is_file():
                return path
    path = _cached(url)
    return path if path.is_file() else None


def find(kind: str, folder: str = "", url: str = "") -> tuple[str, dict[str, Tensor]]:
    """Name and weights of "alexnet" or "vgg16" (their convolutions, `0.weight` ...) or "inception".

    folder: searched first. url: in place of the usual one. Raises UserError, in one line that names both ways to get
    the weights, when they are neither on disk nor can be downloaded; and for a file of another network, or a damaged
    one.
    """
    network = NETWORKS[kind]
    path = on_disk(kind, folder, url)
    if path is None:
        url = url or network.url
        _download(network, url, path := _cached(url))
    return _from_file(network, path)


def find_backbone(source: str, net: str = "alex", url: str = "") -> tuple[str, dict[str, Tensor] | None]:
    """Name and weights of the network that LPIPS runs on in training; None means random weights of seed 0.

    source: a file (torchvision's network, or its `features` alone); "" for what `find` finds; "local" for the same
    where $EGIC_WEIGHTS is set, else random weights; "random". net: a key of `BACKBONES`. Raises UserError as `find`
    does.
    """
    kind = BACKBONES[net]
    if source == "random" or (source == "local" and not os.environ.get("EGIC_WEIGHTS")):
        return RANDOM, None
    if source in ("", "local"):
        return find(kind, url=url)
    if not Path(source).is_file():
        what = NETWORKS[kind].what
        raise UserError(f"LPIPS weights {source} do not exist; name torchvision's {what}, or --lpips-weights random")
    return _from_file(NETWORKS[kind], Path(source))


def backbone_name(source: str, net: str = "alex") -> str:
    """The name that `find_backbone` returns, without its download."""
    if source == "" and on_disk(BACKBONES[net]) is None:
        return Path(NETWORKS[BACKBONES[net]].url).name
    return find_backbone(source, net)[0]


def _cached(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def _download(network: Network, url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_prefix(path.name), progress=False)
    except (urllib.error.URLError, OSError, RuntimeError) as e:
        raise UserError(
            f"{network.what} weights could not be downloaded from {url} ({e}); go online, or put {path.name} or "
            f"{network.names[0]} into a folder and set EGIC_WEIGHTS to it"
        ) from e


def _prefix(name: str) -> str | None:
    """The 8 hex digits in a file's name, if it has them."""
    found = re.search(r"-([0-9a-f]{8})\.pth$", name)
    return found[1] if found else None


def _from_file(network: Network, path: Path) -> tuple[str, dict[str, Tensor]]:
    """Name and tensors of a file. The hash is added to names that do not carry it."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    prefix = _prefix(path.name)
    if not digest.startswith(prefix or ""):
        raise UserError(f"{path} has sha256 {digest[:8]}..., not the one in its name: it is damaged; delete it")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as e:
        reason = (str(e).splitlines() or ["the file ends early"])[0]
        raise UserError(f"{network.what} weights {path} cannot be read ({reason}); download them again") from e
    given = {str(k).removeprefix("features."): v for k, v in state.items()} if isinstance(state, Mapping) else {}
    wrong = [k for k, shape in network.shapes.items() if tuple(getattr(given.get(k), "shape", ())) != shape]
    if wrong:
        raise UserError(f"{path} is not {network.what}: it lacks {', '.join(wrong[:3])}; name torchvision's file")
    name = path.name if prefix else f"{path.name} sha256:{digest[:16]}"
    return name, given if network.whole else {k: given[k] for k in network.shapes}
